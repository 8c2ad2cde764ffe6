//! What each end of a task asks for, and what becomes of a task that cannot even be started.

use farm_events::{Outcome, TaskFinished};
use nix::sys::signal::Signal;

use crate::host::{Host, is_root};

/// One attempt of one task, in a run that goes on whatever comes of it.
fn single(host: &Host, task: &str) -> TaskFinished {
    let mut attempts = host.attempts(task);
    assert_eq!(attempts.len(), 1, "{task}");
    attempts.remove(0)
}

#[test]
fn every_exit_code_has_its_outcome() {
    let host = Host::new();
    let mut settings = String::from("[runner]\nmax_attempts = 1\n");
    let codes = (0..=255).filter(|code| *code != 3);
    for code in codes.clone() {
        host.script(format!("tasks.d/{code}-exits"), &format!("exit {code}"));
        settings.push_str(&format!(
            "[tasks.{code}-exits]\ncontinue_on_failure = true\n"
        ));
    }
    host.set(&settings);
    host.run_once().assert_code(0);
    let history = host.history();
    for code in codes {
        let name = format!("{code}-exits");
        let ends: Vec<_> = history
            .iter()
            .filter_map(|event| match event {
                farm_events::Event::TaskFinished(end) if end.task == name => Some(end),
                _ => None,
            })
            .collect();
        let expected = if code == 0 {
            Outcome::Ok
        } else {
            Outcome::Retry
        };
        assert_eq!(ends.len(), 1, "{name}");
        assert_eq!(
            (ends[0].exit_code, ends[0].outcome),
            (Some(code), expected),
            "{name}"
        );
    }
}

#[test]
fn exit_code_3_stops_and_does_not_halt() {
    let host = Host::new();
    host.task("1-stops", "exit 3");
    host.task("2-never", "");
    host.task("halt", "");
    host.run(&["run"]).assert_code(3);
    assert_eq!(host.trace(), ["1-stops"]);
    assert_eq!(single(&host, "1-stops").outcome, Outcome::Exit);
}

#[test]
fn every_signal_that_kills_is_a_failure_with_its_number() {
    let host = Host::new();
    let harmless = [
        Signal::SIGCHLD,
        Signal::SIGCONT,
        Signal::SIGURG,
        Signal::SIGWINCH,
        Signal::SIGSTOP,
        Signal::SIGTSTP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ];
    let mut deadly: Vec<i32> = Signal::iterator()
        .filter(|signal| !harmless.contains(signal))
        .map(|signal| signal as i32)
        .collect();
    // The last real-time signal.
    deadly.push(64);
    let mut settings = String::from("[runner]\nmax_attempts = 1\n");
    for signal in &deadly {
        host.script(
            format!("tasks.d/{signal}-dies"),
            &format!("kill -{signal} $$; sleep 1000"),
        );
        settings.push_str(&format!(
            "[tasks.{signal}-dies]\ncontinue_on_failure = true\nmay_halt = true\n"
        ));
    }
    host.set(&settings);
    host.run_once().assert_code(0);
    assert_eq!(deadly.len(), 31 - harmless.len() + 1);
    for signal in deadly {
        let end = single(&host, &format!("{signal}-dies"));
        assert_eq!(
            (end.signal, end.exit_code, end.outcome),
            (Some(signal), None, Outcome::Retry)
        );
    }
}

/// A host whose task `1-broken` cannot be started, and what became of its attempts.
fn not_started(prepare: impl FnOnce(&Host)) -> String {
    let host = Host::new();
    host.task("2-never", "");
    host.task("halt", "");
    prepare(&host);
    let ended = host.run_once();
    ended.assert_code(1);
    assert_eq!(host.trace(), ["halt"]);
    let attempts = host.attempts("1-broken");
    assert_eq!(attempts.len(), 3, "{}", ended.err);
    assert!(
        attempts
            .iter()
            .all(|end| end.outcome == Outcome::Retry && end.exit_code.is_none())
    );
    let error = attempts[0].error.clone().unwrap();
    assert!(ended.err.contains("could not be started"), "{}", ended.err);
    host.anonymous(&error)
}

#[test]
fn a_missing_interpreter_is_a_failure_of_the_attempt() {
    let error = not_started(|host| {
        host.write("tasks.d/1-broken", "#!/nonexistent/python2\n");
        host.chmod("tasks.d/1-broken", 0o755);
    });
    assert!(
        error.starts_with(
            "the interpreter in the first line of `/host/tasks.d/1-broken`: No such file"
        ),
        "{error}"
    );
}

#[test]
fn a_configured_interpreter_that_is_not_there_is_a_failure_that_names_it() {
    for interpreter in ["/nonexistent/python2", "python2-nonexistent"] {
        let error = not_started(|host| {
            host.write("tasks.d/1-broken", "");
            host.set(&format!(
                "[tasks.broken]\ninterpreter = \"{interpreter}\"\n"
            ));
        });
        assert!(error.contains(interpreter), "{error}");
    }
}

#[test]
fn a_file_without_the_executable_bit_is_a_failure_of_the_attempt() {
    let error = not_started(|host| host.write("tasks.d/1-broken", "#!/bin/sh\n"));
    assert!(error.contains("Permission denied"), "{error}");
}

#[test]
fn a_script_without_a_first_line_that_names_its_shell_is_a_failure_of_the_attempt() {
    for content in ["echo hello\n".as_bytes(), b"", b"\x7fELF but no more"] {
        let error = not_started(|host| {
            host.write("tasks.d/1-broken", content);
            host.chmod("tasks.d/1-broken", 0o755);
        });
        assert!(error.contains("Exec format error"), "{error}");
    }
}

#[test]
fn an_environment_that_is_too_large_is_a_failure_of_the_attempt() {
    let error = not_started(|host| {
        host.task("1-broken", "");
        // One text of an environment may be 128 KiB long (MAX_ARG_STRLEN).
        host.set(&format!(
            "[tasks.broken.env]\nLONG = \"{}\"\n",
            "x".repeat(200_000)
        ));
    });
    assert!(error.contains("Argument list too long"), "{error}");
}

#[test]
fn a_task_that_is_open_for_writing_is_tried_again() {
    let host = Host::new();
    // Only a binary: scripts are read by their interpreter.
    fs_err::copy("/bin/true", host.path("tasks.d/1-busy")).unwrap();
    host.chmod("tasks.d/1-busy", 0o755);
    host.set(
        "[runner]\nmax_attempts = 1000\n[runner.backoff]\ninitial = \"5ms\"\nmax = \"10ms\"\n",
    );
    let writer = fs_err::OpenOptions::new()
        .append(true)
        .open(host.path("tasks.d/1-busy"))
        .unwrap();
    let mut running = host.start(&["run", "-n", "1"]);
    running.until("two attempts", |host| host.attempts("1-busy").len() >= 2);
    drop(writer);
    running.wait().assert_code(0);
    let attempts = host.attempts("1-busy");
    assert!(
        attempts[0]
            .error
            .as_ref()
            .unwrap()
            .contains("Text file busy")
    );
    assert_eq!(attempts.last().unwrap().outcome, Outcome::Ok);
}

#[test]
fn a_program_that_the_tasks_user_may_not_run_is_a_failure_of_the_attempt() {
    if !is_root("running as another user") {
        return;
    }
    let host = Host::new();
    host.task("1-locked", "");
    host.chmod("tasks.d/1-locked", 0o700);
    host.set("[tasks.locked]\nuser = \"nobody\"\n");
    let ended = host.run_once();
    ended.assert_code(1);
    assert_eq!(host.attempts("1-locked").len(), 3);
    assert!(
        host.read("state/output/1-locked")
            .contains("Permission denied")
    );
}
