//! The command line: what may be typed.

use std::num::NonZeroU64;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::reboot::{BlacklistArgs, DecisionArgs};
use crate::spool::TakeArgs;

/// Runs the set-up tasks of a build host in order, over and over, and takes jobs.
#[derive(Debug, Parser)]
#[command(
    name = "runner",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 halted, 3 exited, 64 usage, 75 another runner holds the lock, 78 configuration."
)]
pub struct Cli {
    /// Configuration file; files `*.toml` in the directory beside it that is named like it with `.d` are read over it.
    #[arg(short, long, global = true, value_name = "PATH", env = "RUNNER_CONFIG")]
    pub config: Option<PathBuf>,
    /// Say more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log lines on standard error.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Print the value of a configuration key, as `runner get` does (for `$RUNNER_CONFIG_CMD -g`).
    #[arg(short = 'g', value_name = "SECTION.KEY")]
    pub get: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub verb: Option<Verb>,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a person; on a terminal `run` shows a moving line for each task.
    Text,
    /// One JSON object a line.
    Json,
}

/// Form of answers on standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Text,
    /// One JSON object.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the tasks, for ever or so many times.
    Run(RunArgs),
    /// Show the order of the tasks.
    Order(OrderArgs),
    /// Check configuration, tasks and reboot lists, and report all faults at once.
    Check(CheckArgs),
    /// Print the value of a configuration key.
    Get(GetArgs),
    /// Show what the runner of this host is doing.
    Status(StatusArgs),
    /// Show what happened on this host.
    History(HistoryArgs),
    /// Record a hook's JSON object; for `task_hook = "runner record"`.
    Record(RecordArgs),
    /// Decide whether the host must reboot: exit code 0 go on, 2 halt.
    RebootDecision(DecisionArgs),
    /// Look into the reboot lists and change them.
    Blacklist(BlacklistArgs),
    /// Take one job from the local spool and run it.
    TakeJob(TakeArgs),
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Directory of the tasks, instead of `runner.tasks_dir`.
    pub tasks_dir: Option<PathBuf>,
    /// Stop after so many runs.
    #[arg(short = 'n', long, value_name = "N", value_parser = number_of_runs)]
    pub runs: Option<NonZeroU64>,
    /// Halt the host after the last run.
    #[arg(short = 'H', long, requires = "runs")]
    pub halt_after: bool,
}

fn number_of_runs(text: &str) -> Result<NonZeroU64, &'static str> {
    text.parse()
        .map_err(|_| "expected a number from 1 on; without `--runs` it runs for ever")
}

/// Arguments of `order`.
#[derive(Clone, Debug, Args)]
pub struct OrderArgs {
    /// Directory of the tasks, instead of `runner.tasks_dir`.
    pub tasks_dir: Option<PathBuf>,
    /// Form of the answer.
    #[arg(long, default_value = "text")]
    pub format: Format,
}

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Directory of the tasks, instead of `runner.tasks_dir`.
    pub tasks_dir: Option<PathBuf>,
}

/// Arguments of `get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Table and key.
    #[arg(value_name = "SECTION.KEY")]
    pub key: String,
}

/// Arguments of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Form of the answer.
    #[arg(long, default_value = "text")]
    pub format: Format,
}

/// Arguments of `history`.
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// How many events to show, the last ones.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 30)]
    pub count: usize,
    /// Only attempts of this task, by its full name.
    #[arg(long)]
    pub task: Option<String>,
    /// Only attempts that failed.
    #[arg(long)]
    pub failed: bool,
    /// Print the end of what this task wrote last, instead of events.
    #[arg(long, value_name = "TASK", conflicts_with_all = ["task", "failed"])]
    pub output: Option<String>,
    /// Form of the answer; `json` gives one object a line.
    #[arg(long, default_value = "text")]
    pub format: Format,
}

/// Arguments of `record`.
#[derive(Clone, Debug, Args)]
pub struct RecordArgs {
    /// What a hook gets: `{"task":…,"try_num":…,"max_retries":…,"result":…}`.
    pub json: String,
}
