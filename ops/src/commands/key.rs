//! `shardctl key …`: the keys of the HTTP API, in a file that routers watch (`docs/operations/keys.md`).
//!
//! Every command reads the file, changes one entry, checks the result as a router would, and replaces the file as a whole. Comments and the
//! order of entries stay. A secret is printed once and is not stored. The file contains its SHA-256.

use std::{
    fs::{self, File},
    io::ErrorKind,
    num::NonZeroU32,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use keys::{Digest, Key, KeyTable, Role, Secret};
use serde_json::{Value as Json, json};
use telemetry::clock::{self, format_rfc3339};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use crate::{
    cluster::files::{self, Audience},
    context::Context,
    output,
};

/// The file's name in the folder of a cluster.
const FILE: &str = "keys.toml";
/// How long clients may use the old secret after a rotation.
const OVERLAP_S: u64 = 24 * 60 * 60;

#[derive(clap::Subcommand)]
pub enum KeyCommand {
    /// Add a key, and print its secret once
    Create(KeyCreateArgs),
    /// List the keys, without anything secret
    List(KeyListArgs),
    /// Give a key a new secret; the old one remains valid for a while
    Rotate(KeyRotateArgs),
    /// Remove a key, or only its older secret
    Revoke(KeyRevokeArgs),
}

#[derive(clap::Args)]
pub struct KeyFileArgs {
    /// The file of keys, which routers watch [default: keys.toml in the data folder]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct KeyCreateArgs {
    /// Name of the key, for people and for the log: A-Z a-z 0-9 . _ -
    name: String,
    /// read: every GET; write: move money, open accounts without an overdraft; admin: open accounts with an overdraft, change accounts. Every
    /// role is limited to the prefixes. May be repeated
    #[arg(long, required = true, value_name = "ROLE", value_delimiter = ',', value_parser = ["read", "write", "admin"])]
    role: Vec<String>,
    /// Prefix of the ids of accounts that the key may debit, open and change; '*' is every account. May be repeated
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    debit: Vec<String>,
    /// Prefix of accounts that the key may credit. May be repeated
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    credit: Vec<String>,
    /// Prefix of accounts that the key may read; opening or changing an account needs this and --debit. May be repeated
    #[arg(long, value_name = "PREFIX", value_delimiter = ',')]
    read: Vec<String>,
    /// Requests a second that each router takes from this key
    #[arg(long, value_name = "N")]
    requests_per_second: Option<NonZeroU32>,
    /// Requests that may come at once [default: one second's worth]
    #[arg(long, value_name = "N", requires = "requests_per_second")]
    burst: Option<NonZeroU32>,
    /// Time at which the key expires, such as 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    #[command(flatten)]
    file: KeyFileArgs,
}

#[derive(clap::Args)]
pub struct KeyListArgs {
    #[command(flatten)]
    file: KeyFileArgs,
}

#[derive(clap::Args)]
pub struct KeyRotateArgs {
    name: String,
    /// Seconds for which the old secret remains valid; 0 ends it at once
    #[arg(long, value_name = "SECONDS", default_value_t = OVERLAP_S)]
    overlap: u64,
    #[command(flatten)]
    file: KeyFileArgs,
}

#[derive(clap::Args)]
pub struct KeyRevokeArgs {
    name: String,
    /// Remove only the older of two secrets
    #[arg(long)]
    old_secret: bool,
    #[command(flatten)]
    file: KeyFileArgs,
}

pub async fn run(command: KeyCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        KeyCommand::Create(args) => create(args, context),
        KeyCommand::List(args) => list(&args, context),
        KeyCommand::Rotate(args) => rotate(args, context),
        KeyCommand::Revoke(args) => revoke(&args, context),
    }
}

fn create(args: KeyCreateArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let mut file = Entries::read(&args.file, context)?;
    ensure!(
        file.find(&args.name).is_none(),
        "{} has a key {} already; `shardctl key rotate` gives it a new secret",
        file.path.display(),
        args.name
    );
    let secret = Secret::generate().context("the system has no source of randomness")?;
    let mut entry = Table::new();
    entry["name"] = toml_edit::value(&args.name);
    entry["roles"] = texts(&args.role);
    for (list, prefixes) in [("debit", &args.debit), ("credit", &args.credit), ("read", &args.read)] {
        if !prefixes.is_empty() {
            entry[list] = texts(prefixes);
        }
    }
    for (name, number) in [("requests_per_second", args.requests_per_second), ("burst", args.burst)] {
        if let Some(number) = number {
            entry[name] = toml_edit::value(i64::from(number.get()));
        }
    }
    if let Some(expires_at) = &args.expires_at {
        entry["expires_at"] = toml_edit::value(expires_at);
    }
    entry["secrets"] = toml_edit::value(Array::from_iter([stored(&secret, None)]));
    file.entries()?.push(entry);
    let key = file.check()?.find(secret.text(), clock::now_us()).cloned();
    let key = key.context("--expires-at is in the past; nothing was written")?;
    file.write()?;
    for note in notes(&key) {
        output::note(&note);
    }
    show_secret(&file, &args.name, &secret, context)
}

/// Notes about combinations that the operator may not have intended.
fn notes(key: &Key) -> Vec<String> {
    let mut notes = Vec::new();
    for (list, prefixes) in [("debit", &key.debit), ("credit", &key.credit), ("read", &key.read)] {
        for prefix in prefixes.texts() {
            if !prefix.starts_with('=') && prefix.ends_with(|last: char| last.is_ascii_alphanumeric()) {
                notes.push(format!("note: the {list} prefix {prefix} is also that of accounts such as {prefix}0; end it with a separator if it is meant for one tenant, or write ={prefix} for the one account"));
            }
        }
    }
    if key.roles.contain(Role::Write) && key.debit.is_empty() {
        notes.push("note: without a debit prefix, the role write moves nothing".to_owned());
    }
    if key.roles.contain(Role::Read) && key.read.is_empty() {
        notes.push("note: without a read prefix, the role read shows nothing".to_owned());
    }
    notes
}

fn list(args: &KeyListArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let file = Entries::read(&args.file, context)?;
    let (table, now_us) = (file.check()?, clock::now_us());
    let views: Vec<Json> = table.keys().iter().map(|key| view(key, now_us)).collect();
    if context.json {
        output::json(&views)?;
        return Ok(ExitCode::SUCCESS);
    }
    let words = |value: &Json| match value {
        Json::Array(items) => items.iter().map(output::cell).collect::<Vec<_>>().join(" "),
        other => output::cell(other),
    };
    let columns =
        ["name", "state", "roles", "debit", "credit", "read", "requests_per_second", "secrets", "expires_at"];
    let rows: Vec<_> = views.iter().map(|view| columns.map(|column| words(&view[column]))).collect();
    output::table(columns, &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn view(key: &Key, now_us: i64) -> Json {
    let texts = |prefixes: &keys::Prefixes| prefixes.texts().collect::<Vec<_>>();
    let is_past = |expires_at_us: Option<i64>| expires_at_us.is_some_and(|expires_at_us| expires_at_us <= now_us);
    let good = key.secrets.iter().filter(|secret| !is_past(secret.expires_at_us)).count();
    json!({
        "name": key.name.as_str(),
        "state": if is_past(key.expires_at_us) || good == 0 { "expired" } else { "active" },
        "roles": key.roles.names(),
        "debit": texts(&key.debit),
        "credit": texts(&key.credit),
        "read": texts(&key.read),
        "requests_per_second": key.rate.map(|rate| rate.requests_per_second),
        "burst": key.rate.map(|rate| rate.burst),
        "secrets": good,
        "expires_at": key.expires_at_us.map(format_rfc3339),
    })
}

fn rotate(args: KeyRotateArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let mut file = Entries::read(&args.file, context)?;
    let secret = Secret::generate().context("the system has no source of randomness")?;
    let (now_us, overlap) = (clock::now_us(), Duration::from_secs(args.overlap));
    let until_us = now_us.saturating_add(i64::try_from(overlap.as_micros()).unwrap_or(i64::MAX));
    let secrets = file.secrets_of(&args.name)?;
    // Clients use the secret that expires last. It expires now or after the overlap, but never later than before.
    let newest = secrets.iter().filter_map(Value::as_inline_table).max_by_key(|secret| end_of(secret)).cloned();
    let ends_us = newest.as_ref().map_or(now_us, end_of).min(until_us);
    secrets.clear();
    if let Some(mut newest) = newest.filter(|_| ends_us > now_us) {
        newest.insert("expires_at", format_rfc3339(ends_us).into());
        secrets.push(newest);
    }
    secrets.push(stored(&secret, None));
    file.write()?;
    output::note(&if ends_us > now_us {
        format!("the former secret remains valid until {}", format_rfc3339(ends_us))
    } else {
        "the former secret is no longer valid".to_owned()
    });
    show_secret(&file, &args.name, &secret, context)
}

fn revoke(args: &KeyRevokeArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let mut file = Entries::read(&args.file, context)?;
    if args.old_secret {
        let secrets = file.secrets_of(&args.name)?;
        ensure!(
            secrets.len() > 1,
            "the key {} has only one secret; without --old-secret, the key is removed",
            args.name
        );
        let ends = secrets.iter().map(|secret| secret.as_inline_table().map_or(i64::MIN, end_of));
        if let Some((oldest, _)) = ends.enumerate().min_by_key(|(_, end)| *end) {
            secrets.remove(oldest);
        }
    } else {
        let index = file.find(&args.name).with_context(|| file.has_no(&args.name))?;
        file.entries()?.remove(index);
    }
    file.write()?;
    let what = if args.old_secret { "the older secret of the key" } else { "the key" };
    if context.json {
        output::json(&json!({"name": args.name, "revoked": if args.old_secret { "old_secret" } else { "key" }}))?;
    } else {
        output::note(&format!(
            "{what} {} is revoked: each router that watches {} refuses it within four seconds",
            args.name,
            file.path.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn show_secret(file: &Entries, name: &str, secret: &Secret, context: &Context) -> anyhow::Result<ExitCode> {
    if context.json {
        output::json(&json!({"name": name, "secret": secret.text(), "file": file.path.display().to_string()}))?;
    } else {
        output::note(&format!(
            "the secret of {name}, which is shown only now; {} has its SHA-256:",
            file.path.display()
        ));
        output::data(secret.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The time at which a secret expires, in microseconds since 1970. A secret without a time never expires.
fn end_of(secret: &InlineTable) -> i64 {
    secret.get("expires_at").and_then(Value::as_str).and_then(clock::parse_rfc3339).unwrap_or(i64::MAX)
}

fn texts(texts: &[String]) -> Item {
    toml_edit::value(Array::from_iter(texts.iter().map(String::as_str)))
}

fn stored(secret: &Secret, expires_at: Option<&str>) -> InlineTable {
    let mut stored = InlineTable::new();
    stored.insert("sha256", Digest::of(secret.text()).to_string().into());
    if let Some(expires_at) = expires_at {
        stored.insert("expires_at", expires_at.into());
    }
    stored
}

/// The file while it is edited.
struct Entries {
    path: PathBuf,
    document: DocumentMut,
    /// Locks the folder until the command ends. Of two commands at once, the later one would undo the other.
    _lock: File,
}

impl Entries {
    /// Reads the file. A file that does not exist has no key.
    fn read(file: &KeyFileArgs, context: &Context) -> anyhow::Result<Self> {
        let path = file.file.clone().unwrap_or_else(|| context.data_dir.join(FILE));
        let folder = files::folder_of(&path)?;
        let lock = File::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let document = text.parse().with_context(|| path.display().to_string())?;
        let entries = Self { path, document, _lock: lock };
        entries.check()?;
        Ok(entries)
    }

    fn check(&self) -> anyhow::Result<KeyTable> {
        KeyTable::parse(&self.document.to_string()).with_context(|| self.path.display().to_string())
    }

    /// Replaces the file, unless a router would refuse it.
    fn write(&self) -> anyhow::Result<KeyTable> {
        let table = self.check()?;
        files::replace(&self.path, &self.document.to_string(), Audience::Owner)?;
        Ok(table)
    }

    fn entries(&mut self) -> anyhow::Result<&mut ArrayOfTables> {
        let item = self.document.entry("key").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        item.as_array_of_tables_mut().context("`key` is written as a list in one line; write each key as a [[key]]")
    }

    fn find(&self, name: &str) -> Option<usize> {
        let entries = self.document.get("key")?.as_array_of_tables()?;
        entries.iter().position(|entry| entry.get("name").and_then(Item::as_str) == Some(name))
    }

    fn secrets_of(&mut self, name: &str) -> anyhow::Result<&mut Array> {
        let missing = self.has_no(name);
        let Some(index) = self.find(name) else { bail!(missing) };
        let entry = self.entries()?.get_mut(index).context(missing)?;
        entry.get_mut("secrets").and_then(Item::as_array_mut).context("`secrets` is no list")
    }

    fn has_no(&self, name: &str) -> String {
        format!("{} has no key {name}; `shardctl key list` shows those that it has", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> (tempfile::TempDir, Context) {
        let folder = tempfile::tempdir().unwrap();
        let context = Context { data_dir: folder.path().to_owned(), json: false };
        (folder, context)
    }

    fn new_key(name: &str) -> KeyCreateArgs {
        KeyCreateArgs {
            name: name.to_owned(),
            role: vec!["read".to_owned()],
            debit: Vec::new(),
            credit: Vec::new(),
            read: vec!["{shop}:".to_owned()],
            requests_per_second: None,
            burst: None,
            expires_at: None,
            file: KeyFileArgs { file: None },
        }
    }

    fn text(context: &Context) -> String {
        fs::read_to_string(context.data_dir.join(FILE)).unwrap()
    }

    #[test]
    fn a_key_is_added_rotated_and_revoked_and_comments_stay() {
        let (_folder, context) = context();
        create(new_key("shop"), &context).unwrap();
        fs::write(context.data_dir.join(FILE), format!("# Ours.\n{}", text(&context))).unwrap();
        create(new_key("other"), &context).unwrap();
        let twice = create(new_key("shop"), &context).unwrap_err();
        assert!(twice.to_string().contains("rotate"), "{twice}");
        let before = text(&context);
        assert!(before.starts_with("# Ours.\n"), "{before}");

        let file = || KeyFileArgs { file: None };
        rotate(KeyRotateArgs { name: "shop".to_owned(), overlap: 60, file: file() }, &context).unwrap();
        let secrets = |context: &Context, name: &str| {
            let table = KeyTable::parse(&text(context)).unwrap();
            table
                .keys()
                .iter()
                .find(|key| key.name.as_str() == name)
                .map(|key| key.secrets.clone())
                .unwrap_or_default()
        };
        let both = secrets(&context, "shop");
        assert!(both.len() == 2 && both[0].expires_at_us.is_some() && both[1].expires_at_us.is_none());
        // A rotation does not revive a secret that has expired.
        let end = both[0].expires_at_us.map(format_rfc3339).unwrap();
        let ended = text(&context).replace(&end, "2020-01-01T00:00:00.000000Z");
        fs::write(context.data_dir.join(FILE), ended).unwrap();
        // A second rotation ends the oldest secret.
        rotate(KeyRotateArgs { name: "shop".to_owned(), overlap: 60, file: file() }, &context).unwrap();
        assert_eq!(secrets(&context, "shop")[0].digest, both[1].digest);
        revoke(&KeyRevokeArgs { name: "shop".to_owned(), old_secret: true, file: file() }, &context).unwrap();
        assert_eq!(secrets(&context, "shop").len(), 1);
        assert!(
            revoke(&KeyRevokeArgs { name: "shop".to_owned(), old_secret: true, file: file() }, &context).is_err()
        );
        rotate(KeyRotateArgs { name: "shop".to_owned(), overlap: 0, file: file() }, &context).unwrap();
        assert_eq!(secrets(&context, "shop").len(), 1);
        revoke(&KeyRevokeArgs { name: "shop".to_owned(), old_secret: false, file: file() }, &context).unwrap();
        assert!(secrets(&context, "shop").is_empty() && secrets(&context, "other").len() == 1);
        let missing = revoke(&KeyRevokeArgs { name: "shop".to_owned(), old_secret: false, file: file() }, &context)
            .unwrap_err();
        assert!(missing.to_string().contains("key list"), "{missing}");
    }

    #[test]
    fn what_a_router_would_refuse_is_not_written() {
        let (_folder, context) = context();
        create(new_key("good"), &context).unwrap();
        let before = text(&context);
        for wrong in [
            KeyCreateArgs { name: "a b".to_owned(), ..new_key("x") },
            KeyCreateArgs { expires_at: Some("tomorrow".to_owned()), ..new_key("x") },
            KeyCreateArgs { read: vec!["a b".to_owned()], ..new_key("x") },
        ] {
            assert!(create(wrong, &context).is_err());
            assert_eq!(text(&context), before);
        }
        fs::write(context.data_dir.join(FILE), "[[key]]\nname = 1\n").unwrap();
        assert!(
            list(&KeyListArgs { file: KeyFileArgs { file: None } }, &context).unwrap_err().to_string().contains(FILE)
        );
    }

    #[test]
    fn prefixes_that_several_tenants_share_are_noted() {
        let (_folder, context) = context();
        create(KeyCreateArgs { read: vec!["shop4".to_owned(), "{shop}:".to_owned()], ..new_key("shop") }, &context)
            .unwrap();
        let table = KeyTable::parse(&text(&context)).unwrap();
        let notes = notes(&table.keys()[0]);
        assert!(notes.len() == 1 && notes[0].contains("shop40"), "{notes:?}");
    }
}
