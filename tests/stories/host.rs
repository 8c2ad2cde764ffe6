//! A full Debian host with the unit as packaged: it boots, takes jobs in a loop, reboots for a
//! listed one, and knows after the boot that it did. Jobs come from the local spool.

use std::path::{Path, PathBuf};
use std::time::Duration;

use farm_events::{Event, Outcome, Record, RunResult};
use farm_tests::nspawn::{self, DebianHost, WentDown};
use farm_tests::{programs, wait};

/// What the package does not know: who the job user is and where jobs and events are.
const CONFIGURATION: &str = r#"
[runner.backoff]
initial = "100ms"
max = "1s"

[jobs]
spool = "/var/spool/farmhand"
user = "builder"

[cleanslate]
users = ["builder"]

[[telemetry.jsonl]]
path = "/var/log/farmhand/events.jsonl"
"#;

/// Puts an old snapshot where `runner` will look for one, as a machine image made from a used host
/// does.
const OLD_SNAPSHOT_UNIT: &str = r#"
[Unit]
Before=runner.service
ConditionPathExists=/var/lib/old-snapshot.json
[Service]
Type=oneshot
ExecStart=/bin/install -D --mode=0600 /var/lib/old-snapshot.json /run/farmhand/cleanslate.json
[Install]
WantedBy=multi-user.target
"#;

const INSTALL: &str = r#"
root=$1 repository=$2 binaries=$3 extra=$4
"$repository/deploy/install" "$root" "$binaries"
cp "$extra/story.toml" "$root/etc/farmhand/runner.d/"
cp "$extra/old-snapshot.service" "$root/etc/systemd/system/"
chroot "$root" useradd --create-home builder
install -d --mode=0755 "$root/var/spool/farmhand/pending"
systemctl --root="$root" enable runner.service old-snapshot.service
"#;

/// A run takes some 50 ms when there is a job; a busy machine is given time.
const LIMIT: Duration = Duration::from_secs(60);

/// A host with `runner` installed and enabled, powered off.
fn host(name: &str) -> DebianHost {
    let extra = tempfile::tempdir().expect("a temporary directory");
    fs_err::write(extra.path().join("story.toml"), CONFIGURATION).expect("it is writable");
    fs_err::write(extra.path().join("old-snapshot.service"), OLD_SNAPSHOT_UNIT)
        .expect("it is writable");
    let host = DebianHost::new(name);
    host.while_off(
        INSTALL,
        &[&programs::repository(""), &binaries(), extra.path()],
    );
    host
}

/// Where both programs are.
fn binaries() -> PathBuf {
    let runner = programs::ours("runner");
    let cleanslate = programs::ours("cleanslate");
    assert_eq!(runner.parent(), cleanslate.parent());
    programs::build_dir()
}

fn events(host: &DebianHost) -> Vec<Record> {
    let written = host.read("/var/log/farmhand/events.jsonl");
    // A line that is being written has no end yet.
    let whole = written.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect()
}

/// Waits until `wanted` finds what it looks for among the events.
fn event<T>(host: &DebianHost, what: &str, wanted: impl Fn(&Record) -> Option<T>) -> T {
    wait::until(what, LIMIT, || {
        events(host)
            .iter()
            .find_map(&wanted)
            .ok_or_else(|| last_events(host))
    })
}

fn last_events(host: &DebianHost) -> String {
    let written = host.read("/var/log/farmhand/events.jsonl");
    let lines: Vec<_> = written.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

/// Submits a job as the file spool wants it: whole, by a rename.
fn submit(host: &DebianHost, id: &str, name: &str, script: &str) {
    let job = serde_json::json!({ "name": name, "command": ["sh", "-euc", script] });
    host.run(&format!(
        "cat >/var/spool/farmhand/{id}.new <<'END'\n{job}\nEND\nmv /var/spool/farmhand/{id}.new /var/spool/farmhand/pending/{id}.json"
    ));
}

fn job_result(host: &DebianHost, name: &str) -> String {
    event(
        host,
        &format!("the end of job `{name}`"),
        |record| match &record.event {
            Event::JobFinished(job) if job.job == name => Some(job.result.clone()),
            _ => None,
        },
    )
}

/// The main loop of the host has come to wait for a job.
fn waits_for_a_job(host: &DebianHost) {
    wait::until("the host to wait for a job", LIMIT, || {
        let status = text(
            &host
                .try_shell("runner --config /etc/farmhand/runner.toml status")
                .stdout,
        );
        if status.contains("51-spool-job") {
            Ok(())
        } else {
            Err(status)
        }
    });
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn boot_id(host: &DebianHost) -> String {
    host.shell("cat /proc/sys/kernel/random/boot_id")
        .trim()
        .to_owned()
}

fn property(host: &DebianHost, name: &str) -> String {
    host.shell(&format!("systemctl show --property={name} --value runner"))
        .trim()
        .to_owned()
}

#[test]
fn a_host_takes_jobs_without_a_reboot_and_reboots_for_a_listed_one() {
    if !nspawn::available() {
        return;
    }
    let mut host = host("bld-linux64-001");
    host.power_on();
    waits_for_a_job(&host);
    let first_boot = boot_id(&host);
    let machine = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").expect("there is one");
    assert_ne!(
        first_boot,
        machine.trim(),
        "the host must have a boot id of its own"
    );

    // Three jobs; the second leaves a process behind, and the third would fail beside it.
    submit(&host, "1", "linux64 build", "test \"$(id -un)\" = builder");
    assert_eq!(job_result(&host, "linux64 build"), "success");
    submit(
        &host,
        "2",
        "linux64 leak",
        "setsid sleep 100000 >/dev/null 2>&1 & sleep 0.1; pgrep -u builder sleep",
    );
    assert_eq!(job_result(&host, "linux64 leak"), "success");
    submit(&host, "3", "linux64 test", "! pgrep -u builder sleep");
    assert_eq!(job_result(&host, "linux64 test"), "success");
    runs_done(&host, 3);
    assert_eq!(
        boot_id(&host),
        first_boot,
        "no job but a listed one may cost a reboot"
    );
    let boots = events(&host)
        .iter()
        .filter(|record| matches!(record.event, Event::HostBooted(_)))
        .count();
    assert_eq!(boots, 1);
    assert_eq!(
        started_tasks_of_run(&events(&host), 2),
        [
            "1-cleanslate",
            "10-free-space",
            "50-buildbot-worker",
            "51-spool-job",
            "90-cleanslate",
            "99-reboot-decision"
        ]
    );

    // The snapshot of this boot, put aside where a boot does not reach it.
    waits_for_a_job(&host);
    host.run("cp /run/farmhand/cleanslate.json /var/lib/old-snapshot.json");
    host.run(
        "runner --config /etc/farmhand/runner.toml blacklist add '.*mochitest.*' --reason 'display server keeps state' --list jobs",
    );
    submit(&host, "4", "Linux64 debug test mochitest-1", "true");
    assert_eq!(host.went_down(LIMIT), WentDown::ToReboot);
    let before = events(&host);
    let decided = before
        .iter()
        .find(|record| matches!(&record.event, Event::RebootDecided(decision) if decision.decision == "reboot"))
        .expect("a reboot was decided before it was done");
    let Event::RebootDecided(decision) = &decided.event else {
        unreachable!("it was looked for")
    };
    assert_eq!(decision.reason.as_deref(), Some("job_listed"));
    assert_eq!(decision.pattern.as_deref(), Some(".*mochitest.*"));
    assert_eq!(
        decision.job.as_deref(),
        Some("Linux64 debug test mochitest-1")
    );
    let halted = before
        .iter()
        .find(|record| matches!(&record.event, Event::TaskFinished(task) if task.task == "halt"))
        .expect("the halt task was run");

    // The next boot.
    host.power_on();
    waits_for_a_job(&host);
    let second_boot = boot_id(&host);
    assert_ne!(second_boot, first_boot);
    let (booted, event_time) = event(
        &host,
        "the event of the second boot",
        |record| match &record.event {
            Event::HostBooted(booted) if booted.boot_id == second_boot => {
                Some((booted.clone(), record.time))
            }
            _ => None,
        },
    );
    assert_eq!(
        booted.previous_boot_id.as_deref(),
        Some(first_boot.as_str())
    );
    assert!(booted.halt_reason.is_some(), "{booted:?}");
    // The halt was noted after the decision and before the halt task had ended.
    let gap = i128::from(
        booted
            .gap_ms
            .expect("`runner` halted the host, so it knows the gap"),
    );
    let longest = event_time.duration_since(decided.time).as_millis();
    let shortest = event_time.duration_since(halted.time).as_millis();
    assert!(
        (shortest - 1..=longest + 1).contains(&gap),
        "{shortest} ≤ {gap} ≤ {longest} ms"
    );

    // The old snapshot lay there at boot, was refused, and a fresh one was taken.
    let first_run =
        host.shell("runner --config /etc/farmhand/runner.toml history --output 1-cleanslate");
    assert!(
        first_run.contains("boot"),
        "it must say what is wrong with the old snapshot: {first_run}"
    );
    let fresh = host.shell("cat /run/farmhand/cleanslate.json");
    assert!(fresh.contains(&second_boot), "{fresh}");
    assert!(!fresh.contains(&first_boot), "{fresh}");
    submit(&host, "5", "linux64 build again", "true");
    assert_eq!(job_result(&host, "linux64 build again"), "success");

    runs_done(&host, 4);
    waits_for_a_job(&host);
    assert_eq!(failures(&host), 0, "{}", last_events(&host));

    // Nor is it believed later.
    host.run("systemctl stop runner; cp /var/lib/old-snapshot.json /run/farmhand/cleanslate.json");
    assert_eq!(property(&host, "Result"), "success");
    let sweep = host.try_shell("cleanslate sweep --user builder");
    assert_eq!(sweep.status.code(), Some(78), "{}", text(&sweep.stderr));
    assert!(
        text(&sweep.stderr).contains("boot"),
        "{}",
        text(&sweep.stderr)
    );
}

/// Waits until so many runs, of all boots, have ended well.
fn runs_done(host: &DebianHost, count: usize) {
    wait::until("runs to end", LIMIT, || {
        let done = events(host)
            .iter()
            .filter(|record| matches!(&record.event, Event::RunFinished(run) if run.result == RunResult::Done))
            .count();
        if done >= count {
            Ok(())
        } else {
            Err(format!("{done} of {count} runs are done"))
        }
    });
}

/// Attempts that failed. The halt task is none of them: the shutdown that it orders ends it, sooner
/// or later.
fn failures(host: &DebianHost) -> usize {
    let failed = |record: &&Record| {
        matches!(&record.event, Event::TaskFinished(task)
            if task.outcome == Outcome::Retry && task.task != "halt")
    };
    events(host).iter().filter(failed).count()
}

/// The tasks that were started in run `number` (from 1), in their order.
fn started_tasks_of_run(events: &[Record], number: usize) -> Vec<String> {
    let mut runs: Vec<&str> = Vec::new();
    let mut tasks = Vec::new();
    for record in events {
        let Event::TaskStarted(started) = &record.event else {
            continue;
        };
        if runs.last() != Some(&started.run_id.as_str()) {
            runs.push(&started.run_id);
        }
        if runs.len() == number {
            tasks.push(started.task.clone());
        }
    }
    tasks
}

#[test]
fn the_unit_starts_a_killed_runner_anew_and_leaves_one_alone_that_ended_by_itself() {
    if !nspawn::available() {
        return;
    }
    let mut host = host("bld-linux64-002");
    host.power_on();
    waits_for_a_job(&host);
    assert_eq!(
        host.shell("systemd-analyze verify --man=no runner.service 2>&1"),
        ""
    );
    assert_eq!(property(&host, "SubState"), "running");

    // Killed: started anew.
    let killed = property(&host, "MainPID");
    host.run(&format!("kill -KILL {killed}"));
    wait::until("another runner", LIMIT, || {
        let pid = property(&host, "MainPID");
        if pid != "0" && pid != killed {
            Ok(())
        } else {
            Err(pid)
        }
    });
    waits_for_a_job(&host);
    submit(&host, "1", "after the kill", "true");
    assert_eq!(job_result(&host, "after the kill"), "success");

    // Reloaded: the same process goes on.
    let pid = property(&host, "MainPID");
    host.run("systemctl reload runner");
    submit(&host, "2", "after the reload", "true");
    assert_eq!(job_result(&host, "after the reload"), "success");
    assert_eq!(property(&host, "MainPID"), pid);

    // Drained in the middle of a job: the job ends well, and no other is taken.
    waits_for_a_job(&host);
    submit(
        &host,
        "3",
        "drained",
        "touch /tmp/began; while ! test -e /tmp/go; do sleep 0.05; done",
    );
    wait::until("the job to begin", LIMIT, || {
        if host.try_shell("test -e /tmp/began").status.success() {
            Ok(())
        } else {
            Err("it has not")
        }
    });
    submit(&host, "4", "never taken", "true");
    host.run("systemctl kill --signal=USR2 --kill-whom=main runner; touch /tmp/go");
    ended_with(&host, "success", "0");
    assert_eq!(job_result(&host, "drained"), "success");
    host.run("test -e /var/spool/farmhand/pending/4.json");

    // A fault of the configuration: refused, and not tried for ever.
    host.run("echo 'max_attemps = 3' >/etc/farmhand/runner.d/fault.toml");
    assert!(!host.try_shell("systemctl start runner").status.success());
    ended_with(&host, "exit-code", "78");
    host.run("rm /etc/farmhand/runner.d/fault.toml");

    // A task asked to stop: an end, not a fault.
    host.run(
        "printf '#!/bin/sh\\nexit 3\\n' >/etc/farmhand/tasks.d/2-stop; chmod 755 /etc/farmhand/tasks.d/2-stop; systemctl start runner",
    );
    ended_with(&host, "success", "3");

    // The host an image is made from takes no job.
    host.run(
        "rm /etc/farmhand/tasks.d/2-stop; touch /etc/farmhand/golden-image; systemctl start runner",
    );
    assert_eq!(property(&host, "ConditionResult"), "no");
    assert_eq!(property(&host, "ActiveState"), "inactive");
    host.run("systemctl poweroff");
    assert_eq!(host.went_down(LIMIT), WentDown::PoweredOff);
}

/// Waits until the unit is no longer active, which includes that nothing is about to start it again.
fn ended_with(host: &DebianHost, result: &str, code: &str) {
    wait::until("the unit to be inactive", LIMIT, || {
        let state = property(host, "ActiveState");
        if ["inactive", "failed"].contains(&state.as_str()) {
            Ok(())
        } else {
            Err(state)
        }
    });
    assert_eq!(property(host, "Result"), result);
    assert_eq!(property(host, "ExecMainStatus"), code);
}

#[test]
fn installing_again_keeps_what_belongs_to_the_host_and_removes_tasks_that_are_gone() {
    let root = tempfile::tempdir().expect("a temporary directory");
    let path = |path: &str| root.path().join(path);
    let install = || {
        let done = std::process::Command::new(programs::repository("deploy/install"))
            .arg(root.path())
            .arg(binaries())
            .output()
            .expect("deploy/install is a program");
        assert!(done.status.success(), "{}", text(&done.stderr));
        text(&done.stdout)
    };
    assert_eq!(install(), "");
    let shipped = fs_err::read_to_string(path("etc/farmhand/runner.toml"))
        .expect("it can be read and written");
    fs_err::write(path("etc/farmhand/runner.toml"), "# the host's own\n")
        .expect("it can be read and written");
    fs_err::write(path("etc/farmhand/tasks.d/20-own"), "#!/bin/sh\n")
        .expect("it can be read and written");
    fs_err::write(path("etc/farmhand/tasks.d/30-gone"), "#!/bin/sh\n")
        .expect("it can be read and written");
    add_line(&path("usr/share/farmhand/tasks.shipped"), "30-gone");

    let said = install();

    assert!(said.contains("runner.toml.dist"), "{said}");
    assert_eq!(
        fs_err::read_to_string(path("etc/farmhand/runner.toml"))
            .expect("it can be read and written"),
        "# the host's own\n"
    );
    assert_eq!(
        fs_err::read_to_string(path("etc/farmhand/runner.toml.dist"))
            .expect("it can be read and written"),
        shipped
    );
    assert!(path("etc/farmhand/tasks.d/20-own").exists());
    assert!(!path("etc/farmhand/tasks.d/30-gone").exists());
}

fn add_line(path: &Path, line: &str) {
    let before = fs_err::read_to_string(path).expect("it can be read and written");
    fs_err::write(path, format!("{before}{line}\n")).expect("it can be read and written");
}
