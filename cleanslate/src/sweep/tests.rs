//! Tests of the decisions, and of the loop on a host that plays a part.

use super::*;
use crate::process::Uids;
use crate::sample::{USER, id, process, restarted, snapshot};
use proptest::prelude::*;

fn leftovers_of(recorded: Vec<Process>, running: &[Process]) -> Vec<u32> {
    plan(&snapshot(recorded), running, &Sweeper::default())
        .iter()
        .map(|leftover| leftover.id.pid.0)
        .collect()
}

fn missing_of(recorded: Vec<Process>, running: &[Process]) -> Vec<u32> {
    judge(&snapshot(recorded), running, &Sweeper::default())
        .missing
        .iter()
        .map(|process| process.id.pid.0)
        .collect()
}

fn service(pid: u32) -> Process {
    Process {
        cgroup: Some("/system.slice/agent.service".into()),
        ..process(pid)
    }
}

#[test]
fn a_recorded_process_is_kept_whatever_it_calls_itself_now() {
    let renamed = Process {
        argv: vec!["other".into()],
        comm: "other".into(),
        exe: None,
        state: 'T',
        ..process(50)
    };
    assert!(leftovers_of(vec![process(50)], &[renamed]).is_empty());
}

#[test]
fn a_process_that_was_not_recorded_is_a_leftover() {
    assert_eq!(
        leftovers_of(vec![process(50)], &[process(50), process(71)]),
        [71]
    );
}

#[test]
fn with_nothing_recorded_everything_is_a_leftover() {
    assert_eq!(leftovers_of(vec![], &[process(72), process(71)]), [71, 72]);
}

#[test]
fn a_recorded_number_that_passed_to_another_process_is_a_leftover() {
    let mut other = process(50);
    other.id.start_time += 1;
    assert_eq!(leftovers_of(vec![process(50)], &[other.clone()]), [50]);
    assert_eq!(missing_of(vec![process(50)], &[other]), [50]);
}

#[test]
fn a_process_that_imitates_a_dead_recorded_one_is_a_leftover() {
    let imitation = restarted(&process(50), 71);
    assert_eq!(leftovers_of(vec![process(50)], &[imitation]), [71]);
}

#[test]
fn a_restarted_service_is_kept_and_nothing_is_missing() {
    let again = restarted(&service(50), 71);
    assert!(leftovers_of(vec![service(50)], std::slice::from_ref(&again)).is_empty());
    assert!(missing_of(vec![service(50)], &[again]).is_empty());
}

#[test]
fn a_second_process_of_a_service_that_still_runs_is_a_leftover() {
    assert_eq!(
        leftovers_of(vec![service(50)], &[service(50), service(71)]),
        [71]
    );
}

#[test]
fn a_group_may_be_as_large_as_recorded_and_not_larger() {
    let recorded = vec![service(50), service(51)];
    let two = [service(71), service(72)];
    let three = [service(71), service(73), service(72)];
    assert!(leftovers_of(recorded.clone(), &two).is_empty());
    assert_eq!(leftovers_of(recorded, &three), [73]);
}

#[test]
fn the_dead_are_neither_leftovers_nor_alive() {
    let zombie = |pid| Process {
        state: 'Z',
        ..process(pid)
    };
    assert!(leftovers_of(vec![], &[zombie(71)]).is_empty());
    assert_eq!(missing_of(vec![process(50)], &[zombie(50)]), [50]);
}

#[test]
fn a_zombie_whose_other_threads_live_is_a_leftover() {
    let leader = Process {
        state: 'Z',
        threads: 2,
        argv: vec![],
        exe: None,
        ..process(71)
    };
    assert_eq!(leftovers_of(vec![], &[leader]), [71]);
}

#[test]
fn a_setuid_program_of_a_user_is_a_leftover() {
    let root = Process {
        uids: Uids {
            real: USER,
            ..Uids::all(0)
        },
        ..process(71)
    };
    assert_eq!(leftovers_of(vec![], &[root]), [71]);
}

#[test]
fn what_must_never_be_swept_is_not() {
    let sweeper = Sweeper {
        line: [Pid(900), Pid(800)].into(),
        cgroup: None,
    };
    let never = [
        process(900),
        process(800),
        process(1),
        Process {
            kernel_thread: true,
            ..process(71)
        },
        Process {
            uids: Uids::all(USER + 1),
            ..process(72)
        },
        Process {
            uids: Uids::all(0),
            ..process(73)
        },
    ];
    assert!(plan(&snapshot(vec![]), &never, &sweeper).is_empty());
}

#[test]
fn the_worst_verdict_wins() {
    let held = Proof::Held { forks: 1 };
    let missed = Proof::Missed {
        passes: 1,
        forked: 1,
    };
    let table = [
        (false, false, held, Verdict::Clean),
        (false, false, missed, Verdict::Unproven),
        (false, true, held, Verdict::BaselineDamaged),
        (false, true, missed, Verdict::BaselineDamaged),
        (true, false, held, Verdict::Dirty),
        (true, false, missed, Verdict::Dirty),
        (true, true, held, Verdict::Dirty),
        (true, true, missed, Verdict::Dirty),
    ];
    for (remain, missing, proof, verdict) in table {
        assert_eq!(Verdict::of(remain, missing, proof), verdict);
    }
}

#[test]
fn a_job_may_follow_a_clean_or_unproven_sweep_only() {
    let codes = [
        Verdict::Clean,
        Verdict::Unproven,
        Verdict::Dirty,
        Verdict::BaselineDamaged,
    ]
    .map(Verdict::exit_code);
    assert_eq!(codes, [0, 0, 1, 1]);
}

const MS: Duration = Duration::from_millis(1);

fn quiet(passes: u32, since: Duration) -> Progress {
    Progress {
        quiet_passes: passes,
        quiet_since: Some(since),
        ..Progress::default()
    }
}

#[test]
fn a_quiet_pass_that_can_be_trusted_is_the_last() {
    assert_eq!(Progress::default().next(0, true, MS), Step::Finish);
}

#[test]
fn an_untrusted_quiet_pass_is_repeated_until_the_limit() {
    let enough = PROOF_PASSES - 1;
    let step = |passes, now| quiet(passes, Duration::ZERO).next(0, false, now);
    assert_eq!(step(enough, PROOF_LIMIT - MS), Step::LookAgain);
    assert_eq!(step(enough, PROOF_LIMIT), Step::Finish);
    assert_eq!(step(enough - 1, PROOF_LIMIT), Step::LookAgain);
}

#[test]
fn leftovers_are_asked_once_and_then_killed_until_the_limit() {
    let mut progress = Progress::default();
    assert_eq!(progress.next(3, true, Duration::ZERO), Step::Ask);
    assert_eq!(progress.next(3, true, MS), Step::Kill);
    assert_eq!(progress.next(3, false, STORM_LIMIT), Step::Kill);
    assert_eq!(progress.next(3, false, STORM_LIMIT + MS), Step::GiveUp);
}

/// A host whose processes follow a script.
struct Stage {
    running: Vec<Process>,
    /// Ends on nothing.
    immortal: Vec<Pid>,
    /// Ends on SIGKILL only.
    stubborn: Vec<Pid>,
    /// How often a new process appears when one is ended.
    heads: u32,
    /// Processes the rest of the host starts while the table is read.
    busy: u64,
    /// Untrusted passes after which the rest of the host falls quiet.
    busy_passes: u32,
    forks: u64,
    time: Duration,
    ended: Vec<(Vec<u32>, Manner)>,
}

impl Stage {
    fn new(running: Vec<Process>) -> Self {
        Self {
            running,
            immortal: vec![],
            stubborn: vec![],
            heads: 0,
            busy: 0,
            busy_passes: u32::MAX,
            forks: 1000,
            time: Duration::ZERO,
            ended: vec![],
        }
    }
}

impl Host for Stage {
    type Error = std::convert::Infallible;

    fn forks(&mut self) -> Result<u64, Self::Error> {
        Ok(self.forks)
    }

    fn scan(&mut self, _detail: Detail) -> Result<(Vec<Process>, Sweeper), Self::Error> {
        if self.busy_passes > 0 {
            self.busy_passes -= 1;
            self.forks += self.busy;
        }
        self.time += MS;
        Ok((self.running.clone(), Sweeper::default()))
    }

    fn end(
        &mut self,
        leftovers: &[Leftover],
        manner: Manner,
    ) -> Result<Vec<Option<Ended>>, Self::Error> {
        self.time += MS;
        let pids = leftovers.iter().map(|leftover| leftover.id.pid.0).collect();
        self.ended.push((pids, manner));
        let fates = leftovers
            .iter()
            .map(|leftover| {
                let pid = leftover.id.pid;
                if self.immortal.contains(&pid) {
                    Some(Ended::Survived)
                } else if manner == Manner::Kill || self.stubborn.contains(&pid) {
                    Some(Ended::Killed)
                } else {
                    Some(Ended::Terminated)
                }
            })
            .collect();
        let next = leftovers.last().unwrap().id.pid.0 + 1;
        self.running.retain(|process| {
            self.immortal.contains(&process.id.pid)
                || !leftovers.iter().any(|leftover| leftover.id == process.id)
        });
        if self.heads > 0 {
            self.heads -= 1;
            self.forks += 1;
            self.running.push(process(next));
        }
        Ok(fates)
    }

    fn now(&mut self) -> Duration {
        self.time
    }
}

const GRACE: Duration = Duration::from_millis(500);

fn sweep(stage: &mut Stage, recorded: Vec<Process>) -> Sweep {
    let Ok(sweep) = run(stage, &snapshot(recorded), GRACE);
    sweep
}

#[test]
fn a_clean_host_is_found_clean_in_one_pass() {
    let mut stage = Stage::new(vec![process(50)]);
    let sweep = sweep(&mut stage, vec![process(50)]);
    assert_eq!(sweep.verdict, Verdict::Clean);
    assert_eq!(sweep.proof, Proof::Held { forks: 1000 });
    assert_eq!(sweep.tiers.look.rounds, 1);
    assert!(stage.ended.is_empty() && sweep.leftovers.is_empty());
}

#[test]
fn all_leftovers_are_asked_together_with_one_grace_period() {
    let mut stage = Stage::new((71..91).map(process).collect());
    stage.stubborn = vec![Pid(80)];
    let sweep = sweep(&mut stage, vec![]);
    assert_eq!(sweep.verdict, Verdict::Clean);
    assert_eq!(
        (sweep.count(Ended::Terminated), sweep.count(Ended::Killed)),
        (19, 1)
    );
    assert_eq!(
        stage.ended,
        [((71..91).collect(), Manner::Ask { grace: GRACE })]
    );
    assert_eq!((sweep.tiers.ask.rounds, sweep.tiers.ask.leftovers), (1, 20));
}

#[test]
fn what_appears_after_the_grace_period_is_killed_at_once() {
    let mut stage = Stage::new(vec![process(71)]);
    stage.heads = 5;
    let sweep = sweep(&mut stage, vec![]);
    assert_eq!(sweep.verdict, Verdict::Clean);
    let manners: Vec<Manner> = stage.ended.iter().map(|(_, manner)| *manner).collect();
    assert_eq!(manners[0], Manner::Ask { grace: GRACE });
    assert_eq!(manners[1..], [Manner::Kill; 5]);
    assert_eq!(sweep.leftovers.len(), 6);
}

#[test]
fn a_storm_that_never_ends_is_dirty_within_its_limit() {
    let mut stage = Stage::new(vec![process(71)]);
    stage.heads = u32::MAX;
    let sweep = sweep(&mut stage, vec![]);
    assert_eq!(sweep.verdict, Verdict::Dirty);
    assert_eq!(sweep.count(Ended::Survived), 1);
    assert!(stage.time >= STORM_LIMIT && stage.time < STORM_LIMIT + 10 * MS);
}

#[test]
fn a_process_that_survives_is_signalled_once_and_reported_once() {
    let mut stage = Stage::new(vec![process(71), process(72)]);
    stage.immortal = vec![Pid(72)];
    let sweep = sweep(&mut stage, vec![]);
    assert_eq!(sweep.verdict, Verdict::Dirty);
    assert_eq!(sweep.leftovers.len(), 2);
    assert_eq!(sweep.leftovers[1].1, Some(Ended::Survived));
    assert_eq!(stage.ended.len(), 1);
}

#[test]
fn a_host_that_starts_processes_all_the_time_is_unproven() {
    let mut stage = Stage::new(vec![]);
    stage.busy = 3;
    let sweep = sweep(&mut stage, vec![]);
    assert_eq!(sweep.verdict, Verdict::Unproven);
    // Each pass takes a millisecond here, and the first ends after one.
    assert_eq!(
        sweep.proof,
        Proof::Missed {
            passes: 501,
            forked: 3
        }
    );
}

#[test]
fn one_undisturbed_pass_among_many_is_proof() {
    let mut stage = Stage::new(vec![]);
    stage.busy = 3;
    stage.busy_passes = 200;
    let sweep = sweep(&mut stage, vec![]);
    assert_eq!(sweep.verdict, Verdict::Clean);
    assert_eq!(sweep.tiers.look.rounds, 201);
}

#[test]
fn a_recorded_process_that_is_gone_damages_the_baseline() {
    let sweep = sweep(&mut Stage::new(vec![process(71)]), vec![process(50)]);
    assert_eq!(sweep.verdict, Verdict::BaselineDamaged);
    assert_eq!(sweep.missing.len(), 1);
    assert_eq!(sweep.missing[0].id, id(50));
}

#[test]
fn a_rehearsal_finds_the_same_and_ends_nothing() {
    let running = vec![process(50), process(71), process(72)];
    let recorded = snapshot(vec![process(50)]);
    let mut stage = Stage::new(running.clone());
    let Ok(rehearsed) = rehearse(&mut stage, &recorded);
    assert!(stage.ended.is_empty());
    assert_eq!(stage.running, running);
    assert_eq!(rehearsed.verdict, Verdict::Dirty);
    let planned: Vec<Leftover> = rehearsed
        .leftovers
        .into_iter()
        .map(|(found, _)| found)
        .collect();
    assert_eq!(planned, plan(&recorded, &running, &Sweeper::default()));
}

/// A process of few numbers, users, parents and cgroups, so that they often coincide.
fn any_process() -> impl Strategy<Value = Process> {
    (
        (1_u32..12, 0_u64..3, 0_u32..3, 0_u32..3),
        (0..4_usize, 0..3_usize, 0_u64..3, 1_u32..3),
        any::<bool>(),
    )
        .prop_map(
            |((pid, start, real, effective), (parent, cgroup, inode, threads), kernel)| {
                let mut process = process(pid);
                process.id.start_time = start;
                process.uids.real = USER + real;
                process.uids.effective = USER + effective;
                process.uids.saved = USER + real;
                process.uids.filesystem = USER + effective;
                process.parent = [None, Some(id(1)), Some(id(2)), Some(id(3))][parent];
                process.cgroup =
                    [None, Some("/".into()), Some("/a.service".into())][cgroup].clone();
                process.exe.as_mut().unwrap().inode = inode;
                process.threads = threads;
                process.state = ['S', 'Z', 'T'][cgroup];
                process.kernel_thread = kernel && inode == 2;
                process
            },
        )
}

/// Processes with numbers of their own, as in a process table.
fn any_table() -> impl Strategy<Value = Vec<Process>> {
    proptest::collection::vec(any_process(), 0..12).prop_map(|mut processes| {
        processes.sort_by_key(|process| process.id.pid);
        processes.dedup_by_key(|process| process.id.pid);
        processes
    })
}

proptest! {
    #[test]
    fn the_order_of_the_table_plays_no_part(
        recorded in any_table(), running in any_table(), by in 0_usize..12
    ) {
        let snapshot = snapshot(recorded);
        let mut turned = running.clone();
        turned.rotate_left(if running.is_empty() { 0 } else { by % running.len() });
        turned.reverse();
        let sweeper = Sweeper { line: [Pid(3)].into(), cgroup: None };
        prop_assert_eq!(plan(&snapshot, &running, &sweeper), plan(&snapshot, &turned, &sweeper));
    }

    #[test]
    fn nothing_that_must_be_kept_is_ever_planned(recorded in any_table(), running in any_table()) {
        let snapshot = snapshot(recorded);
        let sweeper = Sweeper { line: [Pid(3)].into(), cgroup: None };
        for leftover in plan(&snapshot, &running, &sweeper) {
            prop_assert!(snapshot.processes.iter().all(|process| process.id != leftover.id));
            prop_assert!(leftover.id.pid != Pid(1) && leftover.id.pid != Pid(3));
            prop_assert!(snapshot.users.contains(leftover.uid));
            let process = running.iter().find(|process| process.id == leftover.id).unwrap();
            prop_assert!(!process.kernel_thread && !process.is_dead());
        }
    }

    #[test]
    fn no_group_is_kept_larger_than_recorded(recorded in any_table(), running in any_table()) {
        use crate::key::ProcessKey;
        let snapshot = snapshot(recorded);
        let standings = judge(&snapshot, &running, &Sweeper::default()).standings;
        let restarted: Vec<Process> = with_standing(&running, &standings, Standing::Restarted)
            .map(|(_, process)| process.clone())
            .collect();
        let alive = standings.iter().filter(|&&standing| standing == Standing::Baseline).count();
        prop_assert!(alive + restarted.len() <= snapshot.processes.len());
        for group in ProcessKey::count(&restarted) {
            let recorded = snapshot.groups.iter().find(|other| other.key == group.key);
            prop_assert!(recorded.is_some_and(|recorded| group.count <= recorded.count));
        }
    }

    #[test]
    fn every_recorded_process_is_alive_replaced_or_missing(
        recorded in any_table(), running in any_table()
    ) {
        let snapshot = snapshot(recorded);
        let judgement = judge(&snapshot, &running, &Sweeper::default());
        let of = |wanted| judgement.standings.iter().filter(|&&found| found == wanted).count();
        prop_assert_eq!(
            of(Standing::Baseline) + of(Standing::Restarted) + judgement.missing.len(),
            snapshot.processes.len()
        );
    }
}
