//! Any file name a file system allows works as a task; what is no task is left out and said.

use std::os::unix::ffi::OsStrExt as _;

use crate::host::{Host, name};

#[test]
fn hostile_file_names_run_and_are_recorded() {
    let host = Host::new();
    let long = [b"9-".as_slice(), &[b'x'; 253]].concat();
    let names: [&[u8]; 10] = [
        b"1 with spaces",
        b"2-with\nnewline",
        b"3-with'single",
        b"4-with\"double\\back",
        b"5-\xff\xfe-not-utf8",
        b"6-$(touch pwned)`touch pwned`",
        "7-ünïcödé-構築".as_bytes(),
        b"8-with=equals;semi&",
        &long,
        b"-leading-dash",
    ];
    for bytes in names {
        host.script(
            std::path::Path::new("tasks.d").join(name(bytes)),
            "printf '%s\\0' \"$RUNNER_TASK\" >>\"$HERE/ran\"; test \"$RUNNER_ATTEMPT\" -eq 2",
        );
    }
    host.script("hook", "printf '%s\\0' \"$1\" >>\"$HERE/hooked\"");
    let hook = host.path("hook").display().to_string();
    host.set(&format!("[runner]\ntask_hook = [\"{hook}\"]\n"));
    host.run_once().assert_code(0);

    let ran = fs_err::read(host.path("ran")).unwrap();
    let ran: Vec<&[u8]> = ran
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .collect();
    let mut expected: Vec<&[u8]> = Vec::new();
    // Without a number first, `1 with…` and `-leading…` come last, by their bytes.
    for bytes in names[1..9].iter().chain([&names[9], &names[0]]) {
        expected.extend([*bytes, *bytes]);
    }
    assert_eq!(ran, expected);
    assert!(!host.exists("pwned") && !host.exists("tasks.d/pwned"));
    for bytes in names {
        let text = name(bytes).to_string_lossy().into_owned();
        assert_eq!(host.attempts(&text).len(), 2, "{text:?}");
    }
    // Each argument of the hook is JSON, whatever is in the name.
    for argument in host.read("hooked").split_terminator('\0') {
        let argument: serde_json::Value = serde_json::from_str(argument).unwrap();
        assert!(argument["task"].is_string());
    }
    let order = host.run(&["order", "--format", "json"]);
    let order: serde_json::Value = serde_json::from_str(&order.out).unwrap();
    assert_eq!(order["order"].as_array().unwrap().len(), names.len());
    assert!(name(names[4]).as_bytes().contains(&0xff));
}

#[test]
fn what_is_no_task_is_left_out_and_said_once() {
    let host = Host::new();
    host.task("1-task", "");
    let leftovers = [
        ".hidden",
        "1-task~",
        "#1-task#",
        "1-task.bak",
        "1-task.orig",
        "1-task.rej",
        "1-task.swp",
        "1-task.dpkg-old",
        "1-task.dpkg-dist",
        "1-task.dpkg-new",
        "1-task.dpkg-tmp",
        "1-task.rpmsave",
        "1-task.rpmnew",
        "1-task.rpmorig",
        "lib.sh",
        "README.md",
    ];
    for file in leftovers {
        host.task(file, "");
    }
    fs_err::create_dir(host.path("tasks.d/__pycache__")).unwrap();
    fs_err::create_dir(host.path("tasks.d/2-directory")).unwrap();
    let ended = host.run(&["run", "-n", "3"]);
    ended.assert_code(0);
    assert_eq!(host.trace(), ["1-task", "1-task", "1-task"]);
    for file in leftovers.into_iter().chain(["__pycache__", "2-directory"]) {
        assert_eq!(
            ended.count(&format!("file=\"{file}\"")),
            1,
            "{file}\n{}",
            ended.err
        );
    }
}
