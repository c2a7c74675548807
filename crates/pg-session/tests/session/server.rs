//! The PostgreSQL server of these tests. One server serves every test of the process.
//!
//! The crate `testkit` starts servers too, but it brings half the workspace with it, and its servers have neither
//! passwords, nor TLS, nor Unix sockets.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use pg_session::{ConnectOptions, Session};

/// Names the folder of PostgreSQL's programs, as for `testkit` and `shardctl`.
const PG_BIN_VARIABLE: &str = "SHARDLEDGER_PG_BIN";
const PG_BIN_FOLDERS: &str = "/usr/lib/postgresql";
/// Users that run PostgreSQL for root, in order of preference.
const USERS: [&str; 2] = ["postgres", "nobody"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the end of the pipe that only the test process holds, then stops the server and removes its folder. This
/// happens however the tests end. `$1` is the folder, `$2` is `pg_ctl`.
const CLEAN_UP: &str = r#"cat >/dev/null; "$2" stop -D "$1/data" -m immediate -w >/dev/null 2>&1; rm -rf -- "$1""#;

pub const PASSWORD: &str = "correct horse";

const HBA: &str = "
local all all trust
host all by_scram 127.0.0.1/32 scram-sha-256
host all by_md5 127.0.0.1/32 md5
host all by_password 127.0.0.1/32 password
hostssl all only_tls 127.0.0.1/32 trust
host all only_tls 127.0.0.1/32 reject
host all all 127.0.0.1/32 trust
";

pub struct Server {
    pub folder: PathBuf,
    pub port: u16,
    /// Whether the server and this machine can do TLS.
    pub tls: bool,
    /// The guard ends when this process does.
    _guard: Child,
}

pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start().expect("PostgreSQL starts"))
}

/// A session of the superuser.
pub async fn session() -> Session {
    server().connect("postgres", "").await.expect("the superuser connects")
}

impl Server {
    /// Connects over TCP without TLS unless `parameters` says otherwise.
    pub async fn connect(&self, login: &str, parameters: &str) -> Result<Session, pg_session::Error> {
        let mode = if parameters.contains("sslmode") { "" } else { "&sslmode=disable" };
        let url = format!("postgres://{login}@127.0.0.1:{}/postgres?{parameters}{mode}", self.port);
        Session::connect(
            &ConnectOptions::from_url(&url).expect("the URL is complete").application_name("pg-session test"),
        )
        .await
    }

    fn start() -> anyhow::Result<Self> {
        let programs = programs()?;
        let user = service_user()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let folder = std::env::temp_dir().join(format!("pg-session-{}", std::process::id()));
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        if let Some((uid, gid)) = user {
            chown(&folder, Some(uid), Some(gid))?;
        }
        let as_user = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(&folder).env("LC_ALL", "C").stdin(Stdio::null());
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let guard = as_user(Path::new("sh"))
            .args(["-c", CLEAN_UP, "guard"])
            .args([folder.as_os_str(), programs.join("pg_ctl").as_os_str()])
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()?;
        let data = folder.join("data");
        let mut initdb = as_user(&programs.join("initdb"));
        initdb.arg("-D").arg(&data).args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]);
        successful(initdb.arg("--no-sync"))?;
        let library =
            successful(as_user(&programs.join("postgres")).arg("-D").arg(&data).args(["-C", "ssl_library"]))?;
        let tls = library.trim() == "OpenSSL" && certificates(&as_user)?;
        let mut settings = fs::OpenOptions::new().append(true).open(data.join("postgresql.conf"))?;
        writeln!(
            settings,
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{0}'\nshared_buffers = 32MB\n\
             fsync = off",
            folder.display()
        )?;
        if tls {
            writeln!(
                settings,
                "ssl = on\nssl_cert_file = '{0}/server.pem'\nssl_key_file = '{0}/server.key'",
                folder.display()
            )?;
        }
        fs::write(data.join("pg_hba.conf"), HBA)?;
        let mut start = as_user(&programs.join("pg_ctl"));
        start.arg("start").arg("-D").arg(&data).arg("-l").arg(folder.join("log")).args(["-w", "-t", "60"]);
        // The server inherits these, and a pipe would stay open as long as it runs.
        let started = start.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(started.success(), "{}", fs::read_to_string(folder.join("log")).unwrap_or_default());
        let server = Self { folder, port, tls, _guard: guard };
        server.create_roles()?;
        Ok(server)
    }

    fn create_roles(&self) -> anyhow::Result<()> {
        let script = format!(
            "SET password_encryption = 'scram-sha-256'; CREATE ROLE by_scram LOGIN PASSWORD '{PASSWORD}'; \
             CREATE ROLE by_password LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE only_tls LOGIN; \
             SET password_encryption = 'md5'; CREATE ROLE by_md5 LOGIN PASSWORD '{PASSWORD}'"
        );
        // The first test calls this within its own runtime, which cannot wait for another one.
        let url = format!("postgres:///postgres?user=postgres&host={}&port={}", self.folder.display(), self.port);
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let options = ConnectOptions::from_url(&url)?;
                let begun = Instant::now();
                let mut session = loop {
                    match Session::connect(&options).await {
                        Ok(session) => break session,
                        Err(error) if begun.elapsed() > PATIENCE => return Err(error.into()),
                        Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                    }
                };
                session.run(&script, None).await?;
                session.close().await;
                Ok(())
            })
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that creates the roles panicked"))?
    }
}

/// Makes an authority, and a certificate of it for the name `localhost`. Returns false where OpenSSL is not installed.
fn certificates(as_user: &impl Fn(&Path) -> Command) -> anyhow::Result<bool> {
    let openssl = |arguments: &str| as_user(Path::new("openssl")).args(arguments.split(' ')).output();
    let key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    let own = "-keyout server.key -out server.pem -subj /CN=server -addext subjectAltName=DNS:localhost \
               -addext basicConstraints=critical,CA:FALSE -CA ca.pem -CAkey ca.key";
    for arguments in [format!("{key} -keyout ca.key -out ca.pem -subj /CN=authority"), format!("{key} {own}")] {
        match openssl(&arguments) {
            Ok(output) if output.status.success() => {}
            Ok(output) => bail!("openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

fn programs() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os(PG_BIN_VARIABLE) {
        return Ok(folder.into());
    }
    let installed = fs::read_dir(PG_BIN_FOLDERS).into_iter().flatten().flatten();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = installed.map(|version| version.path().join("bin")).chain(std::env::split_paths(&in_path));
    folders
        .filter(|folder| folder.join("initdb").is_file())
        .max()
        .with_context(|| format!("found no PostgreSQL: name the folder of its programs with {PG_BIN_VARIABLE}"))
}

/// User and group that run PostgreSQL, which refuses to run as root. `None` is the user that runs the tests.
fn service_user() -> anyhow::Result<Option<(u32, u32)>> {
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(None);
    }
    for name in USERS {
        let id = |which: &str| successful(Command::new("id").args([which, name]));
        if let (Ok(uid), Ok(gid)) = (id("-u"), id("-g")) {
            return Ok(Some((uid.trim().parse()?, gid.trim().parse()?)));
        }
    }
    bail!("PostgreSQL refuses to run as root, and this machine has none of the users {}", USERS.join(", "))
}

fn successful(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
