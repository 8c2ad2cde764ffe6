//! Log lines on standard error: short text for people and the journal, JSON for machines.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Sends log lines to standard error. `verbosity` 0 shows `info`, 1 `debug`, 2 and more `trace`.
///
/// Returns whether it did: `false` if the process logs already.
pub fn init(format: Format, verbosity: u8) -> bool {
    init_to(format, verbosity, std::io::stderr)
}

/// As [`init`], through `writer`: for a program that also draws on the terminal.
pub fn init_to<W>(format: Format, verbosity: u8, writer: W) -> bool
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(verbosity))
        .with_writer(writer)
        .with_target(verbosity > 0);
    let done = match format {
        Format::Text => builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_timer(Clock {
                shown: !is_journal(),
            })
            .try_init(),
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_ansi(false)
            .try_init(),
    };
    done.is_ok()
}

/// Ours at the level asked for; libraries only when something is wrong, until `trace` is asked for.
fn filter(verbosity: u8) -> EnvFilter {
    let (ours, others) = match verbosity {
        0 => ("info", "warn"),
        1 => ("debug", "warn"),
        _ => ("trace", "debug"),
    };
    let mut directives = others.to_owned();
    for ours_is in [
        "runner",
        "cleanslate",
        "provisioner",
        "farm_events",
        "farm_telemetry",
    ] {
        directives.push_str(&format!(",{ours_is}={ours}"));
    }
    EnvFilter::new(directives)
}

/// Whether standard error is the journal, which has the time of each line already.
///
/// Systemd connects it by a socket; a terminal, a pipe or a file is something else.
fn is_journal() -> bool {
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket())
}

/// UTC in RFC 3339, or nothing.
struct Clock {
    shown: bool,
}

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        if self.shown {
            SystemTime.format_time(writer)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
