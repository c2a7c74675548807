//! The lane's one connection to PostgreSQL.
//!
//! Every statement has a deadline on the client's side; when it passes, the connection is thrown away, never reused. The
//! server's own statement time-out stays off, because it would also cut a COMMIT short.

use std::{future::Future, time::Duration};

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, postgres::PgConnectOptions};

use super::{StoreError, row_array::RowType};

pub struct Session {
    connection: PgConnection,
    statement_timeout: Duration,
    row_types: RowTypes,
}

/// The row types of the tables that the lane inserts into.
#[derive(Debug, Clone, Copy)]
pub struct RowTypes {
    pub account: RowType,
    pub hold: RowType,
    pub journal: RowType,
    pub register: RowType,
    pub transfer: RowType,
    pub waypoint: RowType,
}

impl Session {
    pub async fn connect(
        options: &PgConnectOptions,
        connect_timeout: Duration,
        statement_timeout: Duration,
    ) -> Result<Self, StoreError> {
        let options = options.clone().application_name("shardledger-lane").options(LANE_SETTINGS);
        let mut connection = within(connect_timeout, PgConnection::connect_with(&options)).await?;
        let row_types = within(connect_timeout, async {
            let read_only: bool = sqlx::query_scalar(IS_STANDBY).fetch_one(&mut connection).await?;
            if read_only {
                return Err(sqlx::Error::Protocol("the database is a read-only standby".to_owned()));
            }
            load_row_types(&mut connection).await
        })
        .await?;
        Ok(Self { connection, statement_timeout, row_types })
    }

    pub fn row_types(&self) -> &RowTypes {
        &self.row_types
    }

    /// Runs statements on the connection under the session's deadline.
    pub async fn run<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        within(self.statement_timeout, work(&mut self.connection)).await
    }

    /// Several statements without parameters in one round trip; gives the rows they touched together.
    pub async fn run_script(&mut self, script: String) -> Result<u64, StoreError> {
        self.run(async |c| Ok(sqlx::raw_sql(AssertSqlSafe(script)).execute(c).await?.rows_affected())).await
    }

    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        self.run_script("ROLLBACK".to_owned()).await.map(|_| ())
    }

    /// Whether COMMIT was answered. An error here means that the commit's fate is unknown.
    pub async fn commit(&mut self) -> Result<(), StoreError> {
        self.run_script("COMMIT".to_owned()).await.map(|_| ())
    }

    pub async fn close(self) {
        // The server notices a dropped socket as well; a slow good-bye must not hold up the shutdown.
        let _ = within(Duration::from_secs(1), self.connection.close()).await;
    }
}

const IS_STANDBY: &str = "SELECT pg_is_in_recovery()";
const ROW_TYPE: &str = "SELECT oid, typarray FROM pg_type WHERE typrelid = to_regclass($1)";

async fn load_row_types(connection: &mut PgConnection) -> Result<RowTypes, sqlx::Error> {
    let mut of = async |table: &str| {
        let (row, array) = sqlx::query_as(ROW_TYPE).bind(table).fetch_one(&mut *connection).await?;
        Ok::<_, sqlx::Error>(RowType { row, array })
    };
    Ok(RowTypes {
        account: of("account").await?,
        hold: of("hold").await?,
        journal: of("journal").await?,
        register: of("register").await?,
        transfer: of("transfer").await?,
        waypoint: of("waypoint").await?,
    })
}

/// Index look-ups by key are the lane's only access paths; without statistics the planner might sort and hash instead. A
/// frozen node must not hold the fence for ever: the server ends a transaction that idles for half a minute, and a statement
/// whose client has gone (it may be waiting for the fence) within seconds.
const LANE_SETTINGS: [(&str, &str); 12] = [
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    ("synchronous_commit", "on"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "30000"),
    ("client_connection_check_interval", "2000"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
];

/// A statement that touched other than the expected number of rows was decided on a state that is no more.
pub fn check_rows(statement: &'static str, expected: u64, actual: u64) -> Result<(), StoreError> {
    if expected == actual { Ok(()) } else { Err(StoreError::RowCount { statement, expected, actual }) }
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::TimedOut(deadline)),
    }
}

/// A column that must be there; a missing or mistyped one means another schema.
pub fn column<'r, T>(row: &'r sqlx::postgres::PgRow, name: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    Ok(row.try_get(name)?)
}
