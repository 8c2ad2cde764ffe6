//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::users::UserName;

/// Longest grace period: after an hour a host that does not get clean should reboot.
const LONGEST_GRACE: Duration = Duration::from_secs(3600);

/// Removes what a job left behind, so that a build host need not reboot.
///
/// Before the first job of a boot, `snapshot` records which processes the users of the jobs have.
/// After each job, `sweep` ends every other process of these users and says whether the host is
/// clean.
#[derive(Debug, Parser)]
#[command(name = "cleanslate", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Say on standard error what is being done.
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

const AFTER_HELP: &str = "\
Exit codes:
   0  done; for `sweep`: the host is clean, or nothing was found but that is unproven
   1  `sweep` found the host dirty or its baseline damaged; or the system failed
  64  wrong command line
  78  refused before anything was changed: unknown or forbidden user, not root,
      snapshot missing, damaged, unsafe, of another boot or of other users";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record the processes of the users, once per boot and before any job.
    Snapshot(SnapshotArgs),
    /// End every process of the users that is not recorded.
    Sweep(SweepArgs),
    /// Show the snapshot, and what each process of the users is.
    Show(ShowArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff.
    Man,
}

/// Whose processes, and where the snapshot is.
#[derive(Debug, Args)]
pub struct Target {
    /// User whose processes are meant, by name or id; may be given several times.
    #[arg(short, long = "user", value_name = "USER", required = true)]
    pub users: Vec<UserName>,
    /// File of the snapshot, in a directory that only root may write.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/run/farmhand/cleanslate.json"
    )]
    pub file: PathBuf,
    /// How to print the result.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Text,
    /// For a program: one JSON object on one line.
    Json,
}

/// Arguments of `snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Whose processes, and where to.
    #[command(flatten)]
    pub target: Target,
    /// Replace a snapshot of this boot, or one that cannot be read: everything that runs now is
    /// then taken to belong here.
    #[arg(long)]
    pub replace: bool,
}

/// Arguments of `sweep`.
#[derive(Debug, Args)]
pub struct SweepArgs {
    /// Whose processes, and what was recorded.
    #[command(flatten)]
    pub target: Target,
    /// Time between SIGTERM and SIGKILL, for all leftovers together.
    #[arg(short, long, value_name = "DURATION", default_value = "500ms", value_parser = grace)]
    pub grace: Duration,
    /// Say what would be ended, and signal nothing.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Append the verdict and its numbers as lines `sweep.NAME=VALUE` to this file; not in a dry
    /// run.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Arguments of `show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Whose processes, and what was recorded.
    #[command(flatten)]
    pub target: Target,
}

fn grace(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(grace) if grace <= LONGEST_GRACE => Ok(grace),
        Ok(_) => Err("expected at most `1h`".into()),
        Err(error) => Err(format!(
            "{error}; expected a duration such as `500ms` or `2s`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn grace_of(line: &str) -> Duration {
        match parse(line).unwrap().command {
            Command::Sweep(args) => args.grace,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_is_as_reviewed() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let sweep = command
            .find_subcommand_mut("sweep")
            .unwrap()
            .render_long_help()
            .to_string();
        let main = command.render_help().to_string();
        insta::assert_snapshot!(format!("{main}\n---\n{sweep}"));
    }

    #[test]
    fn the_grace_period_is_half_a_second_unless_given() {
        assert_eq!(
            grace_of("cleanslate sweep --user b"),
            Duration::from_millis(500)
        );
        assert_eq!(
            grace_of("cleanslate sweep --user b --grace 2s"),
            Duration::from_secs(2)
        );
        assert_eq!(
            grace_of("cleanslate sweep --user b --grace 0s"),
            Duration::ZERO
        );
    }

    #[test]
    fn a_grace_period_of_an_hour_is_taken_and_of_a_second_more_is_not() {
        assert_eq!(
            grace_of("cleanslate sweep --user b --grace 1h"),
            LONGEST_GRACE
        );
        assert!(parse("cleanslate sweep --user b --grace 3601s").is_err());
    }

    #[test]
    fn every_wrong_command_line_is_refused() {
        for line in [
            "cleanslate",
            "cleanslate sweep",
            "cleanslate sweep --user",
            "cleanslate sweep --user b --grace 5",
            "cleanslate sweep --user b --grace -1s",
            "cleanslate sweep --user b --format yaml",
            "cleanslate sweep --user b extra",
            "cleanslate sweep --user b --replace",
            "cleanslate snapshot --user b --dry-run",
            "cleanslate sweep --user a/b",
            "cleanslate sweap --user b",
            "cleanslate completions tcsh",
        ] {
            assert!(parse(line).is_err(), "`{line}` was taken");
        }
    }
}
