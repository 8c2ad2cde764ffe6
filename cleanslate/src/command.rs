//! The three commands: what each reads, decides, does and says.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{CWD, FileType, Mode as Permission, OFlags};
use rustix::io::Errno;

use crate::cli::{Format, ShowArgs, SnapshotArgs, SweepArgs, Target};
use crate::clock;
use crate::facts::Facts;
use crate::key::Sweeper;
use crate::kill::{self, KillError};
use crate::process::Process;
use crate::report::{self, Mode, Show};
use crate::snapshot::{Place, Snapshot, SnapshotError};
use crate::store::{IfMissing, Store, StoreError};
use crate::sweep::{self, Ended, Host, Leftover, Manner, PROOF_LIMIT, PROOF_PASSES};
use crate::table::{Detail, ProcTable, Strangers, TableError};
use crate::users::{self, UserError, Users};

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A user is unknown or must not be swept.
    #[error(transparent)]
    User(#[from] UserError),
    /// Without root's rights nothing of other users can be ended.
    #[error("runs as uid `{0}`, expected root; type `sudo cleanslate …`")]
    NotRoot(u32),
    /// `/proc` cannot be trusted.
    #[error("{0}")]
    Unfit(String),
    /// The file of the snapshot is missing or unsafe.
    #[error("snapshot `{path}` {fault}; {remedy}")]
    File {
        /// Its path.
        path: String,
        /// What is wrong.
        fault: StoreError,
        /// What to do.
        remedy: String,
    },
    /// The snapshot is not one to go by.
    #[error("snapshot `{path}` {fault}; {remedy}")]
    Snapshot {
        /// Its path.
        path: String,
        /// What is wrong.
        fault: SnapshotError,
        /// What to do.
        remedy: String,
    },
    /// There is a snapshot of this boot already.
    #[error(
        "snapshot `{path}` was already taken in this boot, at {taken_at}; processes started since \
         then would be taken to belong here; if they do, type `cleanslate snapshot --replace \
         {options}`"
    )]
    Exists {
        /// Its path.
        path: String,
        /// When it was taken.
        taken_at: Timestamp,
        /// The options to repeat.
        options: String,
    },
    /// The file for `runner` cannot be appended to.
    #[error("report `{path}` cannot be appended to: {reason}, expected a regular file")]
    Report {
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The process table cannot be read.
    #[error(transparent)]
    Table(TableError),
    /// Processes cannot be ended.
    #[error(transparent)]
    Kill(KillError),
    /// The host does not tell its load or memory.
    #[error("cannot read load, memory and uptime of the host")]
    Facts(#[from] sysinfo::Error),
    /// The result could not be printed or appended.
    #[error("cannot write the result")]
    Output(#[from] io::Error),
}

impl Fault {
    /// Exit code: 78 if it was refused before anything was changed, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::User(_)
            | Self::NotRoot(_)
            | Self::Unfit(_)
            | Self::File {
                fault: StoreError::Missing | StoreError::UnsafePath(_) | StoreError::UnsafeFile(_),
                ..
            }
            | Self::Snapshot { .. }
            | Self::Exists { .. }
            | Self::Report { .. } => 78,
            Self::File {
                fault: StoreError::Io { .. },
                ..
            }
            | Self::Table(_)
            | Self::Kill(_)
            | Self::Facts(_)
            | Self::Output(_) => 1,
        }
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Unfit(why) => Self::Unfit(why),
            error @ TableError::Read { .. } => Self::Table(error),
        }
    }
}

impl From<KillError> for Fault {
    fn from(error: KillError) -> Self {
        match error {
            KillError::Table(error) => error.into(),
            error @ KillError::Kernel { .. } => Self::Kill(error),
        }
    }
}

/// Where a command prints: results and words.
#[derive(Debug)]
pub struct Output<R, W> {
    /// Standard output.
    pub results: R,
    /// Standard error.
    pub words: W,
}

/// Records the processes of the users.
///
/// # Errors
/// If it is refused or cannot be written. A snapshot that was there is then unchanged.
pub fn snapshot<R: Write, W: Write>(
    args: &SnapshotArgs,
    now: Timestamp,
    output: &mut Output<R, W>,
) -> Result<(), Fault> {
    let target = Checked::new(&args.target)?;
    let table = ProcTable::open()?;
    let place = place(&table)?;
    let store = target.store(IfMissing::Create)?;
    if !args.replace {
        target.check_vacant(&store, &place)?;
    }
    let snapshot = take(&table, place, &target.users, now)?;
    store
        .write(&snapshot.to_text())
        .map_err(|fault| target.file_fault(fault, "check the disk and try again".into()))?;
    if !snapshot.settled {
        writeln!(
            output.words,
            "cleanslate: processes were started while the snapshot was taken; one may be missing \
             from it and would be swept"
        )?;
    }
    match args.target.format {
        Format::Text => writeln!(
            output.results,
            "recorded {} of uid {} in `{}`",
            match snapshot.processes.len() {
                1 => "1 process".to_owned(),
                count => format!("{count} processes"),
            },
            target.users,
            target.path
        )?,
        Format::Json => writeln!(
            output.results,
            "{}",
            serde_json::json!({
                "file": target.path,
                "processes": snapshot.processes.len(),
                "users": snapshot.users,
                "settled": snapshot.settled,
            })
        )?,
    }
    Ok(())
}

/// Ends every process of the users that is not recorded; the exit code its verdict asks for.
///
/// # Errors
/// If it is refused, or if processes cannot be listed or ended.
pub fn sweep<R: Write, W: Write>(args: &SweepArgs, output: &mut Output<R, W>) -> Result<u8, Fault> {
    let target = Checked::new(&args.target)?;
    let table = ProcTable::open()?;
    let snapshot = target.load(&table)?;
    let (swept, mode) = if args.dry_run {
        let mut host = ThisHost::new(table, target.users);
        (sweep::rehearse(&mut host, &snapshot)?, Mode::DryRun)
    } else {
        // Opened first, so that a wrong path changes nothing.
        let report = args.report.as_deref().map(open_report).transpose()?;
        raise_priority();
        let mut host = ThisHost::new(table, target.users);
        let swept = sweep::run(&mut host, &snapshot, args.grace)?;
        if let Some(report) = report {
            append(report, report::sweep_lines(&swept).as_bytes())?;
        }
        (swept, Mode::Sweep)
    };
    let text = match args.target.format {
        Format::Text => report::sweep_text(&swept, mode),
        Format::Json => report::sweep_json(&swept, mode),
    };
    output.results.write_all(text.as_bytes())?;
    if let Some(why) = report::why(&swept, mode) {
        writeln!(output.words, "cleanslate: {}: {why}", swept.verdict)?;
    }
    Ok(swept.verdict.exit_code())
}

/// Prints the snapshot, and what each process of the users is.
///
/// # Errors
/// If the snapshot is refused or the process table cannot be read.
pub fn show<R: Write, W: Write>(args: &ShowArgs, output: &mut Output<R, W>) -> Result<(), Fault> {
    let target = Checked::new(&args.target)?;
    let table = ProcTable::open()?;
    let snapshot = target.load(&table)?;
    let mut host = ThisHost::new(table, target.users);
    let (mut running, sweeper) = host.scan(Detail::Full)?;
    running.sort_by_key(|process| process.id);
    let judgement = sweep::judge(&snapshot, &running, &sweeper);
    let show = Show {
        file: target.path.as_ref(),
        snapshot: &snapshot,
        facts: Facts::read()?,
        running: &running,
        judgement: &judgement,
    };
    let text = match args.target.format {
        Format::Text => show.text(),
        Format::Json => show.json(),
    };
    output.results.write_all(text.as_bytes())?;
    Ok(())
}

/// The users and the path a command line names, checked.
struct Checked {
    users: Users,
    path: String,
    absolute: PathBuf,
}

impl Checked {
    fn new(target: &Target) -> Result<Self, Fault> {
        let own = rustix::process::getuid().as_raw();
        let users = users::resolve(&target.users, own, users::system_lookup)?;
        let effective = rustix::process::geteuid();
        if !effective.is_root() {
            return Err(Fault::NotRoot(effective.as_raw()));
        }
        let absolute = std::path::absolute(&target.file)?;
        Ok(Self {
            users,
            path: absolute.display().to_string(),
            absolute,
        })
    }

    fn options(&self) -> String {
        format!("{} --file {}", self.users.options(), self.path)
    }

    fn file_fault(&self, fault: StoreError, remedy: String) -> Fault {
        Fault::File {
            path: self.path.clone(),
            fault,
            remedy,
        }
    }

    fn store(&self, if_missing: IfMissing) -> Result<Store, Fault> {
        Store::open(&self.absolute, if_missing).map_err(|fault| self.unreadable(fault))
    }

    fn unreadable(&self, fault: StoreError) -> Fault {
        let remedy = match &fault {
            StoreError::Missing => {
                format!(
                    "on a host known to be clean, type `cleanslate snapshot {}`",
                    self.options()
                )
            }
            StoreError::UnsafePath(_) => "give a path in a directory of root's own, such as \
                 `--file /run/farmhand/cleanslate.json`"
                .into(),
            StoreError::UnsafeFile(_) => {
                let path = &self.path;
                format!("look who made it with `ls -l {path}`, then remove it with `rm {path}`")
            }
            StoreError::Io { .. } => format!("look at it with `ls -ld {}`", self.path),
        };
        self.file_fault(fault, remedy)
    }

    /// The snapshot, if it is of this host, of this boot and of these users.
    fn load(&self, table: &ProcTable) -> Result<Snapshot, Fault> {
        let text = self
            .store(IfMissing::Report)?
            .read()
            .map_err(|fault| self.unreadable(fault))?;
        let snapshot = Snapshot::parse(&text).map_err(|fault| self.refused(fault))?;
        snapshot
            .check(&place(table)?, &self.users)
            .map_err(|fault| self.refused(fault))?;
        Ok(snapshot)
    }

    fn refused(&self, fault: SnapshotError) -> Fault {
        let replace = if fault.is_of_another_boot() {
            ""
        } else {
            "--replace "
        };
        let remedy = format!(
            "on a host known to be clean, type `cleanslate snapshot {replace}{}`",
            self.options()
        );
        Fault::Snapshot {
            path: self.path.clone(),
            fault,
            remedy,
        }
    }

    /// That no snapshot would be lost which is of this boot, or may be.
    fn check_vacant(&self, store: &Store, place: &Place) -> Result<(), Fault> {
        let text = match store.read() {
            Ok(text) => text,
            Err(StoreError::Missing) => return Ok(()),
            Err(fault) => return Err(self.unreadable(fault)),
        };
        let found = Snapshot::parse(&text)
            .and_then(|found| found.check(place, &self.users).map(|()| found));
        match found {
            Ok(found) => Err(Fault::Exists {
                path: self.path.clone(),
                taken_at: found.taken_at,
                options: self.options(),
            }),
            Err(error) if error.is_of_another_boot() => Ok(()),
            Err(error) => Err(self.refused(error)),
        }
    }
}

fn place(table: &ProcTable) -> Result<Place, Fault> {
    Ok(Place {
        boot_id: table.boot_id()?,
        pid_namespace: table.namespace("pid")?,
        time_namespace: table.namespace("time")?,
    })
}

/// Reads the process table until a pass was not disturbed, or for [`PROOF_LIMIT`].
fn take(table: &ProcTable, place: Place, users: &Users, now: Timestamp) -> Result<Snapshot, Fault> {
    let start = clock::monotonic();
    let mut strangers = Strangers::default();
    let mut passes = 0;
    loop {
        let forks = table.forks()?;
        let processes = table.scan(users, Detail::Full, &mut strangers)?;
        let settled = table.forks()? == forks;
        passes += 1;
        if settled || (passes >= PROOF_PASSES && clock::monotonic() - start >= PROOF_LIMIT) {
            let kernel = rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned();
            let (users, cgroup) = (users.clone(), table.own_cgroup());
            return Ok(Snapshot::new(
                place, now, kernel, users, forks, settled, cgroup, processes,
            ));
        }
    }
}

/// The host this program runs on.
struct ThisHost {
    table: ProcTable,
    users: Users,
    strangers: Strangers,
}

impl ThisHost {
    fn new(table: ProcTable, users: Users) -> Self {
        let strangers = Strangers::default();
        Self {
            table,
            users,
            strangers,
        }
    }
}

impl Host for ThisHost {
    type Error = Fault;

    fn forks(&mut self) -> Result<u64, Fault> {
        Ok(self.table.forks()?)
    }

    fn scan(&mut self, detail: Detail) -> Result<(Vec<Process>, Sweeper), Fault> {
        let running = self.table.scan(&self.users, detail, &mut self.strangers)?;
        let sweeper = Sweeper {
            line: self.table.own_line()?,
            cgroup: self.table.own_cgroup(),
        };
        Ok((running, sweeper))
    }

    fn end(&mut self, leftovers: &[Leftover], manner: Manner) -> Result<Vec<Option<Ended>>, Fault> {
        Ok(kill::end(&self.table, &self.users, leftovers, manner)?)
    }

    fn now(&mut self) -> Duration {
        clock::monotonic()
    }
}

/// Lets a storm of forking processes not starve the sweep. A sweep lasts under a second as a rule.
fn raise_priority() {
    if let Err(error) = rustix::process::setpriority_process(None, -20) {
        tracing::debug!(%error, "the priority could not be raised");
    }
}

#[expect(
    clippy::disallowed_types,
    reason = "fs_err cannot refuse a symbolic link; the error names the path"
)]
type Report = std::fs::File;

/// Opens the file for `runner` to append to; refuses a symbolic link and anything but a regular
/// file, because a job may have put it there.
fn open_report(path: &Path) -> Result<Report, Fault> {
    let fault = |reason: String| Fault::Report {
        path: path.display().to_string(),
        reason,
    };
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Permission::RUSR | Permission::WUSR).map_err(
        |errno| match errno {
            Errno::LOOP => fault("it is a symbolic link".into()),
            errno => fault(io::Error::from(errno).to_string()),
        },
    )?;
    let found = rustix::fs::fstat(&file).map_err(|errno| fault(errno.to_string()))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(fault("it is something else".into()));
    }
    Ok(Report::from(file))
}

/// Appends in one write, so that the lines of two writers do not mix.
fn append(mut report: Report, lines: &[u8]) -> Result<(), Fault> {
    report.write_all(lines)?;
    Ok(())
}
