//! Texts of `/proc`: the kernel writes them, processes choose parts of them.
#![no_main]

use cleanslate::table;
use libfuzzer_sys::fuzz_target;
use runner::child::directory_of;

fuzz_target!(|data: &[u8]| {
    check_stat(data);
    check_argv(data);
    let _uids = table::parse_uids(data);
    if let Some(forks) = table::parse_forks(data) {
        let line = format!("processes {forks}\n");
        assert_eq!(table::parse_forks(line.as_bytes()), Some(forks));
    }
    if let Some(cgroup) = table::parse_cgroup(data) {
        assert!(!cgroup.0.contains(&b'\n'));
    }
    let text = String::from_utf8_lossy(data);
    let (memberships, mounts) = text.split_once("\n\n").unwrap_or((&text, ""));
    if let Some(directory) = directory_of(memberships, mounts) {
        assert!(mounts.contains(" - cgroup2"), "{}", directory.display());
    }
});

/// Whatever a process is called, its fields are where they are.
fn check_stat(data: &[u8]) {
    if let Ok(stat) = table::parse_stat(data) {
        assert!(stat.state.is_ascii_alphabetic());
        let name = [b"(", stat.comm.0.as_slice(), b")"].concat();
        assert!(data.windows(name.len()).any(|part| part == name));
    }
    let fields = b") S 1 4711 4711 0 -1 4194304 117 0 0 0 0 0 0 0 20 0 1 0 890123 5644288 216\n";
    let name = &data[..data.len().min(15)];
    let stat = table::parse_stat(&[b"4711 (", name, fields].concat()).expect("a whole line");
    assert_eq!(
        (stat.comm.0.as_slice(), stat.start_time, stat.state),
        (name, 890_123, 'S')
    );
}

fn check_argv(data: &[u8]) {
    let arguments = table::parse_argv(data);
    let joined = arguments
        .iter()
        .map(|argument| argument.0.as_slice())
        .collect::<Vec<_>>()
        .join(&0);
    assert_eq!(joined, data.strip_suffix(b"\0").unwrap_or(data));
}
