//! PostgreSQL, with a cluster of its own.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{User, geteuid};
use tempfile::TempDir;

use super::READY_LIMIT;
use crate::process::Process;
use crate::programs;
use crate::unique::Port;

/// What the fast shutdown may take: it ends every session and writes its log back.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A running (or stopped) server with a user and a database `farm`. By TCP it wants the password,
/// by its socket it asks nobody.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    port: Port,
    programs: PathBuf,
    directory: TempDir,
}

impl Postgres {
    /// What `farm` has to say by TCP.
    pub const PASSWORD: &str = "correct-horse";

    /// Makes a cluster and starts it.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not become ready.
    #[must_use]
    pub fn start() -> Self {
        let directory = TempDir::with_prefix("farm-postgres-").expect("a temporary directory");
        // The server's user goes through it, and so does whoever uses the socket.
        fs_err::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
            .expect("it is our own directory");
        if let Some(user) = other_user() {
            let (user, group) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
            chown(directory.path(), user, group).expect("root may give a directory away");
        }
        let mut server = Self {
            process: None,
            port: Port::reserve(),
            programs: server_programs(),
            directory,
        };
        server.make_cluster();
        server.start_again();
        server.ask("CREATE DATABASE farm", "postgres");
        server
    }

    /// Address by TCP.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://farm@127.0.0.1:{}/farm", self.port.number())
    }

    /// Address by the socket.
    #[must_use]
    pub fn socket_url(&self) -> String {
        let (port, directory) = (self.port.number(), self.directory.path().display());
        format!("postgres://farm@localhost:{port}/farm?host={directory}")
    }

    /// What a statement answers, one row a line; asked by the owner of the server.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    #[must_use]
    pub fn sql(&self, statement: &str) -> String {
        self.ask(statement, "farm")
    }

    /// Ends it at once, sessions and all; the data stays.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGTERM would wait until every client has left by itself.
            kill(process.pid(), Signal::SIGINT).expect("it is our child");
            process.ended(STOP_LIMIT);
        }
    }

    /// Starts it with the port and data it had.
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn start_again(&mut self) {
        let directory = self.directory.path();
        let socket = format!("unix_socket_directories={}", directory.display());
        let port = format!("port={}", self.port.number());
        let settings = [
            "listen_addresses=127.0.0.1",
            port.as_str(),
            socket.as_str(),
            // What a test writes need not outlive the machine.
            "fsync=off",
        ];
        let (program, mut arguments) = self.as_owner("postgres");
        arguments.extend(["-D".to_owned(), self.cluster()]);
        for setting in settings {
            arguments.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let log = directory.join("postgres.log");
        let mut process = Process::start(&program, arguments, directory, &log);
        process.ready(READY_LIMIT, || self.try_ask("SELECT 1", "postgres"));
        self.process = Some(process);
    }

    fn cluster(&self) -> String {
        self.directory.path().join("cluster").display().to_string()
    }

    fn make_cluster(&self) {
        let password = self.directory.path().join("password");
        fs_err::write(&password, Self::PASSWORD).expect("it is our own directory");
        let (program, arguments) = self.as_owner("initdb");
        let made = Command::new(program)
            .args(arguments)
            .args(["--username=farm", "--auth-local=trust"])
            .args(["--auth-host=scram-sha-256", "--no-sync", "--encoding=UTF8"])
            .arg(format!("--pwfile={}", password.display()))
            // Not the C locale: text is then ordered by other customs than ours.
            .arg("--locale=C.UTF-8")
            .args(["-D", &self.cluster()])
            .stdin(Stdio::null())
            .output()
            .expect("initdb can be started");
        let text = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "no cluster can be made: {text}");
    }

    /// How to run a program of the server as the owner of the cluster, who is never root.
    fn as_owner(&self, program: &str) -> (PathBuf, Vec<String>) {
        let program = self.programs.join(program);
        if other_user().is_none() {
            return (program, Vec::new());
        }
        // The kernel forgets who dies with whom when the user changes: said once more.
        let switch = ["--reuid=postgres", "--regid=postgres", "--init-groups"];
        let mut arguments: Vec<String> = switch.map(str::to_owned).to_vec();
        arguments.extend(["--pdeathsig=KILL", "--"].map(str::to_owned));
        arguments.push(program.display().to_string());
        (programs::installed("setpriv"), arguments)
    }

    fn ask(&self, statement: &str, database: &str) -> String {
        let answer = self.try_ask(statement, database);
        answer.unwrap_or_else(|error| panic!("`{statement}`: {error}"))
    }

    fn try_ask(&self, statement: &str, database: &str) -> Result<String, String> {
        let done = Command::new(self.programs.join("psql"))
            .args(["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"])
            .arg(format!("--host={}", self.directory.path().display()))
            .arg(format!("--port={}", self.port.number()))
            .args(["--username=farm", "--dbname", database])
            .args(["--set=ON_ERROR_STOP=1", "--command", statement])
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Who owns a cluster instead of us: the server refuses to run as root.
fn other_user() -> Option<User> {
    geteuid().is_root().then(|| {
        let user = User::from_name("postgres").expect("the list of users can be read");
        user.unwrap_or_else(|| panic!("no user `postgres`: run `tests/setup`"))
    })
}

/// Debian keeps each version's programs in a directory of its own: the newest.
fn server_programs() -> PathBuf {
    let versions = fs_err::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    versions
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|programs| programs.join("postgres").exists())
        .max_by_key(|programs| version(programs))
        .unwrap_or_else(|| panic!("PostgreSQL is not installed: run `tests/setup`"))
}

fn version(programs: &Path) -> u32 {
    let version = programs.parent().and_then(Path::file_name);
    let number = version.and_then(|name| name.to_str()?.parse().ok());
    number.unwrap_or_default()
}
