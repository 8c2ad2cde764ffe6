//! The store cannot be written: nothing is launched, and when it can be again all goes on.

use std::path::Path;

use farm_tests::process::Process;
use farm_tests::services::Postgres;
use farm_tests::{programs, wait};

use crate::farm::{Farm, SOON, stop};

const LEADS: &str = "this provisioner leads";
const NO_STORE: &str = "the store cannot be used";

/// Takes the lock that every writer of the file needs, and keeps it.
const LOCK: &str = r#"
import signal, sqlite3, sys
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
signal.pause()
"#;

#[test]
fn while_another_process_locks_the_database_nothing_is_launched_and_afterwards_all_is() {
    let farm = Farm::new();
    let provisioner = farm.start();
    farm.wait_until_said(LEADS, 1);
    let file = farm.path("main.state/provisioner.sqlite");
    let log = farm.path("lock.log");
    let arguments = ["-c", LOCK, file.to_str().expect("our own name")];
    let mut holder = Process::start(
        &programs::installed("python3"),
        arguments,
        Path::new("/"),
        &log,
    );
    holder.ready(SOON, || {
        let said = fs_err::read_to_string(&log).map_err(|error| error.to_string())?;
        said.contains("locked").then_some(()).ok_or(said)
    });

    farm.wait_for_jobs(&[("build", 3)]);
    farm.wait_until_said(NO_STORE, 1);
    assert_eq!(farm.fake.count("CreateFleet"), 0);
    // Who looks is not kept from it.
    assert!(farm.ps().is_empty());

    drop(holder);
    farm.wait_until_alive(3);
    stop(provisioner);
    farm.assert_in_order(3);
}

#[test]
fn on_a_full_disk_nothing_is_launched_and_once_there_is_room_all_is() {
    let farm = Farm::new();
    let state = farm.path("main.state");
    fs_err::create_dir(&state).expect("our own directory");
    let small = "mount -t tmpfs -o size=2m,mode=700 none \"$0\" && exec \"$@\"";
    let (state, program) = (state.display().to_string(), programs::ours("provisioner"));
    let config = farm.path("main.toml").display().to_string();
    let program = program.display().to_string();
    let arguments = [
        "--mount", "/bin/sh", "-c", small, &state, &program, "--config", &config, "run",
    ];
    let provisioner = Process::start(
        &programs::installed("unshare"),
        arguments,
        Path::new("/"),
        &farm.path("main.log"),
    );
    farm.wait_until_said(LEADS, 1);

    let root = format!("/proc/{}/root{state}/filler", provisioner.pid());
    fill(Path::new(&root));
    farm.wait_until_said(NO_STORE, 1);
    assert_eq!(farm.fake.count("CreateFleet"), 0);
    farm.wait_for_jobs(&[("build", 3)]);
    farm.wait_until_said(NO_STORE, 3);
    assert_eq!(farm.fake.count("CreateFleet"), 0);
    let said = farm.said(NO_STORE);
    assert!(
        said.iter().all(|line| line.contains("no space is left")),
        "{said:?}"
    );

    fs_err::remove_file(root).expect("it was written");
    farm.wait_until_alive(3);
    stop(provisioner);
    assert_eq!(farm.fake.instances().len(), 3);
}

/// Writes until the disk is full.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = fs_err::File::create(path).expect("a tmpfs of ours");
    let block = [0; 4096];
    let full = loop {
        if let Err(error) = file.write_all(&block) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
}

#[test]
fn while_the_database_server_is_down_nothing_is_launched_and_afterwards_all_is() {
    let mut server = Postgres::start();
    let farm = Farm::on(&server, "farm");
    let provisioner = farm.start();
    farm.wait_until_said(LEADS, 1);
    server.stop();
    farm.wait_until_said(NO_STORE, 1);
    farm.wait_for_jobs(&[("build", 3)]);
    farm.wait_until_said(NO_STORE, 2);
    assert_eq!(farm.fake.count("CreateFleet"), 0);

    server.start_again();
    farm.wait_until_alive(3);
    wait::until("the answer to be in the store", SOON, || {
        let known = farm.ps().len();
        (known == 3).then_some(()).ok_or(known)
    });
    stop(provisioner);
    farm.assert_in_order(3);
}
