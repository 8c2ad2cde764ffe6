//! What a person sees: on a terminal one moving line for what goes on and a line for what is over,
//! elsewhere log lines.

use std::io::{self, Write};
use std::time::Duration;

use farm_events::{Outcome, RunResult};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing::{info, warn};
use tracing_subscriber::fmt::MakeWriter;

use crate::child::{Cut, Ending, Finished};
use crate::task::Task;

/// How often the moving line moves.
const TICK: Duration = Duration::from_millis(120);

/// How much of a failed task's output is shown.
const SHOWN_LINES: usize = 10;

/// Shows what goes on.
#[derive(Clone, Debug)]
pub struct View {
    terminal: Option<MultiProgress>,
    moving: Option<ProgressBar>,
}

impl View {
    /// For a terminal, or for log lines.
    #[must_use]
    pub fn new(on_terminal: bool) -> Self {
        Self {
            terminal: on_terminal.then(MultiProgress::new),
            moving: None,
        }
    }

    /// Where log lines must go so that they do not tear the moving line.
    #[must_use]
    pub fn log_writer(&self) -> LogWriter {
        LogWriter {
            terminal: self.terminal.clone(),
        }
    }

    /// An attempt starts.
    pub fn attempt_started(&mut self, task: &Task, attempt: u32) {
        let title = title(task, attempt);
        if self.move_line("{spinner} {msg}  {elapsed}", title.clone()) {
            return;
        }
        info!(task = %task.name, attempt, "task started");
    }

    /// An attempt ended; `delay` is the wait before the next one.
    pub fn attempt_finished(
        &mut self,
        task: &Task,
        attempt: u32,
        finished: &Finished,
        outcome: Outcome,
        delay: Option<Duration>,
    ) {
        let ending = describe(&finished.ending, finished.cut);
        if let Some(terminal) = self.terminal.clone() {
            let mark = match outcome {
                Outcome::Ok => "✔",
                Outcome::Halt | Outcome::Exit => "■",
                Outcome::Retry => "✘",
            };
            let mut line = format!(
                "{mark} {}  {}",
                title(task, attempt),
                short(finished.duration)
            );
            if outcome != Outcome::Ok {
                line.push_str(&format!("  {ending}"));
            }
            self.stop_moving();
            print_line(&terminal, &line);
            if outcome == Outcome::Retry {
                for line in finished.output.last_lines(SHOWN_LINES) {
                    print_line(&terminal, &format!("    {line}"));
                }
            }
            return;
        }
        let duration_ms = u64::try_from(finished.duration.as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Outcome::Ok => info!(task = %task.name, attempt, duration_ms, "task ended well"),
            Outcome::Halt => {
                info!(task = %task.name, attempt, duration_ms, "task asks to halt the host")
            }
            Outcome::Exit if finished.cut == Some(Cut::Stopped) => {
                info!(task = %task.name, attempt, duration_ms, "task was ended by request");
            }
            Outcome::Exit if finished.cut == Some(Cut::Interrupted) => {
                info!(task = %task.name, attempt, duration_ms, "task was ended because the cloud takes the instance back");
            }
            Outcome::Exit => info!(task = %task.name, attempt, duration_ms, "task asks to stop"),
            Outcome::Retry => {
                for line in finished.output.last_lines(SHOWN_LINES) {
                    info!(task = %task.name, "| {line}");
                }
                let max_attempts = task.max_attempts;
                let shared_resource = task.shared_resource.as_deref();
                let delay_ms =
                    delay.map(|delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
                match delay_ms {
                    Some(delay_ms) => {
                        warn!(task = %task.name, attempt, max_attempts, ending, duration_ms, delay_ms, shared_resource, "task failed, will retry");
                    }
                    None => {
                        warn!(task = %task.name, attempt, max_attempts, ending, duration_ms, shared_resource, "task failed, no attempt is left");
                    }
                }
            }
        }
    }

    /// A job ended.
    pub fn job_finished(&mut self, job: &str, result: &str) {
        self.tell(
            || format!("    job `{job}`: {result}"),
            || info!(job, result, "job ended"),
        );
    }

    /// It was decided whether the host reboots.
    pub fn reboot_decided(&mut self, decision: &str, reason: Option<&str>) {
        let because = reason
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        self.tell(
            || format!("    reboot decision: {decision}{because}"),
            || info!(decision, reason, "reboot decided"),
        );
    }

    /// Processes a task left behind were ended.
    pub fn leftovers_ended(&mut self, task: &Task, leftovers: u32) {
        self.tell(
            || {
                format!(
                    "    {leftovers} processes left by {} were killed",
                    task.name
                )
            },
            || info!(task = %task.name, leftovers, "processes left by the task were killed"),
        );
    }

    fn tell(&mut self, line: impl FnOnce() -> String, log: impl FnOnce()) {
        match self.terminal.clone() {
            Some(terminal) => {
                self.stop_moving();
                print_line(&terminal, &line());
            }
            None => log(),
        }
    }

    /// The wait before the next attempt begins.
    pub fn waiting(&mut self, task: &Task, attempt: u32, delay: Duration) {
        let message = format!(
            "{}  failed, next attempt in {}",
            title(task, attempt),
            short(delay)
        );
        self.move_line("{spinner} {msg}  ({elapsed} waited)", message);
    }

    /// Something else goes on.
    pub fn doing(&mut self, what: &str) {
        if !self.move_line("{spinner} {msg}  {elapsed}", what.to_owned()) {
            info!("{what}");
        }
    }

    /// A run ended.
    pub fn run_finished(
        &mut self,
        number: u64,
        result: RunResult,
        task: Option<&str>,
        duration: Duration,
    ) {
        self.stop_moving();
        if let Some(terminal) = &self.terminal {
            let by = task.map(|task| format!(" by {task}")).unwrap_or_default();
            print_line(
                terminal,
                &format!("── run {number} {result}{by} after {}", short(duration)),
            );
            return;
        }
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        info!(run = number, %result, task, duration_ms, "run ended");
    }

    /// Ends the moving line.
    pub fn stop_moving(&mut self) {
        if let Some(moving) = self.moving.take() {
            moving.finish_and_clear();
        }
    }

    fn move_line(&mut self, template: &str, message: String) -> bool {
        self.stop_moving();
        let Some(terminal) = &self.terminal else {
            return false;
        };
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = terminal.add(
            ProgressBar::new_spinner()
                .with_style(style)
                .with_message(message),
        );
        bar.enable_steady_tick(TICK);
        self.moving = Some(bar);
        true
    }
}

fn print_line(terminal: &MultiProgress, line: &str) {
    // A terminal that went away is no reason to stop working.
    terminal.println(line).ok();
}

fn title(task: &Task, attempt: u32) -> String {
    if attempt > 1 {
        format!("{}  attempt {attempt}/{}", task.name, task.max_attempts)
    } else {
        task.name.full()
    }
}

/// A duration as a person says it: `0.12s` below a minute, else `2m 3s`.
fn short(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        format!("{:.2}s", duration.as_secs_f64())
    } else {
        humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
    }
}

/// How a task ended, in words.
#[must_use]
pub fn describe(ending: &Ending, cut: Option<Cut>) -> String {
    match (cut, ending) {
        (Some(Cut::TimedOut), _) => "ran longer than its timeout".into(),
        (Some(Cut::Stopped), _) => "ended by request".into(),
        (Some(Cut::Interrupted), _) => "ended because the cloud takes the instance back".into(),
        (None, Ending::Exited(code)) => format!("exit code {code}"),
        (None, Ending::Signalled(signal)) => match nix::sys::signal::Signal::try_from(*signal) {
            Ok(name) => format!("signal {signal} ({name})"),
            Err(_) => format!("signal {signal}"),
        },
        (None, Ending::NotStarted(why)) => format!("could not be started: {why}"),
    }
}

/// Writes log lines to standard error, around the moving line if there is one.
#[derive(Clone, Debug)]
pub struct LogWriter {
    terminal: Option<MultiProgress>,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Words that nobody can read any more (a closed pipe, a full disk, a journal that went
        // away) are no reason to stop working; the subscriber would panic on an error.
        match &self.terminal {
            Some(terminal) => terminal.suspend(|| io::stderr().write_all(bytes)).ok(),
            None => io::stderr().write_all(bytes).ok(),
        };
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush().ok();
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for LogWriter {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_told_in_words() {
        let told = [
            describe(&Ending::Exited(1), None),
            describe(&Ending::Signalled(9), None),
            describe(&Ending::Signalled(64), None),
            describe(&Ending::NotStarted("no such file".into()), None),
            describe(&Ending::Signalled(15), Some(Cut::TimedOut)),
            describe(&Ending::Signalled(15), Some(Cut::Stopped)),
        ];
        insta::assert_snapshot!(told.join("\n"));
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(short(Duration::from_millis(120)), "0.12s");
        assert_eq!(short(Duration::from_millis(123_456)), "2m 3s");
    }
}
