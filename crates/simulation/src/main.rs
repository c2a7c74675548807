//! Plays seeds, and prints what is wrong with those that fail.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use simulation::{Report, moves::Moved, run};

/// glibc's allocator takes a quarter of a router's processor time, and twice as much of it for each transfer where the router has many shards.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(version, about = "Simulates a cluster under faults, one seed a run", long_about = None)]
struct Args {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds to play, one after the other
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// Print the trace of each run, whether it fails or not
    #[arg(long)]
    trace: bool,
    /// Threads; 0: as many as there are processors
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Go on after findings, up to this number
    #[arg(long, default_value_t = 1)]
    findings: usize,
}

/// What all runs came to.
#[derive(Debug, Default)]
struct Total {
    runs: u64,
    orders: usize,
    attempts: usize,
    doubtful: usize,
    reads: usize,
    failed_reads: usize,
    faults: usize,
    moves: Moved,
    undecided: u64,
    calls: u64,
    virtual_time: Duration,
    failed: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, report: Report) {
        self.runs += 1;
        self.orders += report.orders;
        self.attempts += report.attempts;
        self.doubtful += report.doubtful;
        self.reads += report.reads;
        self.failed_reads += report.failed_reads;
        self.faults += report.faults;
        self.moves.add(report.moves);
        self.undecided += u64::from(report.is_undecided);
        self.calls += report.calls;
        self.virtual_time += report.took;
        self.failed.extend(report.finding.map(|finding| (seed, finding)));
        self.failed.sort();
    }

    /// Whether so many smaller seeds have found something. The first findings are the same in every run of the same seeds.
    fn is_beyond(&self, seed: u64, findings: usize) -> bool {
        findings.checked_sub(1).and_then(|last| self.failed.get(last)).is_some_and(|(last, _)| seed > *last)
    }
}

fn lock(total: &Mutex<Total>) -> MutexGuard<'_, Total> {
    total.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> ExitCode {
    let args = Args::parse();
    match play(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simulate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: &Args) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let last = args.seed.saturating_add(args.seeds.saturating_sub(1));
    writeln!(out, "SEED={} SEEDS={}", args.seed, args.seeds)?;
    if args.trace {
        for seed in args.seed..=last {
            print(&mut out, seed)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let threads = match args.threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let (next, total) = (AtomicU64::new(args.seed), Mutex::new(Total::default()));
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > last || lock(&total).is_beyond(seed, args.findings) {
                        return;
                    }
                    let report = run(seed, false);
                    lock(&total).add(seed, report);
                }
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.failed.truncate(args.findings);
    for (seed, finding) in &total.failed {
        writeln!(out, "SEED={seed}: {finding}")?;
    }
    if let Some((seed, _)) = total.failed.first() {
        print(&mut out, *seed)?;
        writeln!(out, "repeat it with: make simulate SEED={seed} SEEDS=1")?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = total.runs as f64 * 60.0 / seconds;
    writeln!(
        out,
        "{} seeds in {seconds:.1} s on {threads} threads ({rate:.0} seeds a minute): {} orders in {} attempts, {} of them once of unknown \
         outcome; {} reads and {} without an answer; {} moves of slots, of which {} were taken, {} reversed, {} given up and {} finished; {} faults, {} calls of nodes, {:.0} h of virtual time; {} runs without a decision about \
         a serial order; {} findings",
        total.runs,
        total.orders,
        total.attempts,
        total.doubtful,
        total.reads,
        total.failed_reads,
        total.moves.started,
        total.moves.taken,
        total.moves.reversed,
        total.moves.given_up,
        total.moves.finished,
        total.faults,
        total.calls,
        total.virtual_time.as_secs_f64() / 3600.0,
        total.undecided,
        total.failed.len(),
    )?;
    Ok(if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays a seed again and prints its trace.
fn print(out: &mut impl Write, seed: u64) -> io::Result<()> {
    let report = run(seed, true);
    let (lines, hash) = report.trace.unwrap_or_default();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    match report.finding {
        Some(finding) => writeln!(out, "SEED={seed}, trace {hash:016x}: {finding}"),
        None => writeln!(out, "SEED={seed}, trace {hash:016x}: nothing is wrong"),
    }
}
