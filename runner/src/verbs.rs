//! What the verbs besides `run` do: look, and say.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory as _;
use farm_events::{Event, Outcome, Record};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;

use crate::cli::{CheckArgs, Cli, Format, GetArgs, HistoryArgs, OrderArgs, RecordArgs, StatusArgs};
use crate::config::{Config, is_empty, plain_text};
use crate::exit::Exit;
use crate::fleet::FleetStatus;
use crate::fleet::notice::Notice;
use crate::hook::HookArgument;
use crate::host::chain;
use crate::reboot::Lists;
use crate::state::{State, write_atomically};
use crate::tasks_dir;
use crate::view::describe;

/// File that `record` appends to.
const RECORDS: &str = "hook-records.jsonl";

/// When the file of `record` begins anew; some 10,000 attempts.
const MAX_RECORDS: u64 = 2 * 1024 * 1024;

/// Where answers and words go.
#[derive(Debug)]
pub struct Streams<O, E> {
    /// Standard output: data.
    pub out: O,
    /// Standard error: words.
    pub err: E,
}

impl<O: Write, E: Write> Streams<O, E> {
    /// Says what is wrong, and returns the exit code for it.
    pub fn refuse(&mut self, exit: Exit, message: impl std::fmt::Display) -> Exit {
        // Nobody is left to tell if standard error is closed.
        drop(writeln!(self.err, "error: {message}"));
        exit
    }

    fn said(&mut self, result: io::Result<()>) -> Exit {
        match result {
            Ok(()) => Exit::Done,
            // Who closed the pipe has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Err(error) => self.refuse(Exit::Failed, format!("cannot print: {error}")),
        }
    }

    /// `runner order`.
    pub fn order(&mut self, args: &OrderArgs, config: &Config) -> Exit {
        let directory = args
            .tasks_dir
            .as_deref()
            .unwrap_or(&config.runner.tasks_dir);
        let tasks = match tasks_dir::read(directory, config) {
            Ok(tasks) => tasks,
            Err(faults) => {
                for fault in faults {
                    self.refuse(Exit::Configuration, fault);
                }
                return Exit::Configuration;
            }
        };
        let names: Vec<String> = tasks.order.iter().map(|task| task.name.full()).collect();
        let result = match args.format {
            Format::Text => names
                .iter()
                .try_for_each(|name| writeln!(self.out, "{name}")),
            Format::Json => writeln!(self.out, "{}", serde_json::json!({ "order": names })),
        };
        self.said(result)
    }

    /// `runner check`, for a configuration that could be read.
    pub fn check(&mut self, args: &CheckArgs, config: &Config) -> Exit {
        let directory = args
            .tasks_dir
            .as_deref()
            .unwrap_or(&config.runner.tasks_dir);
        let mut faults = Vec::new();
        let mut count = 0;
        match tasks_dir::read(directory, config) {
            Ok(tasks) => {
                count = tasks.order.len();
                if tasks.order.is_empty() {
                    faults.push(format!("`{}` has no tasks", directory.display()));
                }
                faults.extend(not_executable(&tasks));
                if tasks.halt.is_none() && !config.runner.halt_task.is_empty() {
                    faults.push(format!(
                        "the halt task `{}` is not in `{}`: put it there, or set `runner.halt_task = \"\"`",
                        config.runner.halt_task,
                        directory.display()
                    ));
                }
            }
            Err(found) => faults.extend(found.iter().map(ToString::to_string)),
        }
        let lists = &config.reboot.blacklists;
        if (config.table.contains_key("reboot") || lists.exists())
            && let Err(found) = Lists::load(lists)
        {
            faults.extend(found.iter().map(ToString::to_string));
        }
        for (table, meant) in config.likely_typos() {
            drop(writeln!(
                self.err,
                "warning: table `[{table}]` is left to the tasks; was `[{meant}]` meant?"
            ));
        }
        for fault in &faults {
            self.refuse(Exit::Configuration, fault);
        }
        if faults.is_empty() {
            let result = writeln!(self.out, "{count} tasks, no fault");
            self.said(result)
        } else {
            Exit::Configuration
        }
    }

    /// `runner get` and `runner -g`.
    pub fn get(&mut self, args: &GetArgs, config: &Config) -> Exit {
        match config.value(&args.key) {
            Some(value) if is_empty(value) => self.refuse(
                Exit::Configuration,
                format!(
                    "`{}` is empty in {}: expected a value",
                    args.key,
                    files(config)
                ),
            ),
            Some(value) => {
                let result = writeln!(self.out, "{}", plain_text(value));
                self.said(result)
            }
            None => self.refuse(
                Exit::Configuration,
                format!(
                    "no key `{}` in {}: expected `SECTION.KEY` with a value",
                    args.key,
                    files(config)
                ),
            ),
        }
    }

    /// `runner status`.
    pub fn status(&mut self, args: &StatusArgs, config: &Config) -> Exit {
        let directory = &config.runner.state_dir;
        let state = match State::load(directory) {
            Ok(loaded) => loaded.state,
            Err(error) => return self.refuse(Exit::Failed, chain(&error)),
        };
        let holder = crate::daemon::lock_holder(directory);
        let fleet = config
            .fleet
            .is_on()
            .then(|| FleetStatus::load(directory).unwrap_or_default());
        let result = match args.format {
            Format::Json => writeln!(
                self.out,
                "{}",
                serde_json::json!({
                    "running": holder.is_some(),
                    "pid": holder,
                    "state": state,
                    "fleet": fleet,
                })
            ),
            Format::Text => write_status(&mut self.out, &state, holder).and_then(|()| {
                fleet.map_or(Ok(()), |fleet| write_fleet_status(&mut self.out, &fleet))
            }),
        };
        self.said(result)
    }

    /// `runner history`.
    pub fn history(&mut self, args: &HistoryArgs, config: &Config) -> Exit {
        let directory = &config.runner.state_dir;
        if let Some(task) = &args.output {
            return self.kept_output(directory, task);
        }
        let wanted = |event: &Event| match event {
            Event::TaskFinished(finished) => {
                args.task.as_ref().is_none_or(|task| *task == finished.task)
                    && (!args.failed || finished.outcome == Outcome::Retry)
            }
            Event::TaskStarted(_) => false,
            _ => args.task.is_none() && !args.failed,
        };
        let records = match crate::history::last(directory, args.count, wanted) {
            Ok(records) => records,
            Err(error) => return self.refuse(Exit::Failed, error),
        };
        let result = records.iter().try_for_each(|record| match args.format {
            Format::Text => writeln!(self.out, "{}", history_line(record)),
            Format::Json => {
                serde_json::to_writer(&mut self.out, record)?;
                writeln!(self.out)
            }
        });
        self.said(result)
    }

    fn kept_output(&mut self, directory: &Path, task: &str) -> Exit {
        // A name, not a path: nothing outside of the directory can be asked for.
        if task.contains('/') || task.starts_with('.') {
            return self.refuse(
                Exit::Usage,
                format!("`{task}` is no task name: expected one that `runner order` shows"),
            );
        }
        match fs_err::read(directory.join("output").join(task)) {
            Ok(output) => {
                let result = self.out.write_all(&output);
                self.said(result)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.refuse(
                Exit::Failed,
                format!("task `{task}` has written nothing so far: expected a name that `runner order` shows"),
            ),
            Err(error) => self.refuse(Exit::Failed, error),
        }
    }

    /// `runner record`.
    pub fn record(&mut self, args: &RecordArgs, config: &Config, now: Timestamp) -> Exit {
        let argument: HookArgument = match serde_json::from_str(&args.json) {
            Ok(argument) => argument,
            Err(error) => {
                return self.refuse(
                    Exit::Usage,
                    format!(
                        "the argument is not what a hook gets: {error}; expected {{\"task\":…,\"try_num\":…,\"max_retries\":…,\"result\":\"RUNNING|OK|RETRY|HALT|EXIT\"}}"
                    ),
                );
            }
        };
        match append_record(&config.runner.state_dir, &argument, now) {
            Ok(()) => Exit::Done,
            Err(error) => self.refuse(Exit::Failed, error),
        }
    }

    /// `runner completions`.
    pub fn completions(&mut self, shell: clap_complete::Shell) -> Exit {
        clap_complete::generate(shell, &mut Cli::command(), "runner", &mut self.out);
        Exit::Done
    }

    /// `runner man`.
    pub fn man(&mut self) -> Exit {
        let result = clap_mangen::Man::new(Cli::command()).render(&mut self.out);
        self.said(result)
    }
}

fn files(config: &Config) -> String {
    if config.files.is_empty() {
        return "the configuration (no file was read)".into();
    }
    let files: Vec<_> = config
        .files
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    files.join(", ")
}

fn not_executable(tasks: &tasks_dir::Tasks) -> Vec<String> {
    let all = tasks
        .order
        .iter()
        .chain(&tasks.before_reboot)
        .chain(&tasks.halt);
    all.filter(|task| task.interpreter.is_none())
        .filter(|task| rustix::fs::access(&task.path, rustix::fs::Access::EXEC_OK).is_err())
        .map(|task| {
            let path = task.path.display();
            format!(
                "`{path}` cannot be executed: type `chmod +x {path}`, or give it an `interpreter`"
            )
        })
        .collect()
}

fn write_status(out: &mut impl Write, state: &State, holder: Option<u32>) -> io::Result<()> {
    let activity = &state.activity;
    match holder {
        Some(pid) => {
            write!(
                out,
                "runner {pid}: {}",
                activity.phase.as_str().replace('_', " ")
            )?;
            if let Some(task) = &activity.task {
                write!(out, " {task} (attempt {})", activity.attempt)?;
            }
            write!(out, " since {}", seconds(activity.since))?;
            if let Some(until) = activity.until {
                write!(out, ", until {}", seconds(until))?;
            }
            writeln!(out)?;
        }
        None => writeln!(out, "no runner works here")?,
    }
    writeln!(
        out,
        "runs: {} since boot, {} ever; jobs: {}",
        state.runs_since_boot, state.runs, state.jobs
    )?;
    if let Some(job) = &state.job {
        writeln!(out, "job: {} ({})", job.name, job.result)?;
    }
    if let Some(sweep) = &state.sweep {
        writeln!(out, "last sweep: {sweep}")?;
    }
    if let Some(halt) = &state.halt {
        writeln!(out, "halted: {} at {}", halt.reason, seconds(halt.at))?;
    }
    if state.spool_dropped > 0 {
        writeln!(
            out,
            "events lost because the telemetry spool was full: {}",
            state.spool_dropped
        )?;
    }
    for (pattern, count) in &state.reboots_by_pattern {
        writeln!(out, "reboots by `{pattern}`: {count}")?;
    }
    Ok(())
}

fn write_fleet_status(out: &mut impl Write, fleet: &FleetStatus) -> io::Result<()> {
    match (&fleet.instance_id, &fleet.metadata_error) {
        (Some(id), _) => {
            let facts = [fleet.capacity_type.as_str(), fleet.zone.as_str()];
            let facts: Vec<_> = facts.into_iter().filter(|fact| !fact.is_empty()).collect();
            writeln!(out, "instance: {id} ({})", facts.join(", "))?;
        }
        (None, Some(error)) => writeln!(out, "instance: not known: {error}")?,
        (None, None) => writeln!(out, "instance: not known yet")?,
    }
    write!(out, "assignment: {}", fleet.assignment.as_str())?;
    if let Some(reason) = &fleet.reason {
        write!(out, " ({reason})")?;
    }
    if !fleet.text.is_empty() {
        write!(out, ": {}", fleet.text)?;
    }
    writeln!(out)?;
    write!(out, "activity: {}", fleet.activity.as_str())?;
    if let Some(job) = &fleet.job {
        write!(out, ", job {} {}", job.name, job.id)?;
    }
    writeln!(out)?;
    let since = seconds(fleet.since);
    match (&fleet.provisioner, fleet.is_reached) {
        (None, _) => writeln!(out, "provisioner: none is known")?,
        (Some(address), None) => writeln!(out, "provisioner: {address}, not asked yet")?,
        (Some(address), Some(true)) => {
            writeln!(out, "provisioner: {address}, answers since {since}")?;
        }
        (Some(address), Some(false)) => writeln!(
            out,
            "provisioner: {address}, not reached since {since}: {}",
            fleet.error.as_deref().unwrap_or_default()
        )?,
    }
    if let Some(notice) = &fleet.notice {
        let Notice { action, time } = notice;
        writeln!(out, "spot notice: {action} at {}", seconds(*time))?;
    }
    if let Some(job) = &fleet.lost_job {
        writeln!(out, "lost job: {} {}", job.name, job.id)?;
    }
    Ok(())
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// One event for a person.
fn history_line(record: &Record) -> String {
    let time = seconds(record.time);
    match &record.event {
        Event::TaskFinished(event) => {
            let how = if event.timed_out {
                "ran longer than its timeout".to_owned()
            } else {
                match (event.exit_code, event.signal, &event.error) {
                    (Some(code), _, _) => describe(&crate::child::Ending::Exited(code), None),
                    (None, Some(signal), _) => {
                        describe(&crate::child::Ending::Signalled(signal), None)
                    }
                    (None, None, error) => error.clone().unwrap_or_default(),
                }
            };
            let next = event
                .delay_ms
                .map(|delay| format!(", next attempt after {delay} ms"))
                .unwrap_or_default();
            format!(
                "{time} run {} {} attempt {}: {} ({how}) in {} ms{next}",
                event.run_id, event.task, event.attempt, event.outcome, event.duration_ms
            )
        }
        other => {
            let columns: Vec<String> = other
                .columns()
                .iter()
                .map(|column| {
                    let value = match column.value {
                        farm_events::Value::Text(text) => text.to_owned(),
                        farm_events::Value::Integer(number) => number.to_string(),
                        farm_events::Value::Float(number) => number.to_string(),
                        farm_events::Value::Bool(flag) => flag.to_string(),
                    };
                    format!("{}={value}", column.name)
                })
                .collect();
            format!("{time} {} {}", other.name(), columns.join(" "))
        }
    }
}

fn append_record(directory: &Path, argument: &HookArgument, now: Timestamp) -> io::Result<()> {
    let path = directory.join(RECORDS);
    if fs_err::metadata(&path).is_ok_and(|metadata| metadata.len() >= MAX_RECORDS) {
        write_atomically(&path, b"")?;
    }
    let mut line = serde_json::to_value(argument)?;
    line["time"] = now.to_string().into();
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(format!("{line}\n").as_bytes())
}
