//! What it costs to write the newest balances of 100,000 accounts into their rows, in sorted chunks.

use super::{Meter, Row};
use crate::bench::{
    baseline::connect,
    ceiling::{self, ACCOUNTS},
    request::account_id,
};

const CHUNK: usize = 1_000;
/// Each account is folded so often.
const PASSES: usize = 5;

const FILL: &str = "INSERT INTO ceiling.account SELECT 'bench:' || n, 0, 'USD', 1, 0, 0, NULL, NULL, 0, 0, '', 0, 0 \
     FROM generate_series(0, $1 - 1) AS n";
const UPDATE: &str = "UPDATE ceiling.account a \
     SET posted = new.posted, held = new.held, version = new.version, head = new.head, updated_at_us = new.at_us \
     FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[]) \
         AS new (id, posted, held, version, head, at_us) \
     WHERE a.id = new.id AND a.version < new.version";

pub async fn measure(url: &str) -> anyhow::Result<Row> {
    let mut session = ceiling::prepare(url).await?;
    session.run(super::TABLES, None).await?;
    let mut connection = connect(url).await?;
    sqlx::query(FILL).bind(ACCOUNTS as i64).execute(&mut connection).await?;
    sqlx::query("VACUUM ANALYZE ceiling.account").execute(&mut connection).await?;
    let backend_pid = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
    let mut ids: Vec<String> = (0..ACCOUNTS).map(account_id).collect();
    ids.sort_unstable();
    let wal_before = super::wal_bytes(&mut session).await?;
    let mut meter = Meter::start(backend_pid, PASSES * ACCOUNTS / CHUNK);
    for version in 1..=PASSES as i64 {
        for chunk in ids.chunks(CHUNK) {
            let column = |value: i64| vec![value; chunk.len()];
            let updated = sqlx::query(UPDATE)
                .bind(chunk)
                .bind(column(version * 10))
                .bind(column(0))
                .bind(column(version))
                .bind(column(version * 1_000))
                .bind(column(version * 1_000_000))
                .execute(&mut connection)
                .await?;
            anyhow::ensure!(updated.rows_affected() == chunk.len() as u64, "a chunk missed accounts");
            meter.commit()?;
        }
    }
    let folded = (PASSES * ACCOUNTS) as f64;
    let wal = super::wal_bytes(&mut session).await? - wal_before;
    let row = meter.row("fold", format!("UPDATE of {ACCOUNTS} accounts"), CHUNK, wal / folded, None);
    session.run("DROP SCHEMA ceiling CASCADE", None).await?;
    session.close().await;
    Ok(row)
}
