//! Bad input: one clear error, the documented exit code, and nothing changed.

use std::process::Output;

use crate::sandbox::{JOB, OTHER, Sandbox, content, words};

const FILE: &str = "/run/farmhand/cleanslate.json";

/// A sandbox with a snapshot and a leftover that must outlive every refusal.
fn with_leftover() -> Option<(Sandbox, u32)> {
    let sandbox = Sandbox::new()?;
    sandbox.snapshot();
    let leftover = sandbox.sleeper(JOB);
    Some((sandbox, leftover))
}

/// Asserts exit code 78, one line that says each of `parts`, and nothing on standard output.
fn assert_refused(output: &Output, parts: &[&str]) {
    let words = words(output);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(words.lines().count(), 1, "{words}");
    assert!(output.stdout.is_empty(), "{output:?}");
    for part in parts {
        assert!(words.contains(part), "`{part}` is not in: {words}");
    }
}

/// Asserts that sweep, dry run and show refuse the snapshot, and that the leftover lives.
fn assert_snapshot_refused(sandbox: &Sandbox, leftover: u32, parts: &[&str]) {
    for command in [
        "sweep",
        "sweep --dry-run",
        "sweep --report /run/output",
        "show",
    ] {
        let output = sandbox.cleanslate(&format!("{command} --user {JOB}"));
        assert_refused(&output, &[&[FILE], parts].concat());
    }
    assert!(sandbox.is_alive(leftover));
    assert!(!sandbox.path("/run/output").exists());
}

#[test]
fn a_missing_snapshot_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    sandbox.sh_ok(&format!("rm {FILE}"));
    let parts = [
        "does not exist",
        "type `cleanslate snapshot --user 61001 --file",
    ];
    assert_snapshot_refused(&sandbox, leftover, &parts);
    sandbox.sh_ok("rmdir /run/farmhand");
    assert_snapshot_refused(&sandbox, leftover, &parts);
    assert!(!sandbox.path("/run/farmhand").exists());
}

#[test]
fn an_empty_snapshot_is_refused_and_not_taken_for_none() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    sandbox.sh_ok(&format!(": > {FILE}"));
    let parts = [
        "is empty, expected a snapshot",
        "cleanslate snapshot --replace --user 61001",
    ];
    assert_snapshot_refused(&sandbox, leftover, &parts);
    assert_refused(
        &sandbox.cleanslate(&format!("snapshot --user {JOB}")),
        &parts,
    );
    assert!(content(&sandbox.snapshot_file()).is_empty());
}

#[test]
fn a_truncated_snapshot_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    sandbox.sh_ok(&format!("truncate -s 300 {FILE}"));
    assert_snapshot_refused(&sandbox, leftover, &["is truncated at line", "--replace"]);
}

#[test]
fn a_snapshot_of_another_version_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    sandbox.sh_ok(&format!("sed -i 's/\"version\": 1/\"version\": 2/' {FILE}"));
    assert_snapshot_refused(&sandbox, leftover, &["format version `2`, expected `1`"]);
}

#[test]
fn a_snapshot_of_another_boot_is_refused_but_may_be_replaced() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let boot = sandbox.sh_ok("cat /proc/sys/kernel/random/boot_id");
    sandbox.sh_ok(&format!(
        "sed -i 's/{boot}/11111111-2222-3333-4444-555555555555/' {FILE}"
    ));
    let parts = [
        "was taken in boot `11111111-2222-3333-4444-555555555555`",
        &format!("expected the running boot `{boot}`"),
        "type `cleanslate snapshot --user 61001",
    ];
    assert_snapshot_refused(&sandbox, leftover, &parts);
    sandbox.snapshot();
    assert_eq!(sandbox.sweep("").leftovers(), 0);
}

#[test]
fn a_snapshot_of_another_pid_namespace_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let output = sandbox.sh(&format!(
        "unshare --pid --fork --mount-proc $CLEANSLATE sweep --user {JOB}"
    ));
    assert_refused(&output, &["was taken in PID namespace", FILE]);
    assert!(sandbox.is_alive(leftover));
}

#[test]
fn a_proc_of_another_pid_namespace_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let output = sandbox.sh(&format!(
        "unshare --pid --fork $CLEANSLATE sweep --user {JOB}"
    ));
    assert_refused(
        &output,
        &["`/proc` shows another PID namespace", "mount -t proc"],
    );
    assert!(sandbox.is_alive(leftover));
}

#[test]
fn a_snapshot_of_other_users_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let victim = sandbox.sleeper(OTHER);
    let output = sandbox.cleanslate(&format!("sweep --user {OTHER} --user {JOB}"));
    assert_refused(
        &output,
        &["is of users `61001`, expected `61001, 61002`", FILE],
    );
    assert!(sandbox.is_alive(leftover) && sandbox.is_alive(victim));
}

#[test]
fn a_snapshot_behind_a_symbolic_link_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    sandbox.sh_ok(&format!(
        "mv {FILE} /run/farmhand/real && ln -s real {FILE}"
    ));
    assert_snapshot_refused(
        &sandbox,
        leftover,
        &["is a symbolic link", "`rm /run/farmhand"],
    );
    assert_refused(
        &sandbox.cleanslate(&format!("snapshot --user {JOB}")),
        &["is a symbolic link"],
    );
}

#[test]
fn a_directory_behind_a_symbolic_link_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    sandbox.sh_ok("mv /run/farmhand /run/real && ln -s real /run/farmhand");
    assert_snapshot_refused(
        &sandbox,
        leftover,
        &["is below `/run/farmhand`", "symbolic link"],
    );
}

#[test]
fn a_snapshot_others_could_have_written_is_refused() {
    let faults = [
        (format!("chown {JOB} {FILE}"), "belongs to uid `61001`"),
        (format!("chmod 0660 {FILE}"), "has mode `0660`"),
        (format!("chmod 0644 {FILE}"), "has mode `0644`"),
        (
            format!("rm {FILE} && mkfifo -m 0600 {FILE}"),
            "is no regular file",
        ),
        (
            format!("rm {FILE} && mkdir -m 0600 {FILE}"),
            "is no regular file",
        ),
        (
            "chmod 0777 /run/farmhand".into(),
            "`/run/farmhand`, which has mode `0777`",
        ),
        (
            "chmod 1777 /run/farmhand".into(),
            "`/run/farmhand`, which has mode `1777`",
        ),
        (
            format!("chown {JOB} /run/farmhand"),
            "`/run/farmhand`, which belongs to uid `61001`",
        ),
        ("chmod 0777 /run".into(), "`/run`, which has mode `0777`"),
    ];
    for (damage, part) in faults {
        let Some((sandbox, leftover)) = with_leftover() else {
            return;
        };
        sandbox.sh_ok(&damage);
        assert_snapshot_refused(&sandbox, leftover, &[part]);
    }
}

#[test]
fn a_second_snapshot_in_one_boot_is_refused_unless_told_to_replace() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let before = content(&sandbox.snapshot_file());
    let output = sandbox.cleanslate(&format!("snapshot --user {JOB}"));
    assert_refused(
        &output,
        &[
            "was already taken in this boot",
            "snapshot --replace --user",
        ],
    );
    assert_eq!(content(&sandbox.snapshot_file()), before);
    sandbox.sh_ok(&format!("$CLEANSLATE snapshot --replace --user {JOB}"));
    assert_eq!(sandbox.sweep("").leftovers(), 0);
    assert!(sandbox.is_alive(leftover));
}

#[test]
fn a_snapshot_is_written_for_root_alone_and_leaves_no_draft() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    sandbox.sh_ok(&format!("umask 0; $CLEANSLATE snapshot --user {JOB}"));
    let listed = sandbox.sh_ok("cd /run/farmhand && stat -c '%a %u %n' . $(ls -A)");
    assert_eq!(listed, "700 0 .\n600 0 cleanslate.json");
}

#[test]
fn a_directory_above_the_default_is_not_made_up() {
    let Some(sandbox) = Sandbox::new() else {
        return;
    };
    let output = sandbox.cleanslate(&format!("snapshot --user {JOB} --file /run/a/b/c.json"));
    assert_refused(
        &output,
        &[
            "/run/a/b/c.json",
            "directory `/run/a` does not exist",
            "mkdir",
        ],
    );
    assert!(!sandbox.path("/run/a").exists());
}

#[test]
fn a_full_disk_leaves_the_old_snapshot() {
    let Some((sandbox, _)) = with_leftover() else {
        return;
    };
    let before = content(&sandbox.snapshot_file());
    let output = sandbox.sh(&format!(
        "mount -o remount,size=64k /run; dd if=/dev/zero of=/run/farmhand/filler bs=4k 2>/dev/null; \
         $CLEANSLATE snapshot --replace --user {JOB}"
    ));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(words(&output).contains(FILE));
    assert_eq!(content(&sandbox.snapshot_file()), before);
    assert_eq!(sandbox.sh_ok("ls -A /run/farmhand | wc -l"), "2");
}

#[test]
fn root_and_the_own_user_are_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    for user in ["0", "root"] {
        let output = sandbox.cleanslate(&format!("sweep --user {user}"));
        assert_refused(&output, &[&format!("user `{user}` is root"), "`--user`"]);
    }
    // Set-user-id root, run by the user whose processes it is to sweep.
    let output = sandbox.sh(&format!(
        "cp $CLEANSLATE /run/cleanslate && chmod 4755 /run/cleanslate && \
         setpriv --reuid {JOB} --clear-groups /run/cleanslate sweep --user {JOB}"
    ));
    assert_refused(
        &output,
        &["user `61001` (uid 61001) is the one running cleanslate"],
    );
    assert!(sandbox.is_alive(leftover));
}

#[test]
fn an_unknown_user_is_refused() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let output = sandbox.cleanslate(&format!("sweep --user {JOB} --user no-such-user"));
    assert_refused(&output, &["unknown user `no-such-user`", "getent passwd"]);
    assert!(sandbox.is_alive(leftover));
}

#[test]
fn without_root_nothing_is_tried() {
    let Some((sandbox, leftover)) = with_leftover() else {
        return;
    };
    let output = sandbox.sh(&format!(
        "cp $CLEANSLATE /run/cleanslate && \
         setpriv --reuid {OTHER} --clear-groups /run/cleanslate sweep --user {JOB}"
    ));
    assert_refused(&output, &["runs as uid `61002`, expected root", "sudo"]);
    assert!(sandbox.is_alive(leftover));
}

#[test]
fn a_report_that_is_no_regular_file_is_refused_before_anything_ends() {
    let faults = [
        (
            "echo precious > /run/precious; ln -s precious /run/output",
            "it is a symbolic link",
        ),
        ("mkfifo /run/output", "cannot be appended to"),
        ("mkdir /run/output", "cannot be appended to"),
        ("ln -s /nowhere /run/output", "it is a symbolic link"),
    ];
    for (damage, part) in faults {
        let Some((sandbox, leftover)) = with_leftover() else {
            return;
        };
        sandbox.sh_ok(damage);
        let output = sandbox.cleanslate(&format!("sweep --user {JOB} --report /run/output"));
        assert_refused(
            &output,
            &["report `/run/output`", part, "expected a regular file"],
        );
        assert!(sandbox.is_alive(leftover));
        let precious = fs_err::read_to_string(sandbox.path("/run/precious"));
        assert!(precious.is_err() || precious.unwrap() == "precious\n");
    }
}

#[test]
fn a_wrong_command_line_ends_with_64_and_help_with_0() {
    let run = |line: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_cleanslate"))
            .args(line.split_whitespace())
            .output()
            .unwrap()
    };
    for line in [
        "",
        "sweap",
        "sweep",
        "sweep --user a/b",
        "sweep --user 61001 --grace x",
        "--frob",
    ] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(64), "`{line}`: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    for line in [
        "--help",
        "--version",
        "sweep --help",
        "completions bash",
        "man",
    ] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(0), "`{line}`: {output:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty());
    }
}
