//! Clean-up that happens in whatever way the test ends.
//!
//! A guard process reads from a pipe whose other end only this process holds. The pipe closes when the [`Leash`] is dropped, and when the
//! test panics, times out, or is killed with SIGKILL. The guard then cleans up and ends. It has a process group of its own, so that a
//! signal to the test's group does not reach the guard.

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
};

use anyhow::Context;

use crate::process::Process;

/// Waits for the end of the pipe. The guard uses `cat`, because the shell's own `read` would return at a newline.
const WAIT: &str = "cat >/dev/null";

/// `$1` is shardctl, and `$2` is the data folder. The guard tries again, because an `up` that was killed with the test may still hold its
/// lock. It removes a folder without a cluster.
const TAKE_DOWN: &str = r#"
tries=0
while [ -e "$2" ]; do
    if [ -e "$2/cluster.json" ]; then "$1" down --data-dir "$2" --wipe --yes; else rm -rf -- "$2"; fi
    tries=$((tries + 1))
    [ "$tries" -lt 20 ] || exit 1
    [ ! -e "$2" ] || sleep 0.5
done"#;

/// `$1` is a process id. The guard ends before the owner reaps that process, so the id cannot belong to another process by then.
const KILL: &str = r#"kill -9 "$1" 2>/dev/null"#;

/// `$1` is the data folder of a PostgreSQL that another program started. An immediate shutdown gives the kernel's shared memory back. The
/// guard tries again, because a server that is starting has no `postmaster.pid` yet.
const STOP_SERVER: &str = r#"
tries=0
while [ "$tries" -lt 20 ]; do
    pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null || break
    tries=$((tries + 1))
    sleep 0.2
done"#;

/// `$1` is a folder.
const REMOVE: &str = r#"rm -rf -- "$1""#;

/// A guard process that undoes something when this value is dropped or its owner ends.
#[derive(Debug)]
pub struct Leash {
    guard: Child,
}

impl Leash {
    /// Takes the cluster in the folder down and removes it.
    pub fn on_cluster(shardctl: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        Self::new(TAKE_DOWN, &[shardctl, data_dir])
    }

    pub fn on_folder(folder: &Path) -> anyhow::Result<Self> {
        Self::new(REMOVE, &[folder])
    }

    /// Stops the PostgreSQL of this data folder, which another program started. That program must have ended before.
    pub fn on_server(data_dir: &Path) -> anyhow::Result<Self> {
        Self::new(STOP_SERVER, &[data_dir])
    }

    fn new(undo: &str, arguments: &[&Path]) -> anyhow::Result<Self> {
        let guard = Command::new("sh")
            .arg("-c")
            .arg(format!("{WAIT}\n{undo}"))
            .arg("leash")
            .args(arguments)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the guard that cleans up")?;
        Ok(Self { guard })
    }

    /// Cleans up now and returns the exit status of the guard.
    pub fn release(&mut self) -> anyhow::Result<ExitStatus> {
        drop(self.guard.stdin.take());
        self.guard.wait().context("the guard that cleans up is lost")
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        // There is no caller to report an error to; a caller that needs the result calls `release`.
        let _ = self.release();
    }
}

/// A process that does not outlive its owner.
#[derive(Debug)]
pub struct Leashed {
    child: Child,
    process: Process,
    guard: Child,
}

impl Leashed {
    pub fn spawn(mut command: Command) -> anyhow::Result<Self> {
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let started =
            i32::try_from(child.id()).ok().and_then(Process::of_child).context("the child has no process id");
        let guard = Command::new("sh")
            .args(["-c", &format!("{WAIT}\n{KILL}"), "leash", &child.id().to_string()])
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the guard that cleans up");
        match (started, guard) {
            (Ok(process), Ok(guard)) => Ok(Self { child, process, guard }),
            (Err(error), _) | (_, Err(error)) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Starts a process, and returns a pipe with its standard error.
    pub fn spawn_listening(mut command: Command) -> anyhow::Result<(Self, ChildStderr)> {
        command.stderr(Stdio::piped());
        let mut leashed = Self::spawn(command)?;
        let said = leashed.child.stderr.take().context("no standard error")?;
        Ok((leashed, said))
    }

    pub fn process(&self) -> Process {
        self.process
    }

    /// The exit status of the process, if it has ended.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        // Reaping frees the process id, so the guard must not act on it any more.
        if self.process.is_alive() {
            return Ok(None);
        }
        self.dismiss_guard();
        Ok(Some(self.child.wait()?))
    }

    fn dismiss_guard(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.dismiss_guard();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
