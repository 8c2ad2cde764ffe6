//! The command line: what may be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ids::{InstanceId, PassId, PoolName};

/// Launches instances for pending jobs, and ends those nobody needs.
#[derive(Debug, Parser)]
#[command(
    name = "provisioner",
    version,
    after_help = "Exit codes: 0 done, 1 failed or something does not hold, 64 usage, 75 another provisioner leads, 78 configuration."
)]
pub struct Cli {
    /// Configuration file; files `*.toml` in the directory beside it that is named like it with `.d` are read over it.
    #[arg(
        short,
        long,
        global = true,
        value_name = "PATH",
        env = "PROVISIONER_CONFIG"
    )]
    pub config: Option<PathBuf>,
    /// Say more; twice: everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log lines on standard error.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Form of answers on standard output.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Form of answers and log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Text,
    /// JSON.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Watch demand and keep the right number of instances, for ever.
    Run(RunArgs),
    /// Show what a pass would do now, and do nothing.
    Plan(PlanArgs),
    /// Show how a pass came to its plan, or the last one for a pool: each candidate with its score and why it lost.
    Explain(ExplainArgs),
    /// Show the instances: who runs what.
    Ps(PsArgs),
    /// Show the pools: demand, hosts, money, and what blocks.
    Pools,
    /// Show the images and who runs them.
    Images,
    /// Keep an instance from being ended.
    Hold(HoldArgs),
    /// Let a held instance go.
    Release(ReleaseArgs),
    /// Stop launching and drain hosts, or resume.
    Maintenance(MaintenanceArgs),
    /// Show who did what to which instance, when, and with what result.
    History(HistoryArgs),
    /// Check configuration, credentials, rights and sources, and change nothing.
    Check,
    /// Print the completions of a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
    /// End every instance of the local cloud, whatever it does, and wait until nothing is left.
    LocalStop,
    /// Run one instance of the local cloud.
    #[command(hide = true)]
    LocalInstance(crate::cloud::local::instance::Args),
}

/// Arguments of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Stop after so many passes.
    #[arg(short = 'n', long, value_name = "N")]
    pub passes: Option<u64>,
    /// Plan and check, and apply nothing.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// Plan a stored pass again: its number, or a file that `explain PASS --format json` wrote.
    #[arg(long, value_name = "PASS|FILE")]
    pub replay: Option<String>,
    /// With `--replay`: by the configuration of that time instead of today's.
    #[arg(long, requires = "replay")]
    pub as_then: bool,
}

/// Arguments of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// Number of a pass, or name of a pool; none: the last pass.
    #[arg(value_name = "PASS|POOL")]
    pub what: Option<String>,
}

/// Arguments of `ps`.
#[derive(Clone, Debug, Args)]
pub struct PsArgs {
    /// Only this pool.
    #[arg(long)]
    pub pool: Option<PoolName>,
}

/// Arguments of `hold`.
#[derive(Clone, Debug, Args)]
pub struct HoldArgs {
    /// The instance.
    pub instance: InstanceId,
    /// Who has it.
    #[arg(long)]
    pub owner: String,
    /// What for.
    #[arg(long)]
    pub reason: String,
    /// For how long; without it until released.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub time: Option<Duration>,
}

/// Arguments of `release`.
#[derive(Clone, Debug, Args)]
pub struct ReleaseArgs {
    /// The instance.
    pub instance: InstanceId,
    /// Who lets it go; default: the user.
    #[arg(long, env = "USER", default_value = "unknown")]
    pub by: String,
}

/// Arguments of `maintenance`.
#[derive(Clone, Debug, Args)]
pub struct MaintenanceArgs {
    /// Begin or end.
    pub switch: Switch,
    /// Only this pool.
    #[arg(long)]
    pub pool: Option<PoolName>,
    /// What for.
    #[arg(long, required_if_eq("switch", "on"), default_value = "")]
    pub reason: String,
    /// Who orders it; default: the user.
    #[arg(long, env = "USER", default_value = "unknown")]
    pub by: String,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Launch nothing, drain the hosts.
    On,
    /// Resume.
    Off,
}

/// Arguments of `history`.
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// Only this instance.
    #[arg(long)]
    pub instance: Option<InstanceId>,
    /// Only this pool.
    #[arg(long)]
    pub pool: Option<PoolName>,
    /// Only this pass.
    #[arg(long, value_parser = pass_id)]
    pub pass: Option<PassId>,
    /// Only the last so long.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// The newest so many.
    #[arg(short = 'n', long, default_value = "100")]
    pub limit: u32,
}

fn pass_id(text: &str) -> Result<PassId, &'static str> {
    let number = text.parse().map_err(|_| "expected the number of a pass")?;
    Ok(PassId(number))
}
