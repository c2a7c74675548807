//! The processes of this machine as the kernel reports them, the signals that are sent to them, and the environment that they inherit from
//! `shardctl`.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::postgres::home::is_same_file;

/// The interval at which this process checks whether another process, which need not be its child, has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One process. Process ids are reused, and the start time distinguishes the processes that had the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pid: i32,
    started_ticks: u64,
}

impl Process {
    /// The living process with this id, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        let found = ProcessStat::read(pid)?;
        found.alive.then_some(Self { pid, started_ticks: found.started_ticks })
    }

    /// The PostgreSQL server that `postmaster.pid` in a database folder names. Checks that the working folder of the process is this folder,
    /// because another process may have reused the id.
    pub fn server_in(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join("postmaster.pid")).ok()?;
        let process = Self::of(text.lines().next()?.trim().parse().ok()?)?;
        let works_there = is_same_file(&PathBuf::from(format!("/proc/{}/cwd", process.pid)), folder);
        let is_server =
            fs::read_to_string(format!("/proc/{}/comm", process.pid)).is_ok_and(|name| name.trim() == "postgres");
        (works_there && is_server).then_some(process)
    }

    pub fn pid(self) -> i32 {
        self.pid
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends a signal. It is no failure if the process has ended or ends meanwhile.
    pub fn signal(self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) else { return Ok(()) };
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end of a process that need not be a child of this one.
    pub async fn ended(self) {
        while self.is_alive() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for the end of the process, at most for `patience`. Returns whether the process has ended.
    pub async fn ended_within(self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

/// All processes of the machine with their command lines.
#[derive(Debug)]
pub struct ProcessTable(Vec<TableEntry>);

#[derive(Debug)]
struct TableEntry {
    process: Process,
    parent: i32,
    command_line: Vec<String>,
}

impl ProcessTable {
    pub fn read() -> io::Result<Self> {
        let mut entries = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while the folder is read.
            let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let Some(stat) = ProcessStat::read(pid).filter(|stat| stat.alive) else { continue };
            let words = command_line.split(|b| *b == 0).filter(|word| !word.is_empty());
            entries.push(TableEntry {
                process: Process { pid, started_ticks: stat.started_ticks },
                parent: stat.parent,
                command_line: words.map(|word| String::from_utf8_lossy(word).into_owned()).collect(),
            });
        }
        Ok(Self(entries))
    }

    /// All processes of a program that name this file or folder as an argument.
    pub fn naming(&self, program: &str, path: &Path) -> Vec<Process> {
        let is_wanted = |entry: &&TableEntry| {
            entry.command_line.split_first().is_some_and(|(first, rest)| {
                Path::new(first).file_name().is_some_and(|name| name == program)
                    && rest.iter().any(|argument| Path::new(argument) == path)
            })
        };
        self.0.iter().filter(is_wanted).map(|entry| entry.process).collect()
    }

    /// The process that was started with this program name and exactly these arguments.
    pub fn find(&self, program: &Path, arguments: &[String]) -> Option<Process> {
        let same = |entry: &&TableEntry| {
            entry.command_line.split_first().is_some_and(|(first, rest)| {
                PathBuf::from(first).file_name() == program.file_name() && rest == arguments
            })
        };
        let matching: Vec<&TableEntry> = self.0.iter().filter(same).collect();
        // A server that forks looks like its child until the child has renamed itself.
        let is_child = |entry: &TableEntry| matching.iter().any(|other| other.process.pid == entry.parent);
        matching.iter().find(|entry| !is_child(entry)).map(|entry| entry.process)
    }
}

/// A process as `/proc/<pid>/stat` describes it. Times are in ticks of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub struct ProcessStat {
    pub pid: i32,
    pub parent: i32,
    alive: bool,
    /// The time from the start of the machine to the start of the process.
    started_ticks: u64,
    /// Processor time of the process.
    pub ticks: u64,
    /// Processor time of its children that have ended.
    pub ended_children_ticks: u64,
}

impl ProcessStat {
    /// Reads one process. `None` if no process has this id.
    pub fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads all processes of the machine, including those that have ended and that their parent has not waited for.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut stats = Vec::new();
        for entry in fs::read_dir("/proc")? {
            // A process may end while the folder is read.
            let Ok(line) = fs::read_to_string(entry?.path().join("stat")) else { continue };
            stats.extend(Self::parse(&line));
        }
        Ok(stats)
    }

    /// The second field is the program's name in parentheses. The name itself may contain blanks and parentheses.
    fn parse(line: &str) -> Option<Self> {
        let (pid, _) = line.split_once(' ')?;
        let (_, rest) = line.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            parent: fields.get(1)?.parse().ok()?,
            // A zombie has ended. It stays listed if no process reaps it, as in a container whose first process does not.
            alive: !matches!(*fields.first()?, "Z" | "X"),
            started_ticks: number(19)?,
            ticks: number(11)? + number(12)?,
            ended_children_ticks: number(13)? + number(14)?,
        })
    }
}

/// The prefix of every variable that libpq, sqlx or the PostgreSQL server reads: `PGSSLMODE`, `PGOPTIONS`, `PGDATA` …
const POSTGRES_PREFIX: &[u8] = b"PG";
/// The node's override of `database.url`. It names one database, but a cluster on this machine has one for each
/// shard.
const NODE_DATABASE: &str = "SHARD_NODE_DATABASE_URL";

/// Removes variables that choose a database or a way to connect. The processes of a cluster take both from their
/// configuration files; a variable in the operator's shell must not change how the cluster runs.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if chooses_a_database(&name) {
            command.env_remove(name);
        }
    }
}

fn chooses_a_database(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(POSTGRES_PREFIX) || name == NODE_DATABASE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        let line = "42 (a (b) c) S 7 42 42 0 -1 4194304 1 0 0 0 5 6 70 80 20 0 1 0 777 1 1 1";
        let expected =
            ProcessStat { pid: 42, parent: 7, alive: true, started_ticks: 777, ticks: 11, ended_children_ticks: 150 };
        assert_eq!(ProcessStat::parse(line), Some(expected));
        assert!(!ProcessStat::parse(&line.replace(" S ", " Z ")).unwrap().alive);
        assert!(ProcessStat::parse("42 (x").is_none());
    }

    #[test]
    fn this_process_is_found_and_alive() {
        let own = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
        let mut arguments = std::env::args();
        let program = PathBuf::from(arguments.next().unwrap());
        let arguments: Vec<String> = arguments.collect();
        assert_eq!(ProcessTable::read().unwrap().find(&program, &arguments), Some(own));
        assert!(ProcessTable::read().unwrap().find(&program, &["no such argument".to_owned()]).is_none());
    }

    #[test]
    fn a_process_that_works_elsewhere_or_is_no_server_is_not_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Process::server_in(folder.path()), None, "there is no postmaster.pid");
        let own = std::process::id();
        fs::write(folder.path().join("postmaster.pid"), format!("{own}\n{}\n", folder.path().display())).unwrap();
        assert_eq!(Process::server_in(folder.path()), None, "this process works in another folder");
        let mut child = std::process::Command::new("sleep").arg("60").current_dir(folder.path()).spawn().unwrap();
        fs::write(folder.path().join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        assert_eq!(Process::server_in(folder.path()), None, "sleep is no server");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_is_found_by_the_path_that_it_works_on() {
        let folder = tempfile::tempdir().unwrap();
        let followed = folder.path().join("s0.new");
        fs::write(&followed, "").unwrap();
        let mut child = std::process::Command::new("tail").arg("-f").arg(&followed).spawn().unwrap();
        let found = || ProcessTable::read().unwrap().naming("tail", &followed);
        // Between fork and exec, the child has the command line of this process.
        while found().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(found()[0].pid(), i32::try_from(child.id()).unwrap());
        assert!(ProcessTable::read().unwrap().naming("cp", &followed).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_killed_process_has_ended() {
        let mut child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        assert!(!process.ended_within(Duration::from_millis(60)).await);
        process.signal(Signal::KILL).unwrap();
        // The child has ended and is not waited for yet, so it is a zombie.
        assert!(process.ended_within(Duration::from_secs(10)).await);
        process.signal(Signal::KILL).unwrap();
        child.wait().await.unwrap();
    }

    #[test]
    fn only_variables_of_postgresql_are_removed() {
        for name in ["PGSSLMODE", "PGOPTIONS", "PGDATABASE", "PGHOST", "PGDATA", "SHARD_NODE_DATABASE_URL"] {
            assert!(chooses_a_database(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "LANG", "LC_ALL", "HOME", "TZ", "SHARDLEDGER_PG_BIN", "RUST_LOG"] {
            assert!(!chooses_a_database(OsStr::new(name)), "{name}");
        }
    }
}
