//! A record as one syslog line: RFC 5424 for the network, the local form for `/dev/log`.
//!
//! The text is `EVENT key=value …` and made for `grep`. A retry is always
//!
//! ```text
//! RETRY task=10-update_repo attempt=2 max_attempts=5 code=1 delay=12.3s
//! ```
//!
//! with `code` an exit code, `signal:9`, `timeout` or `spawn`, and `delay=none` when no attempt is
//! left. RFC 5424 carries the same keys again as structured data.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use farm_events::{Event, Outcome, Record, RunResult, TaskFinished, Value};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Identifier of our structured data. 32473 is the enterprise number that RFC 5612 sets aside for
/// documentation: nobody else's, and the project has none of its own.
pub const SD_ID: &str = "farmhand@32473";

/// Which part of the system speaks, by the names of syslog.conf(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Facility {
    /// User programs.
    User,
    /// System services.
    #[default]
    Daemon,
    /// Clock daemon (cron).
    Cron,
    /// For local use.
    Local0,
    /// For local use.
    Local1,
    /// For local use.
    Local2,
    /// For local use.
    Local3,
    /// For local use.
    Local4,
    /// For local use.
    Local5,
    /// For local use.
    Local6,
    /// For local use.
    Local7,
}

impl Facility {
    /// Numerical code: RFC 5424, table 1.
    const fn code(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Daemon => 3,
            Self::Cron => 9,
            Self::Local0 => 16,
            Self::Local1 => 17,
            Self::Local2 => 18,
            Self::Local3 => 19,
            Self::Local4 => 20,
            Self::Local5 => 21,
            Self::Local6 => 22,
            Self::Local7 => 23,
        }
    }
}

/// Numerical codes of RFC 5424, table 2.
#[derive(Clone, Copy)]
enum Severity {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Who speaks: the same in every line of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Part of the system.
    pub facility: Facility,
    /// Name of the program.
    pub app_name: String,
    /// Its process id.
    pub process_id: u32,
}

/// The record in RFC 5424, in at most `longest` bytes.
///
/// Too long a text is cut at the end of a character and marked with `…`; where structured data
/// would leave the text no room, it is left out: text is what people search.
#[must_use]
pub fn format_5424(record: &Record, speaker: &Speaker, longest: usize) -> String {
    let words = Words::of(&record.event);
    // RFC 5424 allows six digits of a second, not nine.
    let time = record
        .time
        .to_zoned(TimeZone::UTC)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
    let mut line = format!(
        "<{}>1 {time} {} {} {} {} ",
        priority(speaker, &words),
        header_word(&record.identity.host, 255),
        header_word(&speaker.app_name, 48),
        speaker.process_id,
        header_word(&words.name, 32),
    );
    let data = words.structured_data();
    let text = words.text();
    // Room for at least this much of the text is worth more than structured data.
    let shortest_text = text.len().min(256);
    if line.len() + data.len() + 1 + shortest_text <= longest {
        line.push_str(&data);
    } else {
        line.push('-');
    }
    line.push(' ');
    line.push_str(&text);
    cut(line, longest)
}

/// The record in the form that syslog(3) writes to `/dev/log`, in at most `longest` bytes.
///
/// Receivers stamp it with the time of its arrival, so the time of the event is its last word.
#[must_use]
pub fn format_local(record: &Record, speaker: &Speaker, longest: usize) -> String {
    let words = Words::of(&record.event);
    let time = format!(" time={}", record.time);
    let text = format!(
        "<{}>{}[{}]: {}",
        priority(speaker, &words),
        header_word(&speaker.app_name, 48),
        speaker.process_id,
        words.text()
    );
    let mut line = cut(text, longest.saturating_sub(time.len()));
    line.push_str(&time);
    line
}

/// An event in the words of a syslog line.
struct Words<'a> {
    severity: Severity,
    name: Cow<'static, str>,
    pairs: Vec<(&'static str, Cow<'a, str>)>,
}

impl<'a> Words<'a> {
    fn of(event: &'a Event) -> Self {
        match event {
            Event::TaskFinished(task) if task.outcome == Outcome::Retry => Self::retry(task),
            Event::RunFinished(run) if run.result == RunResult::Failed => {
                Self::plain(event, Severity::Error)
            }
            Event::PassFinished(pass) if pass.faults > 0 => Self::plain(event, Severity::Error),
            Event::HookFailed(_) | Event::InterruptionNoticed(_) | Event::LaunchFell(_) => {
                Self::plain(event, Severity::Warning)
            }
            Event::TaskStarted(_)
            | Event::TaskFinished(_)
            | Event::RunFinished(_)
            | Event::JobFinished(_)
            | Event::AssignmentChanged(_)
            | Event::HostBooted(_)
            | Event::RebootDecided(_)
            | Event::SweepFinished(_)
            | Event::Heartbeat(_)
            | Event::PoolPlanned(_)
            | Event::PassFinished(_)
            | Event::InstanceLaunched(_)
            | Event::InstanceEnded(_) => Self::plain(event, Severity::Info),
        }
    }

    fn retry(task: &'a TaskFinished) -> Self {
        let delay = task.delay_ms.map_or(Cow::Borrowed("none"), |delay| {
            // Tenths of a second, rounded; in whole numbers, so that it is exact.
            let tenths = delay.saturating_add(50) / 100;
            Cow::Owned(format!("{}.{}s", tenths / 10, tenths % 10))
        });
        Self {
            severity: Severity::Warning,
            name: Cow::Borrowed("RETRY"),
            pairs: vec![
                ("task", printable(&task.task)),
                ("attempt", task.attempt.to_string().into()),
                ("max_attempts", task.max_attempts.to_string().into()),
                ("code", code(task)),
                ("delay", delay),
            ],
        }
    }

    fn plain(event: &'a Event, severity: Severity) -> Self {
        let pairs = event
            .columns()
            .into_iter()
            .map(|column| (column.name, word(column.value)));
        Self {
            severity,
            name: Cow::Owned(event.name().to_uppercase()),
            pairs: pairs.collect(),
        }
    }

    /// `NAME key=value …`; a value that is not one word is quoted.
    fn text(&self) -> String {
        let mut text = self.name.clone().into_owned();
        for (key, value) in &self.pairs {
            let plain = !value.is_empty()
                && !value.contains(|character: char| {
                    character.is_whitespace() || matches!(character, '"' | '=' | '\\')
                });
            if plain {
                push(&mut text, format_args!(" {key}={value}"));
            } else {
                push(
                    &mut text,
                    format_args!(" {key}=\"{}\"", escaped(value, &['"', '\\'])),
                );
            }
        }
        text
    }

    fn structured_data(&self) -> String {
        let mut data = format!("[{SD_ID}");
        for (key, value) in &self.pairs {
            // RFC 5424, section 6.3.3: these three and no others.
            push(
                &mut data,
                format_args!(" {key}=\"{}\"", escaped(value, &['"', '\\', ']'])),
            );
        }
        data.push(']');
        data
    }
}

fn push(text: &mut String, arguments: fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _infallible = text.write_fmt(arguments);
}

/// How the attempt ended, in one word.
fn code(task: &TaskFinished) -> Cow<'static, str> {
    match (task.timed_out, task.exit_code, task.signal) {
        (true, _, _) => "timeout".into(),
        (false, Some(code), _) => code.to_string().into(),
        (false, None, Some(signal)) => format!("signal:{signal}").into(),
        (false, None, None) => "spawn".into(),
    }
}

fn word(value: Value<'_>) -> Cow<'_, str> {
    match value {
        Value::Text(text) => printable(text),
        Value::Integer(number) => number.to_string().into(),
        Value::Float(number) => number.to_string().into(),
        Value::Bool(yes) => if yes { "true" } else { "false" }.into(),
    }
}

/// The text with `�` for each control character: a line break could forge a line of its own.
fn printable(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.replace(char::is_control, "\u{fffd}").into()
    } else {
        text.into()
    }
}

fn escaped<'t>(text: &'t str, special: &[char]) -> Cow<'t, str> {
    if !text.contains(special) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if special.contains(&character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped.into()
}

fn priority(speaker: &Speaker, words: &Words<'_>) -> u8 {
    speaker.facility.code() * 8 + words.severity as u8
}

/// A word of the header: printable ASCII, or `-` for "not known".
fn header_word(text: &str, longest: usize) -> Cow<'_, str> {
    if text.is_empty() {
        return "-".into();
    }
    let fits = text.len() <= longest && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        return text.into();
    }
    let graphic = |character: char| {
        if character.is_ascii_graphic() {
            character
        } else {
            '_'
        }
    };
    text.chars()
        .take(longest)
        .map(graphic)
        .collect::<String>()
        .into()
}

/// The line in at most `longest` bytes, whole characters only, marked if something is missing.
fn cut(mut line: String, longest: usize) -> String {
    const MARK: &str = "…";
    if line.len() > longest {
        line.truncate(line.floor_char_boundary(longest.saturating_sub(MARK.len())));
        line.push_str(MARK);
    }
    line
}

#[cfg(test)]
mod tests;
