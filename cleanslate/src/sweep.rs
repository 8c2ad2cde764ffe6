//! Which processes are leftovers, and when the host counts as clean.
//!
//! [`judge`] and [`plan`] decide from plain data. [`run`] repeats look, decide, end until a pass
//! over the process table finds nothing *and* can be trusted. A pass can be trusted if the
//! kernel's count of started processes did not move while it ran: a process that was there all the
//! time cannot have been overlooked, and none can have been added. (A seqlock, with the process
//! table as the data.) On a host where something else starts processes all the time no pass may
//! qualify; then the verdict is `unproven` and says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::key::{Sweeper, is_restart};
use crate::process::{Pid, Process, ProcessId};
use crate::snapshot::Snapshot;
use crate::table::Detail;
use crate::users::Users;

/// How long passes that find nothing are repeated until one can be trusted. A pass over 200
/// processes takes 2 ms, so this is some hundred tries: enough to find a gap on a host that starts
/// a few hundred processes a second, and short against a job.
pub const PROOF_LIMIT: Duration = Duration::from_millis(500);

/// Passes tried at least, for hosts with so many processes that a pass takes long.
pub const PROOF_PASSES: u32 = 10;

/// How long processes that appear after the others were ended are killed one round after another.
/// A storm of up to 64 forking lineages ended within 10 ms in most trials or not at all.
pub const STORM_LIMIT: Duration = Duration::from_secs(2);

/// What a process is to a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It was recorded and is still the same process.
    Baseline,
    /// A recorded process ended, and its supervisor started this one in its place.
    Restarted,
    /// It should not be there.
    Leftover,
    /// It has ended and waits to be reaped by its parent.
    Dead,
    /// Not to be judged: the sweeper and those above it, init, the kernel's own, other users'.
    Exempt,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Baseline => "baseline",
            Self::Restarted => "restarted",
            Self::Leftover => "leftover",
            Self::Dead => "dead",
            Self::Exempt => "exempt",
        })
    }
}

/// What every running process is, and which recorded ones are gone.
#[derive(Debug)]
pub struct Judgement<'a> {
    /// Standing of each process, in the order they were given.
    pub standings: Vec<Standing>,
    /// Recorded processes that are gone and were not started again.
    pub missing: Vec<&'a Process>,
}

/// A process that should not be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Which process.
    pub id: ProcessId,
    /// Which of the users it belongs to.
    pub uid: u32,
    /// What a person calls it.
    pub command: String,
}

impl Leftover {
    fn new(process: &Process, users: &Users) -> Option<Self> {
        Some(Self {
            id: process.id,
            uid: users.owner(process.uids)?,
            command: process.command(),
        })
    }
}

/// Judges every process of `running` against `snapshot`.
///
/// In this order: dead; the same process as recorded (number and start time), whatever it calls
/// itself now; exempt; a restart of a recorded process that is gone, each recorded process being
/// replaced once, oldest candidate first; else a leftover. The order of `running` plays no part.
#[must_use]
pub fn judge<'a>(snapshot: &'a Snapshot, running: &[Process], sweeper: &Sweeper) -> Judgement<'a> {
    let recorded: BTreeSet<ProcessId> = snapshot
        .processes
        .iter()
        .map(|process| process.id)
        .collect();
    let mut standings: Vec<Standing> = running
        .iter()
        .map(|process| {
            if process.is_dead() {
                Standing::Dead
            } else if recorded.contains(&process.id) {
                Standing::Baseline
            } else if is_exempt(snapshot, process, sweeper) {
                Standing::Exempt
            } else {
                Standing::Leftover
            }
        })
        .collect();

    let alive: BTreeSet<ProcessId> = with_standing(running, &standings, Standing::Baseline)
        .map(|(_, process)| process.id)
        .collect();
    let mut missing: Vec<&Process> = snapshot
        .processes
        .iter()
        .filter(|process| !alive.contains(&process.id))
        .collect();

    let mut unknown: Vec<(usize, &Process)> =
        with_standing(running, &standings, Standing::Leftover).collect();
    unknown.sort_by_key(|(_, process)| (process.id.start_time, process.id.pid));
    for (index, process) in unknown {
        let taker = snapshot.taker_cgroup.as_ref();
        if let Some(place) = missing
            .iter()
            .position(|gone| is_restart(gone, process, taker, sweeper))
        {
            missing.remove(place);
            standings[index] = Standing::Restarted;
        }
    }
    Judgement { standings, missing }
}

/// The processes of `running` to be ended, by number.
#[must_use]
pub fn plan(snapshot: &Snapshot, running: &[Process], sweeper: &Sweeper) -> Vec<Leftover> {
    leftovers(
        snapshot,
        running,
        &judge(snapshot, running, sweeper).standings,
    )
}

fn leftovers(snapshot: &Snapshot, running: &[Process], standings: &[Standing]) -> Vec<Leftover> {
    let mut leftovers: Vec<Leftover> = with_standing(running, standings, Standing::Leftover)
        .filter_map(|(_, process)| Leftover::new(process, &snapshot.users))
        .collect();
    leftovers.sort_by_key(|leftover| leftover.id);
    leftovers
}

fn is_exempt(snapshot: &Snapshot, process: &Process, sweeper: &Sweeper) -> bool {
    process.kernel_thread
        || process.id.pid == Pid::INIT
        || sweeper.line.contains(&process.id.pid)
        || !snapshot.users.own(process.uids)
}

fn with_standing<'a>(
    running: &'a [Process],
    standings: &[Standing],
    wanted: Standing,
) -> impl Iterator<Item = (usize, &'a Process)> {
    let standings = standings.to_vec();
    running
        .iter()
        .enumerate()
        .filter(move |(index, _)| standings[*index] == wanted)
}

/// What a sweep found the host to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No leftover, every recorded process there, and no process can have been overlooked.
    Clean,
    /// As clean, except that a process may have been overlooked.
    Unproven,
    /// A leftover is still there.
    Dirty,
    /// No leftover, but a recorded process is gone.
    BaselineDamaged,
}

impl Verdict {
    /// The verdict as in JSON, events and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Unproven => "unproven",
            Self::Dirty => "dirty",
            Self::BaselineDamaged => "baseline_damaged",
        }
    }

    /// Exit code of `cleanslate sweep`: the next job may start after 0.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Clean | Self::Unproven => 0,
            Self::Dirty | Self::BaselineDamaged => 1,
        }
    }

    /// The worst that applies.
    const fn of(leftovers_remain: bool, baseline_is_missing: bool, proof: Proof) -> Self {
        match (leftovers_remain, baseline_is_missing, proof) {
            (true, _, _) => Self::Dirty,
            (false, true, _) => Self::BaselineDamaged,
            (false, false, Proof::Missed { .. }) => Self::Unproven,
            (false, false, Proof::Held { .. }) => Self::Clean,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a leftover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Within the grace period, after SIGTERM.
    Terminated,
    /// After SIGKILL.
    Killed,
    /// Not at all: it is still there.
    Survived,
}

/// How leftovers are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// SIGTERM and SIGCONT to all, one grace period for all of them together, then SIGKILL.
    Ask {
        /// The grace period.
        grace: Duration,
    },
    /// SIGKILL at once.
    Kill,
}

/// Whether the last pass can have overlooked a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// No: the count of started processes stood still.
    Held {
        /// The count.
        forks: u64,
    },
    /// Yes: processes were started during each of the passes.
    Missed {
        /// Passes that found nothing.
        passes: u32,
        /// Processes started during the last one.
        forked: u64,
    },
}

/// A stage of a sweep, with what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tier {
    /// How often it ran.
    pub rounds: u32,
    /// Leftovers it was given.
    pub leftovers: usize,
    /// How long it took in all.
    #[serde(rename = "duration_us", serialize_with = "as_micros")]
    pub duration: Duration,
}

fn as_micros<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// The stages of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tiers {
    /// Passes over the process table.
    pub look: Tier,
    /// SIGTERM, grace and SIGKILL for what the first pass found.
    pub ask: Tier,
    /// SIGKILL for what later passes found.
    pub kill: Tier,
}

/// What a sweep found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// What the host is now.
    pub verdict: Verdict,
    /// Every leftover and how it ended; nothing of how in a dry run.
    pub leftovers: Vec<(Leftover, Option<Ended>)>,
    /// Recorded processes that are gone and were not started again.
    pub missing: Vec<Process>,
    /// Whether a process can have been overlooked.
    pub proof: Proof,
    /// What each stage cost.
    pub tiers: Tiers,
    /// How long the sweep took.
    pub duration: Duration,
}

impl Sweep {
    /// How many leftovers ended this way.
    #[must_use]
    pub fn count(&self, how: Ended) -> usize {
        self.leftovers
            .iter()
            .filter(|(_, ended)| *ended == Some(how))
            .count()
    }
}

/// What a sweep needs of the host.
pub trait Host {
    /// Why it could not be done.
    type Error;

    /// Processes started since boot.
    ///
    /// # Errors
    /// If the host does not tell.
    fn forks(&mut self) -> Result<u64, Self::Error>;

    /// The processes of the users, and what this sweeper is.
    ///
    /// # Errors
    /// If the host does not tell.
    fn scan(&mut self, detail: Detail) -> Result<(Vec<Process>, Sweeper), Self::Error>;

    /// Ends leftovers; for each, how it ended, or nothing if it was gone already.
    ///
    /// # Errors
    /// If nothing can be ended at all.
    fn end(
        &mut self,
        leftovers: &[Leftover],
        manner: Manner,
    ) -> Result<Vec<Option<Ended>>, Self::Error>;

    /// Time that only goes forward, from any start.
    fn now(&mut self) -> Duration;
}

/// What to do after a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Ask,
    Kill,
    LookAgain,
    /// Nothing found, and that can be trusted or not.
    Finish,
    /// Leftovers appear faster than they can be killed.
    GiveUp,
}

/// What the steps so far were.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    asked: bool,
    /// When killing round by round began.
    storm_since: Option<Duration>,
    /// When the first pass ended that found nothing.
    quiet_since: Option<Duration>,
    quiet_passes: u32,
}

impl Progress {
    fn next(&mut self, found: usize, settled: bool, now: Duration) -> Step {
        if found > 0 && !self.asked {
            self.asked = true;
            return Step::Ask;
        }
        if found > 0 {
            let since = *self.storm_since.get_or_insert(now);
            return if now - since < STORM_LIMIT {
                Step::Kill
            } else {
                Step::GiveUp
            };
        }
        self.quiet_passes += 1;
        let since = *self.quiet_since.get_or_insert(now);
        let tried = self.quiet_passes >= PROOF_PASSES && now - since >= PROOF_LIMIT;
        if settled || tried {
            Step::Finish
        } else {
            Step::LookAgain
        }
    }
}

/// What one pass over the process table found.
struct Pass {
    leftovers: Vec<Leftover>,
    missing: Vec<Process>,
    forks: u64,
    /// Processes started while it ran.
    forked: u64,
}

/// Ends every process that `snapshot` does not explain, and says what the host is then.
///
/// # Errors
/// If the host cannot be read. What was found until then may have been ended.
pub fn run<H: Host>(host: &mut H, snapshot: &Snapshot, grace: Duration) -> Result<Sweep, H::Error> {
    let start = host.now();
    let mut tiers = Tiers::default();
    let mut progress = Progress::default();
    // Each leftover once: what survived is found again by every pass.
    let mut fates: BTreeMap<ProcessId, (Leftover, Ended)> = BTreeMap::new();
    loop {
        let mut pass = timed(host, &mut tiers.look, 0, |host| look(host, snapshot))?;
        pass.leftovers
            .retain(|leftover| !fates.contains_key(&leftover.id));
        let found = pass.leftovers.len();
        let step = progress.next(found, pass.forked == 0, host.now());
        tracing::debug!(
            found,
            forked = pass.forked,
            ?step,
            "looked over the process table"
        );
        let (tier, manner) = match step {
            Step::Ask => (&mut tiers.ask, Manner::Ask { grace }),
            Step::Kill => (&mut tiers.kill, Manner::Kill),
            Step::LookAgain => continue,
            Step::Finish | Step::GiveUp => {
                for leftover in pass.leftovers {
                    fates.insert(leftover.id, (leftover, Ended::Survived));
                }
                let proof = proof(pass.forks, pass.forked, progress.quiet_passes);
                let remain = fates.values().any(|(_, ended)| *ended == Ended::Survived);
                return Ok(Sweep {
                    verdict: Verdict::of(remain, !pass.missing.is_empty(), proof),
                    leftovers: fates
                        .into_values()
                        .map(|(leftover, ended)| (leftover, Some(ended)))
                        .collect(),
                    missing: pass.missing,
                    proof,
                    tiers,
                    duration: host.now() - start,
                });
            }
        };
        let ended = timed(host, tier, found, |host| host.end(&pass.leftovers, manner))?;
        for (leftover, ended) in pass.leftovers.into_iter().zip(ended) {
            if let Some(ended) = ended {
                fates.insert(leftover.id, (leftover, ended));
            }
        }
    }
}

/// Finds what [`run`] would end, and changes nothing. The verdict is about the host as it is.
///
/// # Errors
/// If the host cannot be read.
pub fn rehearse<H: Host>(host: &mut H, snapshot: &Snapshot) -> Result<Sweep, H::Error> {
    let start = host.now();
    let mut tiers = Tiers::default();
    let mut progress = Progress::default();
    loop {
        let pass = timed(host, &mut tiers.look, 0, |host| look(host, snapshot))?;
        // What is found stays, so every pass counts as one that finds nothing new.
        let step = progress.next(0, pass.forked == 0, host.now());
        if step == Step::LookAgain {
            continue;
        }
        let proof = proof(pass.forks, pass.forked, progress.quiet_passes);
        return Ok(Sweep {
            verdict: Verdict::of(!pass.leftovers.is_empty(), !pass.missing.is_empty(), proof),
            leftovers: pass
                .leftovers
                .into_iter()
                .map(|leftover| (leftover, None))
                .collect(),
            missing: pass.missing,
            proof,
            tiers,
            duration: host.now() - start,
        });
    }
}

/// One pass. Program files, cgroups and parents are read only if some recorded process is gone:
/// only then can one of the unknown be its successor.
fn look<H: Host>(host: &mut H, snapshot: &Snapshot) -> Result<Pass, H::Error> {
    let forks = host.forks()?;
    let (mut running, mut sweeper) = host.scan(Detail::Named)?;
    let mut judgement = judge(snapshot, &running, &sweeper);
    if !judgement.missing.is_empty() && judgement.standings.contains(&Standing::Leftover) {
        (running, sweeper) = host.scan(Detail::Full)?;
        judgement = judge(snapshot, &running, &sweeper);
    }
    Ok(Pass {
        leftovers: leftovers(snapshot, &running, &judgement.standings),
        missing: judgement.missing.into_iter().cloned().collect(),
        forks,
        forked: host.forks()? - forks,
    })
}

fn proof(forks: u64, forked: u64, passes: u32) -> Proof {
    match forked {
        0 => Proof::Held { forks },
        forked => Proof::Missed { passes, forked },
    }
}

fn timed<H: Host, T>(
    host: &mut H,
    tier: &mut Tier,
    leftovers: usize,
    action: impl FnOnce(&mut H) -> Result<T, H::Error>,
) -> Result<T, H::Error> {
    let start = host.now();
    let done = action(host)?;
    tier.rounds += 1;
    tier.leftovers += leftovers;
    tier.duration += host.now() - start;
    Ok(done)
}

#[cfg(test)]
mod tests;
