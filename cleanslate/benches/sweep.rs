//! How long a sweep of a thousand leftovers takes, beside what the kernel needs for the same.
//!
//! `cargo bench -p cleanslate`, as root. Everything happens in a PID namespace of its own, in which
//! this program is the first process and reaps orphans, as init does on a host. One round is: start
//! the leftovers, then time (a) `cleanslate sweep`, from starting the program to its end, or (b)
//! the floor: `kill(2)` to each of them, and a wait until all are reaped. Rounds alternate, so that
//! a busy machine slows both.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints its result, and panics if it cannot measure"
)]

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use cleanslate::clock::monotonic;
use cleanslate::process::Pid;
use cleanslate::table::{Detail, ProcTable, Strangers};
use cleanslate::users::Users;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Leftovers in each round.
const LEFTOVERS: usize = 1000;

/// Rounds of each kind; the median is reported.
const ROUNDS: usize = 7;

/// What a sweep of [`LEFTOVERS`] may take.
const TARGET: Duration = Duration::from_millis(150);

/// What Mozilla's cleanslate took: 0.1 s for each process, one after another, and 1 s around it.
const ORIGINAL: Duration = Duration::from_secs(101);

/// User of the leftovers, whom no machine has.
const USER: u32 = 61_001;

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "CLEANSLATE_BENCH_INSIDE";

fn main() {
    if std::env::var_os(INSIDE).is_some() {
        measure();
    } else if rustix::process::geteuid().is_root() {
        let error = Command::new("unshare")
            .args([
                "--pid",
                "--mount",
                "--fork",
                "--mount-proc",
                "--kill-child",
                "sh",
                "-c",
            ])
            .arg("mount -t tmpfs -o mode=0755 tmpfs /run && exec \"$0\"")
            .arg(std::env::current_exe().unwrap())
            .env(INSIDE, "1")
            .exec();
        panic!("cannot start unshare of util-linux: {error}");
    } else {
        println!("SKIPPED: this benchmark makes a PID namespace and needs root");
    }
}

fn measure() {
    let user = USER.to_string();
    assert!(
        cleanslate(&["snapshot", "--user", &user])
            .0
            .contains("recorded 0 processes")
    );
    let mut sweeps = Vec::new();
    let mut floors = Vec::new();
    for _ in 0..ROUNDS {
        start_leftovers();
        sweeps.push(sweep(&user));
        reap_all();
        start_leftovers();
        floors.push(floor());
        reap_all();
    }
    let (sweep, floor) = (median(&mut sweeps), median(&mut floors));
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!("leftovers                       {LEFTOVERS}, median of {ROUNDS} rounds");
    println!("cleanslate sweep                {}", span(&sweeps));
    println!("kill(2) and reap, the floor     {}", span(&floors));
    println!("sweep / floor                   {:.2}", ratio(sweep, floor));
    println!(
        "original / sweep                {:.0} (computed: 0.1 s for each process, one by one)",
        ratio(ORIGINAL, sweep)
    );
    println!(
        "sweep / target                  {:.2} (target {} ms: {})",
        ratio(sweep, TARGET),
        TARGET.as_millis(),
        if sweep <= TARGET { "met" } else { "MISSED" }
    );
}

/// Runs the program, reaping orphans meanwhile as init does; its output and how long it took.
#[expect(
    clippy::zombie_processes,
    reason = "reaped below, together with the orphans"
)]
fn cleanslate(arguments: &[&str]) -> (String, Duration) {
    let start = monotonic();
    let mut child = Command::new(env!("CARGO_BIN_EXE_cleanslate"))
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // Read apart, so that a long answer does not fill the pipe while orphans are reaped.
    let answer = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut text).unwrap();
        text
    });
    loop {
        match waitpid(None, None).unwrap() {
            WaitStatus::Exited(ended, code) if ended.as_raw() == pid => {
                assert_eq!(code, 0, "cleanslate failed");
                break;
            }
            _ => {}
        }
    }
    let took = monotonic() - start;
    (answer.join().unwrap(), took)
}

fn sweep(user: &str) -> Duration {
    let (answer, took) = cleanslate(&["sweep", "--user", user, "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let leftovers = answer["leftovers"].as_array().unwrap();
    assert_eq!(leftovers.len(), LEFTOVERS);
    assert!(
        leftovers
            .iter()
            .all(|leftover| leftover["ended"] == "terminated")
    );
    assert_eq!(running().len(), 0);
    took
}

fn floor() -> Duration {
    let leftovers = running();
    assert_eq!(leftovers.len(), LEFTOVERS);
    let start = monotonic();
    for pid in leftovers {
        kill(
            nix::unistd::Pid::from_raw(i32::try_from(pid.0).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
    }
    reap_all();
    monotonic() - start
}

/// Starts the leftovers as orphans: the shell that starts them exits.
fn start_leftovers() {
    let script = format!("i=0; while [ $i -lt {LEFTOVERS} ]; do sleep 1000 & i=$((i+1)); done");
    let started = Command::new("setpriv")
        .args([
            "--reuid",
            &USER.to_string(),
            "--clear-groups",
            "sh",
            "-c",
            &script,
        ])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(started.success());
    // A child is the shell's copy until it has become `sleep`.
    while running_as("sleep") < LEFTOVERS {
        std::thread::yield_now();
    }
}

fn running() -> Vec<Pid> {
    scan()
        .iter()
        .filter(|process| !process.is_dead())
        .map(|process| process.id.pid)
        .collect()
}

fn running_as(comm: &str) -> usize {
    scan()
        .iter()
        .filter(|process| process.comm == comm.into())
        .count()
}

fn scan() -> Vec<cleanslate::process::Process> {
    let table = ProcTable::open().unwrap();
    table
        .scan(
            &Users::from_iter([USER]),
            Detail::Named,
            &mut Strangers::default(),
        )
        .unwrap()
}

/// Reaps until there is no child left.
fn reap_all() {
    loop {
        match waitpid(None, Some(WaitPidFlag::empty())) {
            Ok(_) => {}
            Err(Errno::ECHILD) => return,
            Err(errno) => panic!("cannot reap: {errno}"),
        }
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Median, smallest and largest of sorted times.
fn span(times: &[Duration]) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    format!(
        "{:.1} ms ({:.1} to {:.1})",
        ms(times[times.len() / 2]),
        ms(times[0]),
        ms(times[times.len() - 1])
    )
}
