//! What a person and a program are told: text tables, JSON, and lines for `runner`.

use std::fmt::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::facts::Facts;
use crate::process::{Pid, Process, ProcessId};
use crate::snapshot::{Place, Snapshot};
use crate::sweep::{Ended, Judgement, Proof, Standing, Sweep, Tiers, Verdict};
use crate::users::Users;

/// Whether a sweep ended processes or only said which it would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It ended them.
    Sweep,
    /// It changed nothing.
    DryRun,
}

#[derive(Serialize)]
struct SweepJson<'a> {
    verdict: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    leftovers: Vec<LeftoverJson<'a>>,
    missing: Vec<MissingJson>,
    dry_run: bool,
    duration_ms: u64,
    tiers: Tiers,
    #[serde(skip_serializing_if = "Option::is_none")]
    forks: Option<u64>,
}

#[derive(Serialize)]
struct LeftoverJson<'a> {
    pid: Pid,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    uid: u32,
    start_time: u64,
}

#[derive(Serialize)]
struct MissingJson {
    pid: Pid,
    command: String,
    start_time: u64,
}

/// The JSON of a sweep, on one line.
///
/// # Panics
/// Never: it is plain data.
#[must_use]
pub fn sweep_json(sweep: &Sweep, mode: Mode) -> String {
    let json = SweepJson {
        verdict: sweep.verdict,
        why: why(sweep, mode),
        leftovers: sweep
            .leftovers
            .iter()
            .map(|(leftover, ended)| LeftoverJson {
                pid: leftover.id.pid,
                command: &leftover.command,
                ended: *ended,
                uid: leftover.uid,
                start_time: leftover.id.start_time,
            })
            .collect(),
        missing: sweep
            .missing
            .iter()
            .map(|gone| MissingJson {
                pid: gone.id.pid,
                command: gone.command(),
                start_time: gone.id.start_time,
            })
            .collect(),
        dry_run: mode == Mode::DryRun,
        duration_ms: millis(sweep.duration),
        tiers: sweep.tiers,
        forks: match sweep.proof {
            Proof::Held { forks } => Some(forks),
            Proof::Missed { .. } => None,
        },
    };
    serde_json::to_string(&json).expect("a sweep is plain data") + "\n"
}

/// Why the verdict is not `clean`, in words.
#[must_use]
pub fn why(sweep: &Sweep, mode: Mode) -> Option<String> {
    let remaining = match mode {
        Mode::Sweep => sweep.count(Ended::Survived),
        Mode::DryRun => sweep.leftovers.len(),
    };
    match (sweep.verdict, sweep.proof) {
        (Verdict::Clean, _) | (Verdict::Unproven, Proof::Held { .. }) => None,
        (Verdict::Unproven, Proof::Missed { passes, forked }) => Some(format!(
            "nothing was found, but processes were started during each of {passes} passes over \
             the process table ({forked} during the last), so one may have been overlooked"
        )),
        (Verdict::Dirty, _) => Some(match mode {
            Mode::Sweep => format!(
                "{} still there after SIGKILL",
                counted(remaining, "leftover")
            ),
            Mode::DryRun => format!("{} would be ended", counted(remaining, "leftover")),
        }),
        (Verdict::BaselineDamaged, _) => Some(format!(
            "{} gone and not started again",
            counted(sweep.missing.len(), "recorded process")
        )),
    }
}

/// The text of a sweep.
#[must_use]
pub fn sweep_text(sweep: &Sweep, mode: Mode) -> String {
    let mut rows = vec![["PID", "USER", "ENDED", "COMMAND"].map(String::from)];
    rows.extend(sweep.leftovers.iter().map(|(leftover, ended)| {
        let ended = match ended {
            Some(Ended::Terminated) => "terminated",
            Some(Ended::Killed) => "killed",
            Some(Ended::Survived) => "SURVIVED",
            None => "-",
        };
        row(leftover.id, leftover.uid, &leftover.command, ended)
    }));
    rows.extend(
        sweep
            .missing
            .iter()
            .map(|gone| row(gone.id, gone.uids.real, &gone.command(), "MISSING")),
    );
    let mut text = if rows.len() > 1 {
        table(&rows)
    } else {
        String::new()
    };
    let leftovers = counted(sweep.leftovers.len(), "leftover");
    let summary = match mode {
        Mode::Sweep => format!(
            "{}: {leftovers}, {} terminated, {} killed, {} survived; {} ms",
            sweep.verdict,
            sweep.count(Ended::Terminated),
            sweep.count(Ended::Killed),
            sweep.count(Ended::Survived),
            millis(sweep.duration),
        ),
        Mode::DryRun => format!(
            "{}: {leftovers}, nothing was signalled (dry run)",
            sweep.verdict
        ),
    };
    text.push_str(&summary);
    text.push('\n');
    text
}

fn row(id: ProcessId, uid: u32, command: &str, standing: &str) -> [String; 4] {
    [
        id.pid.to_string(),
        uid.to_string(),
        standing.to_owned(),
        printable(command),
    ]
}

/// The lines a task appends to `$RUNNER_OUTPUT`.
#[must_use]
pub fn sweep_lines(sweep: &Sweep) -> String {
    format!(
        "sweep.verdict={}\nsweep.leftovers={}\nsweep.terminated={}\nsweep.killed={}\n\
         sweep.survived={}\nsweep.duration_ms={}\n",
        sweep.verdict,
        sweep.leftovers.len(),
        sweep.count(Ended::Terminated),
        sweep.count(Ended::Killed),
        sweep.count(Ended::Survived),
        millis(sweep.duration),
    )
}

#[derive(Serialize)]
struct ShowJson<'a> {
    snapshot: HeaderJson<'a>,
    host: Facts,
    processes: Vec<ProcessJson<'a>>,
    missing: Vec<&'a Process>,
}

#[derive(Serialize)]
struct HeaderJson<'a> {
    file: String,
    place: &'a Place,
    taken_at: Timestamp,
    kernel: &'a str,
    users: &'a Users,
    forks: u64,
    settled: bool,
    processes: usize,
}

#[derive(Serialize)]
struct ProcessJson<'a> {
    standing: Standing,
    #[serde(flatten)]
    process: &'a Process,
}

/// What `show` tells.
#[derive(Debug)]
pub struct Show<'a> {
    /// Path of the snapshot.
    pub file: &'a std::path::Path,
    /// The snapshot.
    pub snapshot: &'a Snapshot,
    /// The host.
    pub facts: Facts,
    /// Running processes of the users.
    pub running: &'a [Process],
    /// What each of them is.
    pub judgement: &'a Judgement<'a>,
}

impl Show<'_> {
    /// As JSON, on one line.
    ///
    /// # Panics
    /// Never: it is plain data.
    #[must_use]
    pub fn json(&self) -> String {
        let json = ShowJson {
            snapshot: HeaderJson {
                file: self.file.display().to_string(),
                place: &self.snapshot.place,
                taken_at: self.snapshot.taken_at,
                kernel: &self.snapshot.kernel,
                users: &self.snapshot.users,
                forks: self.snapshot.forks,
                settled: self.snapshot.settled,
                processes: self.snapshot.processes.len(),
            },
            host: self.facts,
            processes: self
                .running
                .iter()
                .zip(&self.judgement.standings)
                .map(|(process, &standing)| ProcessJson { standing, process })
                .collect(),
            missing: self.judgement.missing.clone(),
        };
        serde_json::to_string(&json).expect("it is plain data") + "\n"
    }

    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let snapshot = self.snapshot;
        let mut text = String::new();
        let lines = [
            ("snapshot", self.file.display().to_string()),
            (
                "taken",
                format!("{:.0}, kernel {}", snapshot.taken_at, snapshot.kernel),
            ),
            ("boot", snapshot.place.boot_id.clone()),
            ("users", snapshot.users.to_string()),
            (
                "recorded",
                format!(
                    "{} of {}{}",
                    counted(snapshot.processes.len(), "process"),
                    counted(snapshot.groups.len(), "program"),
                    if snapshot.settled {
                        ""
                    } else {
                        "; one may be missing"
                    },
                ),
            ),
            (
                "host",
                format!(
                    "up {}, load {:.2} {:.2} {:.2}, memory {} of {} MiB in use",
                    humantime::format_duration(Duration::from_secs(self.facts.uptime_s)),
                    self.facts.load[0],
                    self.facts.load[1],
                    self.facts.load[2],
                    self.facts.memory_used_bytes >> 20,
                    self.facts.memory_total_bytes >> 20,
                ),
            ),
        ];
        for (name, value) in lines {
            writeln!(text, "{name:<9} {value}").expect("a String takes any text");
        }
        let mut rows = vec![["PID", "USER", "STANDING", "COMMAND"].map(String::from)];
        let shown = |process: &Process, standing: &str| {
            row(process.id, process.uids.real, &process.command(), standing)
        };
        rows.extend(
            self.running
                .iter()
                .zip(&self.judgement.standings)
                .map(|(process, standing)| shown(process, &standing.to_string())),
        );
        rows.extend(
            self.judgement
                .missing
                .iter()
                .map(|gone| shown(gone, "MISSING")),
        );
        if rows.len() > 1 {
            text.push('\n');
            text.push_str(&table(&rows));
        }
        text
    }
}

/// Rows as text, the columns aligned, numbers of the first two to the right.
fn table(rows: &[[String; 4]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let (first, second, third) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [a, b, c, d] in rows {
        writeln!(text, "{a:>first$}  {b:>second$}  {c:<third$}  {d}")
            .expect("a String takes any text");
    }
    text
}

/// `text` without control characters: a process chooses its arguments, and a terminal obeys them.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

fn counted(count: usize, what: &str) -> String {
    let plural = match (count, what.strip_suffix('s')) {
        (1, _) => "",
        (_, Some(_)) => "es",
        (_, None) => "s",
    };
    format!("{count} {what}{plural}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Sweeper;
    use crate::sample::{process, snapshot};
    use crate::sweep::{Leftover, Tier, judge};

    fn leftover(pid: u32, command: &str) -> Leftover {
        let process = process(pid);
        Leftover {
            id: process.id,
            uid: process.uids.real,
            command: command.into(),
        }
    }

    fn agent() -> Process {
        Process {
            argv: vec!["agent".into()],
            ..process(50)
        }
    }

    fn swept() -> Sweep {
        let tier = |rounds, leftovers, ms| Tier {
            rounds,
            leftovers,
            duration: Duration::from_millis(ms),
        };
        Sweep {
            verdict: Verdict::Dirty,
            leftovers: vec![
                (leftover(71, "make -j 4"), Some(Ended::Terminated)),
                (leftover(72, "sh -c trap '' TERM"), Some(Ended::Killed)),
                (
                    leftover(10_073, "dd \u{1b}]0;owned\u{7}\nof=/mnt"),
                    Some(Ended::Survived),
                ),
            ],
            missing: vec![agent()],
            proof: Proof::Held { forks: 4711 },
            tiers: Tiers {
                look: tier(2, 0, 3),
                ask: tier(1, 3, 507),
                kill: tier(0, 0, 0),
            },
            duration: Duration::from_millis(511),
        }
    }

    fn rehearsed() -> Sweep {
        let mut sweep = swept();
        sweep
            .leftovers
            .iter_mut()
            .for_each(|(_, ended)| *ended = None);
        sweep
    }

    fn with(verdict: Verdict, proof: Proof, missing: Vec<Process>) -> Sweep {
        Sweep {
            verdict,
            leftovers: vec![],
            missing,
            proof,
            ..swept()
        }
    }

    fn every_verdict() -> [Sweep; 4] {
        let held = Proof::Held { forks: 1 };
        let missed = Proof::Missed {
            passes: 212,
            forked: 3,
        };
        [
            with(Verdict::Clean, held, vec![]),
            with(Verdict::Unproven, missed, vec![]),
            with(Verdict::BaselineDamaged, held, vec![agent()]),
            swept(),
        ]
    }

    #[test]
    fn a_sweep_as_text() {
        insta::assert_snapshot!(sweep_text(&swept(), Mode::Sweep));
    }

    #[test]
    fn a_dry_run_as_text() {
        insta::assert_snapshot!(sweep_text(&rehearsed(), Mode::DryRun));
    }

    #[test]
    fn a_sweep_as_json() {
        insta::assert_snapshot!(sweep_json(&swept(), Mode::Sweep));
    }

    #[test]
    fn a_dry_run_as_json() {
        insta::assert_snapshot!(sweep_json(&rehearsed(), Mode::DryRun));
    }

    #[test]
    fn every_verdict_as_text_and_why() {
        let text: Vec<String> = every_verdict()
            .iter()
            .map(|sweep| {
                let why = why(sweep, Mode::Sweep).unwrap_or_else(|| "(no reason)".into());
                format!("{}{why}\n", sweep_text(sweep, Mode::Sweep))
            })
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn the_lines_for_runner() {
        insta::assert_snapshot!(sweep_lines(&swept()));
    }

    #[test]
    fn show_as_text_and_as_json() {
        let recorded = snapshot(vec![process(50), process(60)]);
        let running = [process(50), process(71)];
        let judgement = judge(&recorded, &running, &Sweeper::default());
        let show = Show {
            file: "/run/farmhand/cleanslate.json".as_ref(),
            snapshot: &recorded,
            facts: Facts {
                uptime_s: 3725,
                load: [0.5, 1.25, 2.0],
                memory_used_bytes: 3 << 30,
                memory_total_bytes: 8 << 30,
            },
            running: &running,
            judgement: &judgement,
        };
        insta::assert_snapshot!("show_as_text", show.text());
        insta::assert_snapshot!("show_as_json", show.json());
    }

    #[test]
    fn a_command_cannot_move_the_cursor_of_a_terminal() {
        let text = sweep_text(&swept(), Mode::Sweep);
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
    }
}
