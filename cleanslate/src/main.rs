//! The command `cleanslate`.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cleanslate::cli::{Cli, Command};
use cleanslate::command::{self, Fault, Output};
use jiff::Timestamp;

/// Wrong command line, `EX_USAGE` of sysexits(3).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output; if nobody reads them, well.
            let _printed = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    start_log(cli.verbose);
    match run(cli.command) {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            report(&fault);
            ExitCode::from(fault.exit_code())
        }
    }
}

fn run(command: Command) -> Result<u8, Fault> {
    let mut output = Output {
        results: io::stdout().lock(),
        words: io::stderr().lock(),
    };
    match command {
        Command::Snapshot(args) => command::snapshot(&args, now(), &mut output).map(|()| 0),
        Command::Sweep(args) => command::sweep(&args, &mut output),
        Command::Show(args) => command::show(&args, &mut output).map(|()| 0),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cleanslate", &mut script);
            output.results.write_all(&script)?;
            Ok(0)
        }
        Command::Man => {
            clap_mangen::Man::new(Cli::command()).render(&mut output.results)?;
            Ok(0)
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

fn start_log(verbose: bool) {
    let level = if verbose {
        tracing::Level::DEBUG
    } else {
        tracing::Level::WARN
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Prints a fault and its causes on one line. If standard error is closed, the exit code remains.
fn report(fault: &Fault) {
    let mut line = format!("cleanslate: {fault}");
    let mut cause = fault.source();
    while let Some(source) = cause {
        line.push_str(&format!(": {source}"));
        cause = source.source();
    }
    let _printed = writeln!(io::stderr(), "{line}");
}
