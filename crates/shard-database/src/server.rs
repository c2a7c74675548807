//! The facts of the server that answered a connection, and the settings in force in the session.
//!
//! A requested setting may not be in force: a default of the role or database, `ALTER SYSTEM`, or a pooler that drops
//! start-up parameters can change it. Every setting that matters is therefore read back.

use std::collections::BTreeMap;

use identity::Disagreement;
use sqlx::{PgConnection, Row};

/// The facts of the server and the session, read by one statement.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    pub is_standby: bool,
    /// PostgreSQL's system identifier, created by `initdb`.
    pub system_identifier: i64,
    /// `None` on a stand-by.
    pub timeline: Option<i64>,
    /// When the server was started. Two servers that run at the same time differ in it.
    pub started_at_us: i64,
    /// The OID of the database. It distinguishes a copy made with `CREATE DATABASE … TEMPLATE` from its original.
    pub database_oid: i64,
    /// The server's clock, in microseconds since the epoch.
    pub clock_us: i64,
    settings: BTreeMap<String, String>,
}

/// Identifies one database of one running server. A copy has another id, and so has the same database after a restart
/// of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerId {
    pub(crate) system_identifier: i64,
    started_at_us: i64,
    pub(crate) database_oid: i64,
}

/// What a session is used for. Reads need fewer settings than writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Reads,
    Writes,
}

/// A setting that must have one of these values, whether or not the session requested it.
struct Required {
    name: &'static str,
    good: &'static [&'static str],
    /// Whether reads need the setting too.
    for_reads: bool,
    remedy: &'static str,
}

/// An acknowledged write must be durable, and writes must be possible.
const REQUIRED: [Required; 8] = [
    Required {
        name: "server_encoding",
        good: &["UTF8"],
        for_reads: true,
        remedy: "make the database with ENCODING 'UTF8' (createdb --encoding=UTF8 --template=template0)",
    },
    Required {
        name: "client_encoding",
        good: &["UTF8"],
        for_reads: true,
        remedy: "remove the setting of client_encoding from the role or database",
    },
    Required {
        name: "transaction_isolation",
        good: &["read committed"],
        for_reads: true,
        remedy: "remove the setting of default_transaction_isolation from the role, the database or the pooler",
    },
    Required {
        name: "synchronous_commit",
        good: &["on", "remote_apply"],
        for_reads: false,
        remedy: "a commit would be acknowledged before it is safe: remove the setting from the role, the database or the pooler",
    },
    Required {
        name: "fsync",
        good: &["on"],
        for_reads: false,
        remedy: "a commit would not survive a crash: set fsync = on in postgresql.conf",
    },
    Required {
        name: "full_page_writes",
        good: &["on"],
        for_reads: false,
        remedy: "a crash may tear pages: set full_page_writes = on in postgresql.conf",
    },
    Required {
        name: "transaction_read_only",
        good: &["off"],
        for_reads: false,
        remedy: "the database takes no writes: reset default_transaction_read_only (of the server, the database or the role)",
    },
    Required {
        name: "transaction_timeout",
        // PostgreSQL 15 and 16 do not have this setting.
        good: &["0", ""],
        for_reads: false,
        remedy: "it would cut a COMMIT short: remove the setting of transaction_timeout",
    },
];

/// The stand-bys that a commit waits for; empty if it waits for none.
const STANDBY_NAMES: &str = "synchronous_standby_names";

/// Settings that are reported as warnings if they are wrong.
const WARNED: [(&str, &str, &str); 1] = [(
    "data_checksums",
    "on",
    "a damaged page would be served unnoticed: stop PostgreSQL and run pg_checksums --enable",
)];

/// Reads the server's facts; the settings follow. Works on a stand-by and in a database without a ledger.
macro_rules! facts {
    () => {
        "SELECT pg_catalog.pg_is_in_recovery() AS is_standby, \
       (SELECT system_identifier FROM pg_catalog.pg_control_system()) AS system_identifier, \
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN NULL \
         ELSE ('x' || pg_catalog.lpad(pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8), 16, '0'))::bit(64)::int8 \
       END AS timeline, \
       (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) * 1000000)::int8 AS started_at_us, \
       (SELECT oid::int8 FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) AS database_oid, \
       (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::int8 AS clock_us, \
       (SELECT pg_catalog.string_agg(name || '=' || setting, pg_catalog.chr(10)) FROM pg_catalog.pg_settings WHERE name = ANY("
    };
}

const FACTS: &str = concat!(facts!(), "$1::text[])) AS settings");

impl ServerFacts {
    /// Reads the facts, the settings that are always compared, and those named in `asked_for`.
    pub async fn read(connection: &mut PgConnection, asked_for: &[(&str, &str)]) -> Result<Self, sqlx::Error> {
        let row = sqlx::query(FACTS).bind(compared(asked_for)).fetch_one(connection).await?;
        Ok(Self {
            is_standby: row.try_get("is_standby")?,
            system_identifier: row.try_get("system_identifier")?,
            timeline: row.try_get("timeline")?,
            started_at_us: row.try_get("started_at_us")?,
            database_oid: row.try_get("database_oid")?,
            clock_us: row.try_get("clock_us")?,
            settings: settings_from_text(row.try_get("settings")?),
        })
    }

    /// A statement that reads the same as [`ServerFacts::read`], for a session without parameters.
    pub fn script(asked_for: &[(&str, &str)]) -> String {
        // Names of settings consist of letters and underscores.
        format!("{}'{{{}}}'::text[])) AS settings", facts!(), compared(asked_for).join(","))
    }

    /// The facts in a row of [`ServerFacts::script`], whose columns are texts.
    ///
    /// # Errors
    /// `Decode` when a column is missing or no number.
    pub fn from_texts(row: &[Option<String>]) -> Result<Self, sqlx::Error> {
        let wrong = |what: &str| sqlx::Error::Decode(format!("the server's facts: {what}").into());
        let text = |index: usize| row.get(index).and_then(Option::as_deref);
        let number = |index: usize| match text(index) {
            Some(text) => text.parse::<i64>().map_err(|_| wrong(text)),
            None => Err(wrong("a number is missing")),
        };
        Ok(Self {
            is_standby: text(0) == Some("t"),
            system_identifier: number(1)?,
            timeline: text(2).map(|_| number(2)).transpose()?,
            started_at_us: number(3)?,
            database_oid: number(4)?,
            clock_us: number(5)?,
            settings: settings_from_text(text(6).unwrap_or_default()),
        })
    }

    /// The facts of a healthy primary, for tests.
    pub fn for_tests(system_identifier: i64, timeline: i64) -> Self {
        let settings =
            REQUIRED.iter().map(|required| (required.name.to_owned(), required.good[0].to_owned())).collect();
        Self {
            is_standby: false,
            system_identifier,
            timeline: Some(timeline),
            started_at_us: 0,
            database_oid: 0,
            clock_us: 0,
            settings,
        }
    }

    pub fn id(&self) -> ServerId {
        let Self { system_identifier, started_at_us, database_oid, .. } = *self;
        ServerId { system_identifier, started_at_us, database_oid }
    }

    /// The same facts with another start time, for tests.
    pub fn started_at(self, started_at_us: i64) -> Self {
        Self { started_at_us, ..self }
    }

    /// The same facts with another value of a setting, for tests.
    #[must_use]
    pub fn with_setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Whether a commit is acknowledged only after a stand-by has confirmed it. After a crash, such a server may show commits that no
    /// stand-by has confirmed.
    pub fn waits_for_standby(&self) -> bool {
        !self.setting(STANDBY_NAMES).is_empty()
    }

    /// The names of the settings that must have certain values.
    pub fn required() -> impl Iterator<Item = &'static str> {
        REQUIRED.iter().map(|required| required.name)
    }

    /// The value in force; empty for a setting that this version of PostgreSQL does not have.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Every reason not to use the session for this purpose: the kind of server, required settings with a wrong
    /// value, and requested settings that are not in force.
    pub fn disagreements(&self, purpose: Purpose, asked_for: &[(&str, &str)]) -> Vec<Disagreement> {
        let mut found = Vec::new();
        if self.is_standby {
            let remedy = "database.url leads to a stand-by: point it to the primary, or name all hosts in it";
            found.push(Disagreement::new("server", "a primary", "a stand-by (in recovery)", remedy));
        }
        for Required { name, good, for_reads, remedy } in &REQUIRED {
            let value = self.setting(name);
            let matters = *for_reads || purpose == Purpose::Writes;
            // A stand-by is always read-only; the disagreement about the server says so already.
            let said = self.is_standby && *name == "transaction_read_only";
            if matters && !good.contains(&value) && !said {
                found.push(Disagreement::new(*name, good[0], shown(value), *remedy));
            }
        }
        for (name, wanted) in asked_for {
            let value = self.setting(name);
            let is_required = REQUIRED.iter().any(|required| required.name == *name);
            if value != *wanted && !is_required {
                let remedy = "something between this program and PostgreSQL drops start-up parameters (a pooler?): connect to \
                              PostgreSQL itself";
                found.push(Disagreement::new(*name, shown(wanted), shown(value), remedy));
            }
        }
        found
    }

    /// Wrong settings that do not forbid the use of the session.
    pub fn warnings(&self) -> Vec<Disagreement> {
        let wrong = |(name, good, remedy): &(&str, &str, &str)| {
            let value = self.setting(name);
            (value != *good).then(|| Disagreement::new(*name, *good, shown(value), *remedy))
        };
        WARNED.iter().filter_map(wrong).collect()
    }
}

/// The names of the settings that are compared.
fn compared<'n>(asked_for: &[(&'n str, &str)]) -> Vec<&'n str> {
    let required = REQUIRED.iter().map(|required| required.name);
    let warned = WARNED.iter().map(|(name, ..)| *name).chain([STANDBY_NAMES]);
    required.chain(warned).chain(asked_for.iter().map(|(name, _)| *name)).collect()
}

/// Lines of `name=value`.
fn settings_from_text(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "nothing" } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(changes: &[(&str, &str)]) -> ServerFacts {
        let mut settings = ServerFacts::for_tests(1, 1).settings;
        settings.insert("data_checksums".to_owned(), "on".to_owned());
        settings.insert("jit".to_owned(), "off".to_owned());
        settings.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        ServerFacts { settings, ..ServerFacts::for_tests(1, 1) }
    }

    fn named(facts: &ServerFacts) -> Vec<String> {
        facts
            .disagreements(Purpose::Writes, &[("jit", "off")])
            .into_iter()
            .map(|disagreement| disagreement.fact)
            .collect()
    }

    #[test]
    fn a_required_setting_with_a_wrong_value_is_named() {
        assert!(named(&facts(&[])).is_empty());
        for (name, bad) in [
            ("server_encoding", "LATIN1"),
            ("server_encoding", "SQL_ASCII"),
            ("client_encoding", "LATIN1"),
            ("synchronous_commit", "off"),
            ("synchronous_commit", "local"),
            ("synchronous_commit", "remote_write"),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("transaction_read_only", "on"),
            ("transaction_isolation", "serializable"),
            ("transaction_timeout", "5000"),
            ("jit", "on"),
        ] {
            assert_eq!(named(&facts(&[(name, bad)])), [name], "{bad}");
        }
        assert!(named(&facts(&[("synchronous_commit", "remote_apply"), ("transaction_timeout", "")])).is_empty());
    }

    #[test]
    fn reads_need_less_than_writes() {
        let for_reads = |name: &str, value: &str| facts(&[(name, value)]).disagreements(Purpose::Reads, &[]);
        for (name, value) in [("transaction_read_only", "on"), ("fsync", "off"), ("synchronous_commit", "off")] {
            assert_eq!(for_reads(name, value), [], "{name}");
        }
        assert_eq!(for_reads("server_encoding", "LATIN1").len(), 1);
    }

    #[test]
    fn a_stand_by_is_named_as_one_and_missing_checksums_are_a_warning() {
        let standby = ServerFacts { is_standby: true, ..facts(&[("transaction_read_only", "on")]) };
        assert_eq!(named(&standby), ["server"]);
        let bare = facts(&[("data_checksums", "off")]);
        assert!(named(&bare).is_empty());
        assert_eq!(bare.warnings()[0].fact, "data_checksums");
        assert!(facts(&[]).warnings().is_empty());
    }
}
