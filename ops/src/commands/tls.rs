//! `shardctl tls …`: a private authority for a cluster, and the certificates that it issues (`docs/operations/tls.md`).

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::value_parser;
use serde_json::json;

use crate::{
    authority::{
        self, AUTHORITY, AUTHORITY_DAYS, Authority, CERTIFICATE_DAYS, DescribedCertificate, KeyFileState,
        LOCAL_HOSTS, Purpose,
    },
    context::Context,
    exit, output,
};

/// The longest accepted validity, in days.
const MOST_DAYS: i64 = 36_500;

#[derive(clap::Subcommand)]
pub enum TlsCommand {
    /// Make an authority, and certificates for routers (https, router), nodes (node) and shardctl (operator)
    Init(TlsInitArgs),
    /// Make a further certificate, for example for another machine
    Issue(TlsIssueArgs),
    /// List the certificates with their names and when they expire; exits with 3 if a certificate has expired, is of another authority, or
    /// does not match its key
    Show(TlsShowArgs),
    /// Replace certificates that expire soon or do not match their keys; the names stay, and the keys are new
    Renew(TlsRenewArgs),
}

#[derive(clap::Args)]
pub struct TlsFolderArgs {
    /// The folder of the authority [default: tls in the data folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Validity {
    /// Days for which certificates are valid
    #[arg(long, value_name = "DAYS", default_value_t = CERTIFICATE_DAYS, value_parser = value_parser!(u32).range(1..=MOST_DAYS))]
    days: u32,
}

#[derive(clap::Args)]
pub struct TlsInitArgs {
    /// Host at which clients call a router: a DNS name or an address. May be repeated [default: localhost, 127.0.0.1, ::1]
    #[arg(long, value_name = "HOST", value_delimiter = ',', value_parser = authority::host)]
    router: Vec<String>,
    /// Host of a node, as in the shard map. May be repeated [default: localhost, 127.0.0.1, ::1]
    #[arg(long, value_name = "HOST", value_delimiter = ',', value_parser = authority::host)]
    node: Vec<String>,
    /// Days for which the authority is valid
    #[arg(long, value_name = "DAYS", default_value_t = AUTHORITY_DAYS, value_parser = value_parser!(u32).range(1..=MOST_DAYS))]
    authority_days: u32,
    #[command(flatten)]
    validity: Validity,
    /// Print what would be made, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: TlsFolderArgs,
}

#[derive(clap::Args)]
pub struct TlsIssueArgs {
    /// Name of the certificate; its files are NAME.pem and NAME.key
    name: String,
    /// Use of the certificate
    #[arg(long = "for", value_enum, value_name = "PURPOSE")]
    purpose: Purpose,
    /// Host of the listener: a DNS name or an address. May be repeated
    #[arg(long, value_name = "HOST", value_delimiter = ',', value_parser = authority::host)]
    host: Vec<String>,
    #[command(flatten)]
    validity: Validity,
    /// Print what would be made, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: TlsFolderArgs,
}

#[derive(clap::Args)]
pub struct TlsShowArgs {
    #[command(flatten)]
    folder: TlsFolderArgs,
}

#[derive(clap::Args)]
pub struct TlsRenewArgs {
    /// Certificates to renew [default: those that expire soon, and those whose renewal was interrupted]
    name: Vec<String>,
    /// Without names, renew the certificates that expire within this many days
    #[arg(long, value_name = "DAYS", default_value_t = 30, conflicts_with_all = ["name", "all"])]
    within_days: u32,
    /// Renew every certificate; the authority stays
    #[arg(long, conflicts_with = "name")]
    all: bool,
    #[command(flatten)]
    validity: Validity,
    /// Print what would be renewed, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    folder: TlsFolderArgs,
}

pub async fn run(command: TlsCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        TlsCommand::Init(args) => init(args, context),
        TlsCommand::Issue(args) => issue(&args, context),
        TlsCommand::Show(args) => show(&args, context),
        TlsCommand::Renew(args) => renew(args, context),
    }
}

impl TlsFolderArgs {
    fn path(&self, context: &Context) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| context.data_dir.join("tls"))
    }
}

fn init(args: TlsInitArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let folder = args.folder.path(context);
    let local = || LOCAL_HOSTS.map(str::to_owned).to_vec();
    let routers = if args.router.is_empty() { local() } else { args.router };
    let nodes = if args.node.is_empty() { local() } else { args.node };
    ensure!(
        !Authority::exists(&folder),
        "{} has an authority already: `shardctl tls issue` makes further certificates, and `shardctl tls renew` new ones in the place of those that expire",
        folder.display()
    );
    let planned = Purpose::ALL
        .map(|purpose| (purpose.name(), purpose.subject(if purpose == Purpose::Https { &routers } else { &nodes })));
    if args.dry_run {
        let names: Vec<&str> = planned.iter().map(|(name, _)| *name).collect();
        let sentence =
            format!("would make an authority in {}, and the certificates {}", folder.display(), names.join(", "));
        let certificates: Vec<_> =
            planned.iter().map(|(name, subject)| json!({"name": name, "names": subject.names})).collect();
        output::would(context.json, &sentence, json!({"folder": folder, "certificates": certificates}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let authority = Authority::create(&folder, args.authority_days)?;
    for (name, subject) in &planned {
        authority.issue(name, subject, args.validity.days)?;
    }
    print(&folder, &authority::issued(&folder)?, context)?;
    output::note(&format!(
        "{} signs certificates: keep it where only this command needs it, not on the machines of routers and nodes",
        authority::key_of(&folder, AUTHORITY).display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn issue(args: &TlsIssueArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let folder = args.folder.path(context);
    let subject = args.purpose.subject(&args.host);
    ensure!(!subject.serves || !args.host.is_empty(), "name the hosts of the listener with --host");
    ensure!(subject.serves || args.host.is_empty(), "--host has no meaning for a certificate that only makes calls");
    ensure!(
        !authority::certificate_of(&folder, &args.name).exists(),
        "{} has a certificate {} already; `shardctl tls renew {}` makes a new one in its place",
        folder.display(),
        args.name,
        args.name
    );
    let authority = Authority::open(&folder)?;
    if args.dry_run {
        let sentence = format!("would make the certificate {} for {}", args.name, subject.names.join(", "));
        output::would(context.json, &sentence, json!({"folder": folder, "name": args.name, "names": subject.names}))?;
        return Ok(ExitCode::SUCCESS);
    }
    authority.issue(&args.name, &subject, args.validity.days)?;
    print(&folder, std::slice::from_ref(&args.name), context)?;
    Ok(ExitCode::SUCCESS)
}

fn show(args: &TlsShowArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let folder = args.folder.path(context);
    let shown = print(&folder, &authority::issued(&folder)?, context)?;
    let bad = shown.iter().any(|it| it.expires_in_days < 0 || !it.trusted || it.key == KeyFileState::Differs);
    Ok(if bad { exit::violation() } else { ExitCode::SUCCESS })
}

fn renew(args: TlsRenewArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let folder = args.folder.path(context);
    let authority = Authority::open(&folder)?;
    let mut due = Vec::new();
    if args.name.is_empty() {
        for name in authority::issued(&folder)?.iter().filter(|name| *name != AUTHORITY) {
            let found = authority::describe(&folder, name)?;
            if args.all || found.expires_in_days < i64::from(args.within_days) || found.key.needs_renewal() {
                due.push(found);
            }
        }
    } else {
        for name in &args.name {
            ensure!(
                name != AUTHORITY,
                "an authority is not renewed: `docs/operations/tls.md` says how to go over to a new one"
            );
            due.push(authority::describe(&folder, name)?);
        }
    }
    let names: Vec<String> = due.iter().map(|it| it.name.clone()).collect();
    if args.dry_run {
        let sentence = match names.len() {
            0 => "nothing expires soon".to_owned(),
            _ => format!("would renew {}", names.join(", ")),
        };
        output::would(context.json, &sentence, json!({"folder": folder, "certificates": due}))?;
        return Ok(ExitCode::SUCCESS);
    }
    for it in &due {
        authority.issue(&it.name, &it.subject, args.validity.days).with_context(|| it.name.clone())?;
    }
    if names.is_empty() && !context.json {
        output::note("nothing expires soon; --all renews every certificate");
    } else {
        print(&folder, &names, context)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints these certificates of the folder.
fn print(folder: &std::path::Path, names: &[String], context: &Context) -> anyhow::Result<Vec<DescribedCertificate>> {
    let shown = names.iter().map(|name| authority::describe(folder, name)).collect::<anyhow::Result<Vec<_>>>()?;
    if context.json {
        output::json(&json!({"folder": folder, "certificates": shown}))?;
        return Ok(shown);
    }
    let rows: Vec<[String; 5]> = shown
        .iter()
        .map(|it| {
            let usage = match (it.name.as_str(), it.subject.serves, it.subject.calls) {
                (AUTHORITY, ..) => "signs",
                (_, true, true) => "listens, calls",
                (_, true, false) => "listens",
                (_, false, true) => "calls",
                (_, false, false) => "-",
            };
            let names = if it.subject.names.is_empty() { "-".to_owned() } else { it.subject.names.join(" ") };
            let days = it.expires_in_days;
            let state = match days {
                _ if !it.trusted => "of another authority".to_owned(),
                ..0 => "expired".to_owned(),
                _ if it.key == KeyFileState::Differs => "does not match its key".to_owned(),
                _ if it.key == KeyFileState::Unfinished => "renewal was cut off".to_owned(),
                _ => output::count(usize::try_from(days).unwrap_or(0), "day"),
            };
            // The fraction of a second is left out.
            let expires = it.expires_at.get(..19).unwrap_or(&it.expires_at).to_owned() + "Z";
            [it.name.clone(), usage.to_owned(), expires, state, names]
        })
        .collect();
    output::table(["certificate", "use", "expires", "left", "names"], &rows)?;
    Ok(shown)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn context() -> (tempfile::TempDir, Context) {
        let folder = tempfile::tempdir().unwrap();
        let context = Context { data_dir: folder.path().to_owned(), json: false };
        (folder, context)
    }

    fn new(dry_run: bool) -> TlsInitArgs {
        TlsInitArgs {
            router: vec!["ledger.example".to_owned()],
            node: Vec::new(),
            authority_days: AUTHORITY_DAYS,
            validity: Validity { days: 10 },
            dry_run,
            folder: TlsFolderArgs { dir: None },
        }
    }

    fn renewal(name: &[&str], within_days: u32, dry_run: bool) -> TlsRenewArgs {
        TlsRenewArgs {
            name: name.iter().map(|name| (*name).to_owned()).collect(),
            within_days,
            all: false,
            validity: Validity { days: 90 },
            dry_run,
            folder: TlsFolderArgs { dir: None },
        }
    }

    #[test]
    fn a_certificate_that_does_not_match_its_key_is_shown_and_renewed() {
        let (_folder, context) = context();
        init(new(false), &context).unwrap();
        let folder = context.data_dir.join("tls");
        let key = |name: &str| authority::describe(&folder, name).unwrap().key;
        // A crash of an earlier version left the new key beside the former certificate.
        fs::copy(folder.join("node.key"), folder.join("https.key")).unwrap();
        // A crash of this version leaves both keys in the key file.
        let keys = fs::read_to_string(folder.join("node.key")).unwrap()
            + &fs::read_to_string(folder.join("https.key")).unwrap();
        fs::write(folder.join("node.key"), keys).unwrap();
        assert_eq!(
            (key("https"), key("node"), key("ca")),
            (KeyFileState::Differs, KeyFileState::Unfinished, KeyFileState::Matches)
        );
        let show = || show(&TlsShowArgs { folder: TlsFolderArgs { dir: None } }, &context).unwrap();
        assert_eq!(show(), exit::violation());

        let (router, node) =
            (fs::read(folder.join("router.pem")).unwrap(), fs::read(folder.join("node.pem")).unwrap());
        renew(renewal(&[], 5, false), &context).unwrap();
        assert_eq!((key("https"), key("node")), (KeyFileState::Matches, KeyFileState::Matches));
        assert_eq!(show(), ExitCode::SUCCESS);
        assert_eq!(fs::read(folder.join("router.pem")).unwrap(), router, "what matches its key stays");
        assert_ne!(fs::read(folder.join("node.pem")).unwrap(), node);
    }

    #[test]
    fn what_expires_soon_is_renewed_with_its_names_and_the_authority_stays() {
        let (_folder, context) = context();
        init(new(true), &context).unwrap();
        let folder = context.data_dir.join("tls");
        assert!(!folder.exists(), "a dry run makes nothing");
        init(new(false), &context).unwrap();
        let again = init(new(false), &context).unwrap_err();
        assert!(again.to_string().contains("tls renew"), "{again}");
        let (authority, before) =
            (fs::read(folder.join("ca.pem")).unwrap(), fs::read(folder.join("https.key")).unwrap());
        let days = |name: &str| authority::describe(&folder, name).unwrap().expires_in_days;

        renew(renewal(&[], 5, false), &context).unwrap();
        renew(renewal(&[], 30, true), &context).unwrap();
        // The number is one day less once the second of the issue has passed.
        assert!((9..=10).contains(&days("https")), "nothing expires within five days, and a dry run renews nothing");
        renew(renewal(&["https"], 30, false), &context).unwrap();
        assert!((89..=90).contains(&days("https")) && (9..=10).contains(&days("node")));
        assert_ne!(fs::read(folder.join("https.key")).unwrap(), before, "the key is new");
        renew(renewal(&[], 30, false), &context).unwrap();
        assert!((89..=90).contains(&days("node")));
        let https = authority::describe(&folder, "https").unwrap();
        assert!(https.trusted && https.subject.names == ["ledger.example"], "{https:?}");
        assert_eq!(fs::read(folder.join("ca.pem")).unwrap(), authority);
        assert!(renew(renewal(&["ca"], 30, false), &context).is_err());
        assert!(renew(renewal(&["absent"], 30, false), &context).unwrap_err().to_string().contains("absent"));
    }
}
