//! What a task reports through the file `$RUNNER_OUTPUT`: lines `key=value`.
//!
//! A task with its own `user` is not trusted: a job could have written its file. Such a task can
//! name its job and nothing else. Lines that are not understood are said once and count for nothing.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

/// Largest file that is read. A report is a handful of lines.
pub(crate) const MAX_FILE: u64 = 64 * 1024;

/// Longest value that is kept, in characters; URLs of CI systems stay far below.
const MAX_VALUE: usize = 1024;

/// Keys any task may report: of the job when it is taken, and of the job that ended.
pub const JOB_KEYS: [&str; 6] = [
    "taken.name",
    "taken.id",
    "job.name",
    "job.result",
    "job.id",
    "job.url",
];

/// Keys only tasks without a user of their own may report.
pub const HOST_KEYS: [&str; 10] = [
    "sweep.verdict",
    "sweep.leftovers",
    "sweep.terminated",
    "sweep.killed",
    "sweep.survived",
    "sweep.duration_ms",
    "reboot.decision",
    "reboot.reason",
    "reboot.pattern",
    "reboot.job",
];

/// The lines of one report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    values: BTreeMap<String, String>,
    /// Lines that count for nothing, with the reason.
    pub refused: Vec<String>,
}

impl Report {
    /// Reads the report of a task. `trusted` is whether it ran as the running user.
    ///
    /// The file is the one that was made for the task, not whatever has its name by now.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(mut file: impl Read + Seek, trusted: bool) -> io::Result<Self> {
        let mut content = Vec::new();
        file.rewind()?;
        file.take(MAX_FILE + 1).read_to_end(&mut content)?;
        Ok(Self::parse(&content, trusted))
    }

    /// The report in `content`.
    #[must_use]
    pub fn parse(content: &[u8], trusted: bool) -> Self {
        let mut report = Self::default();
        if content.len() as u64 > MAX_FILE {
            report
                .refused
                .push(format!("all of it: longer than {MAX_FILE} bytes"));
            return report;
        }
        let text = String::from_utf8_lossy(content);
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match accept(line, trusted) {
                Ok((key, value)) => {
                    report.values.insert(key.to_owned(), value);
                }
                Err(reason) => {
                    let shown: String = line
                        .chars()
                        .take(80)
                        .flat_map(char::escape_default)
                        .collect();
                    report.refused.push(format!("`{shown}`: {reason}"));
                }
            }
        }
        report
    }

    /// The value of `key`, unless it was not reported or is empty.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The number under `key`; zero if there is none.
    #[must_use]
    pub fn number<N: std::str::FromStr + Default>(&self, key: &str) -> N {
        self.value(key)
            .and_then(|value| value.parse().ok())
            .unwrap_or_default()
    }
}

fn accept(line: &str, trusted: bool) -> Result<(&str, String), &'static str> {
    let (key, value) = line.split_once('=').ok_or("expected `key=value`")?;
    let known = JOB_KEYS.contains(&key) || (trusted && HOST_KEYS.contains(&key));
    if !known {
        return Err(if HOST_KEYS.contains(&key) {
            "a task with a user of its own cannot report this"
        } else {
            "no such key"
        });
    }
    let value: String = value
        .chars()
        .take(MAX_VALUE)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    Ok((key, value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_keys_are_kept_and_the_last_line_counts() {
        let report = Report::parse(
            b"job.name=a\njob.name=linux64 build\njob.result=success\n",
            false,
        );
        assert_eq!(report.value("job.name"), Some("linux64 build"));
        assert_eq!(report.value("job.result"), Some("success"));
        assert!(report.refused.is_empty());
    }

    #[test]
    fn a_task_with_its_own_user_reports_its_job_only() {
        let content = b"sweep.verdict=clean\nreboot.decision=go_on\njob.name=x\n";
        let report = Report::parse(content, false);
        assert_eq!(report.value("sweep.verdict"), None);
        assert_eq!(report.value("job.name"), Some("x"));
        assert_eq!(report.refused.len(), 2);
        assert_eq!(
            Report::parse(content, true).value("sweep.verdict"),
            Some("clean")
        );
    }

    #[test]
    fn hostile_lines_count_for_nothing() {
        let mut content =
            b"job.name=a\x1b[2J\nno equals sign\nPATH=/tmp\n\xff\xfe=1\njob.url=".to_vec();
        content.extend(vec![b'u'; 5000]);
        let report = Report::parse(&content, true);
        assert_eq!(report.value("job.name"), Some("a\u{fffd}[2J"));
        assert_eq!(report.value("job.url").map(str::len), Some(MAX_VALUE));
        assert_eq!(report.refused.len(), 3);
        let long = vec![b'x'; 65 * 1024];
        assert_eq!(Report::parse(&long, true).refused.len(), 1);
    }
}
