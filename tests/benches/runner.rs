//! What `runner` costs: per task, while it waits, and after very many runs.
//!
//! Printed are ratios against a reference of the same run: a bare loop of `posix_spawn` and `wait`
//! over the same programs, in turns with `runner`, so that whatever else the machine does falls on
//! both alike. What each line means, and what was reached where, is in `docs/benchmarks.md`.
//!
//! `cargo bench -p farm-tests --bench runner` builds `runner` by itself. `-- --rounds 15` is a
//! finer measure; `-- --million` makes a million runs instead, which takes half an hour.

#![expect(clippy::print_stdout, reason = "prints its measurements")]
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "measures other processes, for which no clock can be paused"
)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use farm_tests::place::Place;
use farm_tests::{programs, wait};
use runner::child::{Ending, Launch, Limits, Supervisor};
use runner::signals::{Requests, Stop};
use tempfile::TempDir;

/// Promised: empty tasks take at most so many times what spawning and waiting takes.
const TASKS_PROMISE: f64 = 1.5;
/// Tasks in that measure.
const TASKS: usize = 1000;
/// Promised: resident memory, in KiB, after a million runs.
const MEMORY_PROMISE: u64 = 15 * 1024;
/// Runs of the default measure of memory.
const RUNS: u64 = 20_000;
/// What may be added to resident memory from the thousandth run to the last, in KiB: some pages
/// that were not touched before. A leak of 16 bytes a run would be more.
const GROWTH_PROMISE: u64 = 256;
/// How long an idle `runner` is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Until what a start needs is over: a thread that wrote files for the sink ends after ten seconds
/// without work.
const SETTLED: Duration = Duration::from_secs(12);
/// One heartbeat of the default configuration is in this time, and no second one.
const IDLE_WITH_HEARTBEAT: Duration = Duration::from_secs(75);
/// Promised: spawning from a process of 512 MiB takes at most so many times what it takes from a
/// small one. By `fork` it would be forty times.
const BALLAST_PROMISE: f64 = 1.3;
/// Size of that process.
const BALLAST: usize = 512 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(file) = value_of(&arguments, "--stamp") {
        return stamp(Path::new(file));
    }
    programs::build_for_benchmark("runner");
    let promises = if arguments.iter().any(|argument| argument == "--million") {
        vec![memory(1_000_000)]
    } else {
        let rounds = value_of(&arguments, "--rounds").and_then(|number| number.parse().ok());
        let rounds = rounds.unwrap_or(7);
        let mut promises = empty_tasks(rounds);
        gaps(rounds);
        promises.push(ballast());
        promises.push(memory(RUNS));
        promises.extend(idle());
        promises
    };
    let kept = promises.iter().all(|kept| *kept);
    println!("\npromises: {}", if kept { "all kept" } else { "BROKEN" });
    if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn value_of<'a>(arguments: &'a [String], option: &str) -> Option<&'a str> {
    let mut arguments = arguments.iter().skip_while(|argument| *argument != option);
    arguments.nth(1).map(String::as_str)
}

// ---------------------------------------------------------------------------------- empty tasks

/// The smallest program there is: an ELF file of one page that exits with 0.
#[cfg(target_arch = "x86_64")]
const EXIT_0: (u16, &[u8]) = (62, &[0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]);
/// The smallest program there is: an ELF file of one page that exits with 0.
#[cfg(target_arch = "aarch64")]
const EXIT_0: (u16, &[u8]) = (
    183,
    &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 1, 0, 0, 0xd4],
);

/// An executable of `code` for `machine`: header, one segment, nothing else (elf(5)).
fn elf((machine, code): (u16, &[u8])) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [2, machine] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1_u32, 5] {
        file.extend(word.to_le_bytes());
    }
    for word in [0, BASE, BASE, length, length, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// Where state is kept, and whether `runner` finds a cgroup hierarchy it can write.
#[derive(Clone, Copy)]
struct Setting {
    name: &'static str,
    on_disk: bool,
    cgroup: bool,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        name: "state on tmpfs, no cgroup",
        on_disk: false,
        cgroup: false,
    },
    Setting {
        name: "state on tmpfs, cgroup",
        on_disk: false,
        cgroup: true,
    },
    Setting {
        name: "state on disk, cgroup",
        on_disk: true,
        cgroup: true,
    },
];

/// A program for every empty task.
struct Program {
    name: &'static str,
    content: Vec<u8>,
    /// Whether the promise is about it.
    promised: bool,
}

/// The smallest task that a person writes, and the smallest program there is: beside the latter
/// nothing hides what `runner` does itself.
fn empty_programs() -> [Program; 2] {
    [
        Program {
            name: "#!/bin/sh script",
            content: b"#!/bin/sh\nexit 0\n".to_vec(),
            promised: true,
        },
        Program {
            name: "static program",
            content: elf(EXIT_0),
            promised: false,
        },
    ]
}

/// A thousand empty tasks in one run, against a thousand times spawn and wait of the same files.
fn empty_tasks(rounds: usize) -> Vec<bool> {
    println!("{TASKS} empty tasks, `runner run -n 1`, {rounds} rounds in turns, medians\n");
    let mut promises = Vec::new();
    for program in empty_programs() {
        let place = Place::new("farmhand-bench-");
        let paths: Vec<PathBuf> = (0..TASKS)
            .map(|number| task(&place, number, &program.content))
            .collect();
        let mut bare = Vec::new();
        let mut times = SETTINGS.map(|_| Vec::new());
        for round in 0..=rounds {
            let reference = time(|| paths.iter().for_each(|path| spawn_and_wait(path)));
            let measured = SETTINGS.map(|setting| run_once(&place, setting));
            // The first round fills caches.
            if round > 0 {
                bare.push(reference);
                for (times, time) in times.iter_mut().zip(measured) {
                    times.push(time);
                }
            }
        }
        let bare = median(bare);
        println!(
            "  {:<17} {:<27} {:>5} µs a task",
            program.name,
            "bare loop",
            per_task(bare)
        );
        for (setting, times) in SETTINGS.iter().zip(times) {
            let median = median(times);
            let ratio = median.as_secs_f64() / bare.as_secs_f64();
            let kept = ratio <= TASKS_PROMISE;
            let verdict = if program.promised {
                promises.push(kept);
                word(kept)
            } else {
                "not promised"
            };
            println!(
                "  {:<17} {:<27} {:>5} µs a task  ratio {ratio:.2}  (at most {TASKS_PROMISE}: {verdict})",
                program.name,
                setting.name,
                per_task(median)
            );
        }
    }
    promises
}

fn task(place: &Place, number: usize, content: &[u8]) -> PathBuf {
    let path = place.path(&format!("tasks.d/{number:04}-empty"));
    fs_err::write(&path, content).expect("a temporary directory can be written");
    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    path
}

fn per_task(all: Duration) -> u128 {
    all.as_micros() / TASKS as u128
}

/// What the standard library does by `posix_spawn`, as long as nothing needs to run in between.
fn spawn_and_wait(path: &Path) {
    let status = Command::new(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    assert!(status.expect("the program is there").success());
}

/// From the start of `runner` to its end.
fn run_once(place: &Place, setting: Setting) -> Duration {
    let state = state_dir(setting.on_disk);
    let path = configure(place, &state.path().join("state"), "");
    let runner = programs::ours("runner");
    let arguments: [&OsStr; 5] = [
        "run".as_ref(),
        "-n".as_ref(),
        "1".as_ref(),
        "-c".as_ref(),
        path.as_os_str(),
    ];
    let mut command = if setting.cgroup {
        Command::new(&runner)
    } else {
        // In a mount namespace in which there is no cgroup file system.
        let mut command = Command::new(programs::installed("unshare"));
        command.args(["--mount", "--", "sh", "-c"]);
        command
            .arg("mount -t tmpfs none /sys/fs/cgroup && exec \"$0\" \"$@\"")
            .arg(&runner);
        command
    };
    let log = place.path("runner.log");
    let output = fs_err::File::create(&log)
        .expect("it can be written")
        .into_parts()
        .0;
    command.args(arguments).stdin(Stdio::null()).stderr(output);
    let mut ended = None;
    let took = time(|| ended = Some(command.status().expect("runner starts")));
    let log = fs_err::read_to_string(log).unwrap_or_default();
    assert!(
        ended.is_some_and(|status| status.success()),
        "runner failed:\n{log}"
    );
    assert_eq!(
        log.matches("task ended well").count(),
        TASKS,
        "not every task was run"
    );
    let found = !log.contains("tasks have no cgroup");
    assert_eq!(
        found,
        setting.cgroup,
        "whether there is a cgroup:\n{}",
        &log[..log.len().min(2000)]
    );
    took
}

/// A directory for state, and for nothing else.
fn state_dir(on_disk: bool) -> TempDir {
    let parent = if on_disk {
        std::env::temp_dir()
    } else {
        "/dev/shm".into()
    };
    TempDir::with_prefix_in("farmhand-bench-state-", parent).expect("a directory for state")
}

/// Writes `runner.toml` and returns its path.
fn configure(place: &Place, state: &Path, more: &str) -> PathBuf {
    let tasks = place.path("tasks.d");
    place.write(
        "etc/runner.toml",
        &format!("[runner]\ntasks_dir = {tasks:?}\nstate_dir = {state:?}\n{more}"),
    );
    place.path("etc/runner.toml")
}

// ----------------------------------------------------------------------------------------- gaps

/// A task that says when it began and when it ended, and fails so that it is tried again.
fn stamp(file: &Path) -> ExitCode {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_nanos()
    };
    let began = now();
    let mut file = fs_err::OpenOptions::new()
        .append(true)
        .open(file)
        .expect("the file of stamps");
    let line = format!("{began} {}\n", now());
    file.write_all(line.as_bytes()).expect("the file of stamps");
    ExitCode::FAILURE
}

/// From the end of one attempt to the start of the next: the end is noticed, what it left is
/// looked for, state and history are written, and the next one is started.
fn gaps(rounds: usize) {
    const ATTEMPTS: usize = 200;
    let place = Place::new("farmhand-bench-");
    let stamps = place.path("stamps");
    let this = std::env::current_exe().expect("the kernel knows this program");
    task(&place, 0, b"");
    let more = format!(
        "max_attempts = {ATTEMPTS}\nhalt_task = \"\"\n[runner.backoff]\ninitial = \"0s\"\nmax = \"0s\"\n\
         [tasks.empty]\ninterpreter = [{this:?}, \"--stamp\", {stamps:?}]\n"
    );
    let (mut bare, mut retries) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        place.write("stamps", "");
        for _ in 0..ATTEMPTS {
            let status = Command::new(&this)
                .arg("--stamp")
                .arg(&stamps)
                .stdin(Stdio::null())
                .status();
            assert_eq!(status.expect("this program starts").code(), Some(1));
        }
        bare.extend(gaps_in(&stamps, ATTEMPTS));

        place.write("stamps", "");
        let state = state_dir(false);
        let path = configure(&place, &state.path().join("state"), &more);
        let status = Command::new(programs::ours("runner"))
            .args(["run", "-n", "1", "-c"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        assert_eq!(status.expect("runner starts").code(), Some(1));
        retries.extend(gaps_in(&stamps, ATTEMPTS));
    }
    let (bare, retry) = (median(bare), median(retries));
    let ratio = retry.as_secs_f64() / bare.as_secs_f64();
    println!(
        "\nfrom the end of an attempt to the start of the next, {} gaps each",
        rounds * (ATTEMPTS - 1)
    );
    println!(
        "  bare loop {} µs, retry without a wait {} µs, ratio {ratio:.2}",
        bare.as_micros(),
        retry.as_micros()
    );
}

fn gaps_in(stamps: &Path, attempts: usize) -> Vec<Duration> {
    let text = fs_err::read_to_string(stamps).expect("the file of stamps");
    let stamps: Vec<u64> = text
        .split_whitespace()
        .map(|stamp| stamp.parse().expect("a time"))
        .collect();
    assert_eq!(
        stamps.len(),
        2 * attempts,
        "every attempt leaves two stamps"
    );
    stamps[1..]
        .chunks_exact(2)
        .map(|pair| Duration::from_nanos(pair[1].saturating_sub(pair[0])))
        .collect()
}

// -------------------------------------------------------------------------------------- ballast

/// The way every child of `runner` is started, from a small process and from a large one.
fn ballast() -> bool {
    const CHILDREN: usize = 60;
    const ROUNDS: usize = 11;
    let place = Place::new("farmhand-bench-");
    let launch = Launch {
        program: task(&place, 0, &elf(EXIT_0)).into(),
        arguments: Vec::new(),
        env: Vec::new(),
        directory: "/".into(),
        user: None,
    };
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        small.extend(launches(&launch, CHILDREN));
        let ballast = vec![1_u8; BALLAST];
        large.extend(launches(&launch, CHILDREN));
        assert_eq!(std::hint::black_box(&ballast).len(), BALLAST);
    }
    let (small, large) = (median(small), median(large));
    let ratio = large.as_secs_f64() / small.as_secs_f64();
    let kept = ratio <= BALLAST_PROMISE;
    println!(
        "\none child, from start until nothing of it is left, {} each",
        CHILDREN * ROUNDS
    );
    println!(
        "  small process {small:.0?}, with {} MiB more {large:.0?}, ratio {ratio:.2}  (at most {BALLAST_PROMISE}: {})",
        BALLAST >> 20,
        word(kept)
    );
    kept
}

fn launches(launch: &Launch, count: usize) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let mut supervisor = Supervisor::new(None).expect("Linux has subreapers");
        let mut requests = Requests::none();
        let limits = Limits {
            timeout: None,
            grace_period: Duration::ZERO,
            drain_signal: None,
            ended_by: Stop::Gracefully,
        };
        let mut times = Vec::new();
        for _ in 0..count {
            let finished = supervisor.run(launch, limits, &mut requests).await;
            assert_eq!(finished.ending, Ending::Exited(0));
            times.push(finished.duration);
        }
        times
    })
}

// --------------------------------------------------------------------------------------- memory

/// Resident memory, early and at the end of very many runs of one empty task.
fn memory(runs: u64) -> bool {
    let place = Place::new("farmhand-bench-");
    task(&place, 0, &elf(EXIT_0));
    let state = state_dir(false);
    let mut runner = start(&place, state.path(), "", &["-n", &runs.to_string()]);
    let began = Instant::now();
    let (mut early, mut last, mut reported) = (None, None, Duration::ZERO);
    while runner.try_wait().is_none() {
        // A sample between two moments of a process that ends: either may be missing.
        if let (Some(done), Some(resident)) = (runner.runs(), resident(runner.pid())) {
            if done >= 1000 {
                early.get_or_insert(resident);
            }
            last = Some((done, resident));
            if runs > RUNS && began.elapsed() >= reported + Duration::from_secs(60) {
                reported = began.elapsed();
                println!("  after {done} runs {resident} KiB");
            }
        }
        sleep(Duration::from_millis(if runs > RUNS { 1000 } else { 20 }));
    }
    let early = early.expect("sampled after a thousand runs");
    let (done, resident) = last.expect("sampled at least once");
    let growth = resident.saturating_sub(early);
    let kept = resident <= MEMORY_PROMISE && growth <= GROWTH_PROMISE;
    println!(
        "\nresident memory over {runs} runs of one empty task, in {:.0?}",
        began.elapsed()
    );
    println!(
        "  {early} KiB after 1000 runs, {resident} KiB after {done}  (at most {MEMORY_PROMISE}, growth at most {GROWTH_PROMISE}: {})",
        word(kept)
    );
    kept
}

// ----------------------------------------------------------------------------------------- idle

/// What an idle `runner` waits in, and what it is configured with.
const IDLE_CASES: [(&str, &str, &str, bool); 4] = [
    (
        "in a task, no sink",
        "task",
        "#!/bin/sh\nexec sleep 600\n",
        false,
    ),
    (
        "in a backoff, no sink",
        "backoff",
        "#!/bin/sh\nexit 1\n",
        false,
    ),
    (
        "in a task, JSON lines",
        "task",
        "#!/bin/sh\nexec sleep 600\n",
        true,
    ),
    (
        "in a backoff, JSON lines",
        "backoff",
        "#!/bin/sh\nexit 1\n",
        true,
    ),
];

/// Context switches of all threads of `runner`s that wait.
fn idle() -> Vec<bool> {
    println!("\nidle runner: context switches of all its threads in {IDLE:?}");
    let places = IDLE_CASES.map(|_| (Place::new("farmhand-bench-"), state_dir(false)));
    let runners = std::array::from_fn::<_, 4, _>(|case| {
        let (_, phase, content, sink) = IDLE_CASES[case];
        let (place, state) = &places[case];
        place.write_executable("tasks.d/0-idle", content);
        // The same wait in every process, and one that does not end while it is watched.
        let mut more = "[runner.backoff]\ninitial = \"10h\"\nmax = \"10h\"\nseed = 1\n".to_owned();
        if sink {
            let file = place.path("events.jsonl");
            more += &format!("[[telemetry.jsonl]]\npath = {file:?}\n");
        }
        let runner = start(place, state.path(), &more, &["-n", "1"]);
        let entered = || match runner.phase() {
            Some(now) if now == phase => Ok(()),
            other => Err(format!("{other:?}")),
        };
        wait::until("runner to wait", Duration::from_secs(10), entered);
        runner
    });
    // What is measured is what comes after the start.
    sleep(SETTLED);
    let switches = || runners.each_ref().map(|runner| switches(runner.pid()));
    let before = switches();
    sleep(IDLE);
    let after = switches();
    sleep(IDLE_WITH_HEARTBEAT - IDLE);
    let late = switches();
    let mut promises = Vec::new();
    for (case, (name, phase, _, sink)) in IDLE_CASES.into_iter().enumerate() {
        assert_eq!(
            runners[case].phase().as_deref(),
            Some(phase),
            "it waited all the time"
        );
        let first = woken(&before[case], &after[case]);
        let all = woken(&before[case], &late[case]);
        let memory = resident(runners[case].pid()).expect("it runs");
        let kept = first == 0 && memory <= MEMORY_PROMISE;
        let beats = if sink { ", one heartbeat" } else { "" };
        println!(
            "  {name:<25} {first} switches, {memory} KiB  (0, at most {MEMORY_PROMISE}: {}); {all} in {IDLE_WITH_HEARTBEAT:?}{beats}",
            word(kept)
        );
        promises.push(kept);
    }
    promises
}

/// Voluntary and other context switches of each thread, ever.
fn switches(pid: u32) -> BTreeMap<OsString, u64> {
    let threads = fs_err::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    threads
        .map(|thread| {
            let thread = thread.expect("it runs");
            let status = thread.path().join("status");
            let status = fs_err::read_to_string(status).expect("its threads stay");
            let counts = status
                .lines()
                .filter(|line| line.contains("ctxt_switches:"));
            let count = counts.map(|line| number_in(line).expect("a count")).sum();
            (thread.file_name(), count)
        })
        .collect()
}

/// Context switches from one moment to a later one.
fn woken(before: &BTreeMap<OsString, u64>, after: &BTreeMap<OsString, u64>) -> u64 {
    after
        .iter()
        .map(|(thread, count)| count - before.get(thread).unwrap_or(&0))
        .sum()
}

// ----------------------------------------------------------------------------------- the process

/// A `runner` that ends with this value.
struct Runner {
    child: Child,
    state: PathBuf,
}

fn start(place: &Place, state: &Path, more: &str, arguments: &[&str]) -> Runner {
    let state = state.join("state");
    let path = configure(place, &state, more);
    let child = Command::new(programs::ours("runner"))
        .arg("run")
        .args(arguments)
        .arg("-c")
        .arg(path)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("runner starts");
    Runner { child, state }
}

impl Runner {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended; it must have ended well.
    fn try_wait(&mut self) -> Option<()> {
        let status = self.child.try_wait().expect("it is our child")?;
        assert!(status.success(), "runner: {status}");
        Some(())
    }

    fn state(&self) -> Option<serde_json::Value> {
        let text = fs_err::read(self.state.join("state.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn runs(&self) -> Option<u64> {
        self.state()?["runs_since_boot"].as_u64()
    }

    fn phase(&self) -> Option<String> {
        Some(self.state()?["activity"]["phase"].as_str()?.to_owned())
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its task: one that ended by itself is not asked.
        if let Ok(None) = self.child.try_wait()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).ok();
        }
        self.child.wait().ok();
    }
}

/// VmRSS in KiB; `None` once the process has ended.
fn resident(pid: u32) -> Option<u64> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    number_in(status.lines().find(|line| line.starts_with("VmRSS:"))?)
}

fn number_in(line: &str) -> Option<u64> {
    line.split_whitespace().find_map(|word| word.parse().ok())
}

fn time(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn word(kept: bool) -> &'static str {
    if kept { "kept" } else { "BROKEN" }
}
