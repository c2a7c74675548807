//! Starts the fixtures that the tests of one run share (`testkit::shared`). `cargo nextest` runs this program as its setup scripts.
//!
//! `shared-fixture cluster` starts a second process of this program, which starts the cluster and prints its folder. The first process
//! tells the runner the folder and ends. The second process lives as long as the runner. Nextest has no step after the tests, so the second
//! process polls whether the runner lives. It takes the cluster down when the runner has ended in any way. If the second process is killed,
//! the guards of `testkit::leash` take the cluster down.

use std::{
    env,
    fs::{self, File},
    io::{Read, Seek, Write},
    os::unix::process::parent_id,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use testkit::{
    cluster::Cluster,
    node::Folder,
    postgres::Postgres,
    process::Process,
    shared::{Fixture, ROUTERS, SHARDS},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::timeout,
};

/// The variable that names the file into which a setup script writes variables for the tests, one on each line.
const RUNNER_FILE: &str = "NEXTEST_ENV";
/// The first argument of the second process.
const HOLD: &str = "hold";
/// The time within which a fixture must start. It is less than the time limit that `.config/nextest.toml` gives a setup script, so that the
/// script can report why it failed.
const STARTS_WITHIN: Duration = Duration::from_secs(150);
/// The pause between two looks at the runner.
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [HOLD, fixture, runner] => hold(fixture.parse()?, runner.parse()?).await,
        [fixture] => set_up(fixture.parse()?).await,
        _ => bail!("usage: shared-fixture cluster|quiet-cluster|postgresql"),
    }
}

/// Runs as the setup script.
async fn set_up(fixture: Fixture) -> anyhow::Result<()> {
    let variables = env::var_os(RUNNER_FILE)
        .with_context(|| format!("{RUNNER_FILE} is not set: this program is a setup script of cargo nextest"))?;
    let mut log = unnamed_file()?;
    let mut holder = Command::new(env::current_exe()?)
        .args([HOLD, &fixture.to_string(), &parent_id().to_string()])
        // With this variable, the cluster does not wait for its turn, which clusters do without a runner.
        .env("NEXTEST", "1")
        // A signal to the runner's process group must not end the holder. It ends the runner, and the holder notices that.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .context("cannot start the process that holds what tests share")?;
    let mut said = BufReader::new(holder.stdout.take().context("no standard output")?);
    let mut variable = String::new();
    let read = timeout(STARTS_WITHIN, said.read_line(&mut variable)).await;
    let mut text = String::new();
    log.rewind()?;
    log.read_to_string(&mut text)?;
    // This error makes the setup script fail. The runner then ends, and the holder ends with it.
    let Ok(read) = read else { bail!("the shared {fixture} did not start within {STARTS_WITHIN:?}:\n{text}") };
    if read? == 0 {
        bail!("the shared {fixture} did not start ({}):\n{text}", holder.wait().await?);
    }
    eprint!("{text}");
    let mut variables = File::options().create(true).append(true).open(variables)?;
    variables.write_all(variable.as_bytes()).context("cannot tell the runner")
}

/// A file for the holder's log, which no process has to remove.
fn unnamed_file() -> anyhow::Result<File> {
    let path = env::temp_dir().join(format!("shardledger-shared-{}.log", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(file)
}

/// Starts the fixture, prints its folder, and holds it until the runner has ended.
async fn hold(fixture: Fixture, runner: i32) -> anyhow::Result<()> {
    let runner = Process::of(runner).context("the runner has ended")?;
    match fixture {
        Fixture::Cluster | Fixture::QuietCluster => {
            let cluster = Cluster::start(SHARDS, ROUTERS).await?;
            say(fixture, cluster.data_dir().display())?;
            ends(runner).await;
        }
        Fixture::Postgresql => {
            let began = Instant::now();
            let folder = Folder::create()?;
            let server = Postgres::start(&folder, "postgresql").await?;
            eprintln!("a PostgreSQL server is up after {:.1?}", began.elapsed());
            say(fixture, server.data().display())?;
            ends(runner).await;
        }
    }
    Ok(())
}

/// The set-up process reads one line and ends. Nothing reads what would follow.
fn say(fixture: Fixture, place: std::path::Display<'_>) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{}={place}", fixture.variable())?;
    output.flush().context("the setup script has ended")
}

async fn ends(runner: Process) {
    while runner.is_alive() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
