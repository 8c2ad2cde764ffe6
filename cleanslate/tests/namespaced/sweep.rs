//! The real binary against real processes: what it ends, and what it leaves alone.

use crate::sandbox::{JOB, OTHER, Sandbox, content};

#[test]
fn a_leftover_is_terminated_and_the_recorded_process_kept() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    sandbox.snapshot();
    let leftover = sandbox.sleeper(JOB);
    let swept = sandbox.sweep("");
    swept.assert_clean();
    assert_eq!(
        (swept.ended(leftover), swept.leftovers()),
        ("terminated", 1)
    );
    assert_eq!(sandbox.processes_of(JOB), [recorded]);
}

#[test]
fn the_answer_has_the_documented_shape() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let leftover = sandbox.sleeper(JOB);
    let swept = sandbox.sweep("");
    let found = &swept.json["leftovers"][0];
    assert_eq!(found["pid"], leftover);
    assert_eq!(found["command"], "sleep 1000");
    assert_eq!(found["ended"], "terminated");
    assert_eq!(found["uid"], JOB);
    assert!(found["start_time"].is_u64() && swept.json["duration_ms"].is_u64());
    assert_eq!(swept.json["dry_run"], false);
    assert_eq!(swept.json["tiers"]["ask"]["leftovers"], 1);
}

#[test]
fn a_process_that_ignores_sigterm_is_killed() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let stubborn = sandbox.start(JOB, "trap '' TERM; ready; while :; do sleep 1000; done");
    let swept = sandbox.sweep("--grace 50ms");
    swept.assert_clean();
    assert_eq!(swept.ended(stubborn), "killed");
    assert!(sandbox.processes_of(JOB).is_empty());
}

#[test]
fn a_process_may_clean_up_during_the_grace_period() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let polite = sandbox.start(
        JOB,
        "trap ': > /run/ready/cleaned; exit' TERM; ready; while :; do sleep 0.01; done",
    );
    let swept = sandbox.sweep("--grace 10s");
    swept.assert_clean();
    assert_eq!(swept.ended(polite), "terminated");
    assert!(sandbox.path("/run/ready/cleaned").exists());
}

#[test]
fn twenty_processes_that_ignore_sigterm_share_one_grace_period() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    for _ in 0..20 {
        sandbox.start(JOB, "trap '' TERM; ready; exec sleep 1000");
    }
    let swept = sandbox.sweep("--grace 400ms");
    swept.assert_clean();
    let ask = &swept.json["tiers"]["ask"];
    assert_eq!((&ask["rounds"], &ask["leftovers"]), (&1.into(), &20.into()));
    let killed = swept.json["leftovers"].as_array().unwrap();
    assert!(
        killed.iter().all(|leftover| leftover["ended"] == "killed"),
        "{swept:?}"
    );
    // One after another they would take 8 s.
    let took = ask["duration_us"].as_u64().unwrap();
    assert!((400_000..4_000_000).contains(&took), "{took} µs");
}

#[test]
fn a_stopped_process_is_continued_so_that_it_can_end() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let stopped = sandbox.sleeper(JOB);
    sandbox.sh_ok(&format!("kill -STOP {stopped}"));
    let swept = sandbox.sweep("--grace 10s");
    swept.assert_clean();
    assert_eq!(swept.ended(stopped), "terminated");
}

#[test]
fn a_process_in_a_session_of_its_own_is_found() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    sandbox.start(
        JOB,
        "setsid sh -c '(sleep 1000 &) ; sleep 1000' & ready; exit",
    );
    sandbox.wait_until("three processes run", || {
        sandbox.processes_of(JOB).len() == 3
    });
    sandbox.sweep("").assert_clean();
    assert!(sandbox.processes_of(JOB).is_empty());
}

#[test]
fn a_process_that_takes_the_name_of_a_dead_recorded_one_is_ended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    sandbox.snapshot();
    sandbox.kill(recorded);
    // Same program file, same user, same arguments, same parent (init), same cgroup.
    let imitation = sandbox.sleeper(JOB);
    let swept = sandbox.sweep("");
    assert_eq!(swept.ended(imitation), "terminated");
    assert_eq!((swept.verdict(), swept.code), ("baseline_damaged", 1));
    assert_eq!(swept.json["missing"][0]["pid"], recorded);
}

#[test]
fn a_process_with_the_arguments_of_a_living_recorded_one_is_ended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    sandbox.snapshot();
    let imitation = sandbox.start(
        JOB,
        "ready; exec bash -c 'exec -a sleep tail -f /dev/null 1000'",
    );
    sandbox.sweep("").assert_clean();
    assert!(!sandbox.is_alive(imitation));
    assert_eq!(sandbox.processes_of(JOB), [recorded]);
}

#[test]
fn a_recorded_process_that_renames_itself_is_kept() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.start(
        JOB,
        "exec perl -e '$SIG{USR1} = sub { exec qw(sleep 1000) }; \
         open my $ready, q(>), qq(/run/ready/$$); sleep 1 while 1'",
    );
    sandbox.snapshot();
    sandbox.sh_ok(&format!("kill -USR1 {recorded}"));
    sandbox.wait_until("it runs sleep", || {
        sandbox.comm(recorded).as_deref() == Some("sleep")
    });
    sandbox.sweep("").assert_clean();
    assert!(sandbox.is_alive(recorded));
}

const SUPERVISOR: &str = "ready; while :; do setpriv --reuid 61001 --regid 61001 --clear-groups \
                          sleep 1000; done";

#[test]
fn a_service_that_its_supervisor_started_again_is_kept() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let supervisor = sandbox.start(0, SUPERVISOR);
    let child = || sandbox.child_of(supervisor, "sleep");
    sandbox.wait_until("the service runs", || child().is_some());
    let before = child().unwrap();
    sandbox.snapshot();
    sandbox.kill(before);
    sandbox.wait_until("the service runs again", || child().is_some());
    let after = child().unwrap();
    let leftover = sandbox.sleeper(JOB);
    let swept = sandbox.sweep("");
    swept.assert_clean();
    assert_eq!(swept.ended(leftover), "terminated");
    assert_eq!(sandbox.processes_of(JOB), [after]);
}

#[test]
fn a_recorded_process_that_is_gone_is_reported() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    sandbox.snapshot();
    sandbox.kill(recorded);
    let swept = sandbox.sweep("");
    assert_eq!((swept.verdict(), swept.code), ("baseline_damaged", 1));
    assert_eq!(swept.json["missing"][0]["pid"], recorded);
    assert_eq!(swept.json["missing"][0]["command"], "sleep 1000");
}

#[test]
fn processes_of_other_users_and_of_root_are_left_alone() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let other = sandbox.sleeper(OTHER);
    let root = sandbox.sleeper(0);
    sandbox.sleeper(JOB);
    sandbox.sweep("").assert_clean();
    assert!(sandbox.is_alive(other) && sandbox.is_alive(root));
    assert!(sandbox.processes_of(JOB).is_empty());
}

#[test]
fn several_users_are_swept_at_once() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let both = format!("--user {OTHER} --user {JOB}");
    sandbox.sh_ok(&format!("$CLEANSLATE snapshot {both}"));
    sandbox.sleeper(OTHER);
    sandbox.sleeper(JOB);
    sandbox.sh_ok(&format!("$CLEANSLATE sweep {both}"));
    assert!(sandbox.processes_of(JOB).is_empty() && sandbox.processes_of(OTHER).is_empty());
}

#[test]
fn a_setuid_program_that_a_job_started_is_ended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.sh_ok("cp \"$(command -v sleep)\" /run/su-sleep && chmod 4755 /run/su-sleep");
    sandbox.snapshot();
    let pid = sandbox.start(JOB, "ready; exec /run/su-sleep 1000");
    sandbox.wait_until("it has root's rights", || {
        let status = fs_err::read_to_string(sandbox.path(&format!("/proc/{pid}/status")));
        status
            .unwrap_or_default()
            .contains(&format!("Uid:\t{JOB}\t0\t0\t0"))
    });
    let swept = sandbox.sweep("");
    swept.assert_clean();
    assert_eq!(swept.ended(pid), "terminated");
}

#[test]
fn the_number_of_a_recorded_process_protects_no_other() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    sandbox.snapshot();
    sandbox.kill(recorded);
    let recycled = sandbox.sh_ok(&format!(
        "echo $(({recorded} - 1)) > /proc/sys/kernel/ns_last_pid; \
         setpriv --reuid {JOB} --regid {JOB} --clear-groups sleep 1000 >/dev/null 2>&1 & echo $!"
    ));
    assert_eq!(
        recycled,
        recorded.to_string(),
        "the kernel gave another number"
    );
    sandbox.wait_until("sleep runs", || {
        sandbox.comm(recorded).as_deref() == Some("sleep")
    });
    let swept = sandbox.sweep("");
    assert_eq!(swept.ended(recorded), "terminated");
    assert_eq!(swept.verdict(), "baseline_damaged");
}

#[test]
fn a_zombie_is_no_leftover() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let parent = sandbox.start(OTHER, "ready; exec sleep 1000");
    sandbox.snapshot();
    // Its parent, which the sweep leaves alone, never reaps it.
    let negligent = sandbox.start(
        0,
        "setpriv --reuid 61001 --clear-groups sleep 0 & ready; exec sleep 1000",
    );
    let zombies = format!(
        "for p in $(cat /proc/{negligent}/task/{negligent}/children); do \
         grep -h State /proc/$p/status; done"
    );
    sandbox.wait_until("its child is a zombie", || {
        sandbox.sh_ok(&zombies).contains("zombie")
    });
    let swept = sandbox.sweep("");
    swept.assert_clean();
    assert_eq!(swept.leftovers(), 0);
    assert!(sandbox.is_alive(parent));
}

#[test]
fn a_zombie_whose_other_thread_lives_is_ended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let leader = sandbox.start(
        0,
        "exec python3 -c \"
import ctypes, os, threading, time
os.setgroups([]); os.setresgid(61001, 61001, 61001); os.setresuid(61001, 61001, 61001)
threading.Thread(target=time.sleep, args=(1000,)).start()
open('/run/ready/%d' % os.getpid(), 'w').close()
ctypes.CDLL(None).pthread_exit(None)
\"",
    );
    sandbox.wait_until("its first thread has ended", || {
        let status = fs_err::read_to_string(sandbox.path(&format!("/proc/{leader}/status")));
        let status = status.unwrap_or_default();
        status.contains("State:\tZ") && status.contains("Threads:\t2")
    });
    let swept = sandbox.sweep("");
    swept.assert_clean();
    assert!(matches!(swept.ended(leader), "terminated" | "killed"));
    assert!(!sandbox.is_alive(leader));
}

#[test]
fn a_storm_of_forking_processes_is_ended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    // Each process starts one more and exits; no process number lives long.
    sandbox.start(JOB, "ready; exec perl -e 'while (1) { exit if fork }'");
    let swept = sandbox.sweep("--grace 20ms");
    swept.assert_clean();
    assert!(swept.leftovers() >= 1);
    assert_eq!(sandbox.processes_of(JOB), [0; 0]);
}

#[test]
fn the_sweeper_spares_those_who_called_it() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.sh_ok("cp \"$(command -v setpriv)\" /run/become && chmod 4755 /run/become");
    sandbox.snapshot();
    let binary = env!("CARGO_BIN_EXE_cleanslate");
    let leftover = sandbox.sleeper(JOB);
    // The caller is a process of the swept user and was not recorded.
    let caller = sandbox.start(
        JOB,
        &format!(
            "/run/become --reuid 0 --regid 0 --clear-groups {binary} sweep --user {JOB}; \
             echo $? > /run/ready/code; ready; while :; do sleep 1000; done"
        ),
    );
    let code = fs_err::read_to_string(sandbox.path("/run/ready/code")).unwrap();
    assert_eq!(code, "0\n");
    assert!(sandbox.is_alive(caller) && !sandbox.is_alive(leftover));
}

#[test]
fn more_leftovers_than_files_may_be_open_are_ended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    let many = sandbox.start(
        JOB,
        "for i in $(seq 150); do sleep 1000 & done; ready; wait",
    );
    sandbox.sh_ok(&format!("ulimit -n 64; $CLEANSLATE sweep --user {JOB}"));
    assert!(sandbox.processes_of(JOB).is_empty() && !sandbox.is_alive(many));
}

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    sandbox.snapshot();
    let leftover = sandbox.sleeper(JOB);
    let before = content(&sandbox.snapshot_file());
    let swept = sandbox.sweep("--dry-run --report /run/output");
    assert_eq!((swept.verdict(), swept.code), ("dirty", 1));
    assert_eq!((swept.ended(leftover), swept.leftovers()), ("-", 1));
    assert_eq!(sandbox.processes_of(JOB), [recorded, leftover]);
    assert_eq!(content(&sandbox.snapshot_file()), before);
    assert!(!sandbox.path("/run/output").exists());
    let real = sandbox.sweep("");
    assert_eq!((real.ended(leftover), real.leftovers()), ("terminated", 1));
}

#[test]
fn the_numbers_for_runner_are_appended() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.snapshot();
    sandbox.sleeper(JOB);
    sandbox.start(JOB, "trap '' TERM; ready; exec sleep 1000");
    sandbox.sh_ok("echo job.name=x > /run/output");
    let swept = sandbox.sweep("--grace 50ms --report /run/output");
    let lines = fs_err::read_to_string(sandbox.path("/run/output")).unwrap();
    let duration = format!("sweep.duration_ms={}", swept.json["duration_ms"]);
    let verdict = format!("sweep.verdict={}", swept.verdict());
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "job.name=x",
            &verdict,
            "sweep.leftovers=2",
            "sweep.terminated=1",
            "sweep.killed=1",
            "sweep.survived=0",
            &duration
        ]
    );
}

#[test]
fn show_tells_the_recorded_from_the_leftovers() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let recorded = sandbox.sleeper(JOB);
    let gone = sandbox.sleeper(JOB);
    sandbox.snapshot();
    sandbox.kill(gone);
    let leftover = sandbox.sleeper(JOB);
    let text = sandbox.sh_ok(&format!("$CLEANSLATE show --user {JOB} --format json"));
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    let standings: Vec<_> = shown["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| (process["id"]["pid"].as_u64().unwrap(), &process["standing"]))
        .collect();
    assert_eq!(
        standings,
        [
            (u64::from(recorded), &"baseline".into()),
            (u64::from(leftover), &"leftover".into())
        ]
    );
    assert_eq!(shown["missing"][0]["id"]["pid"], gone);
    assert!(shown["host"]["memory_total_bytes"].as_u64().unwrap() > 0);
    assert!(sandbox.is_alive(leftover));
    let table = sandbox.sh_ok(&format!("$CLEANSLATE show --user {JOB}"));
    assert!(
        table.contains("MISSING") && table.contains("leftover"),
        "{table}"
    );
}
