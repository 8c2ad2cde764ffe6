//! The journal of this host: every event but heartbeats, one JSON object a line, of bounded size.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use farm_events::{Event, Record};
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// The file being written.
const FILE: &str = "history.jsonl";
/// The one before.
const OLDER_FILE: &str = "history.1.jsonl";

/// When the file is put aside: together with the one before it keeps some 20,000 attempts.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The open journal.
#[derive(Debug)]
pub struct History {
    directory: PathBuf,
    file: fs_err::File,
    bytes: u64,
    /// Whether the file ends in the middle of a line.
    torn: bool,
}

impl History {
    /// Opens the journal in `directory`. A line that was cut short by a crash is ended by the next.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(FILE);
        let torn = fs_err::read(&path)
            .is_ok_and(|content| content.last().is_some_and(|byte| *byte != b'\n'));
        let file = fs_err::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            directory: directory.to_owned(),
            file,
            bytes,
            torn,
        })
    }

    /// Appends one record.
    ///
    /// # Errors
    /// If it cannot be written; the run goes on without it.
    pub fn append(&mut self, record: &Record) -> io::Result<()> {
        if matches!(record.event, Event::Heartbeat(_)) {
            return Ok(());
        }
        if self.bytes >= MAX_BYTES {
            fs_err::rename(self.directory.join(FILE), self.directory.join(OLDER_FILE))?;
            *self = Self::open(&self.directory)?;
        }
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        if self.torn {
            line.insert(0, b'\n');
        }
        let written = self.file.write_all(&line);
        // A full disk may have taken the beginning of it.
        self.torn = written.is_err();
        written?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// The last `count` records that `wanted` accepts, oldest first. Lines that are not understood are left out.
///
/// # Errors
/// If a file is there and cannot be read.
pub fn last(
    directory: &Path,
    count: usize,
    wanted: impl Fn(&Event) -> bool,
) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for file in [OLDER_FILE, FILE] {
        let text = match fs_err::read(directory.join(file)) {
            Ok(content) => String::from_utf8_lossy(&content).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        records.extend(
            text.lines()
                .filter_map(|line| serde_json::from_str::<Record>(line).ok())
                .filter(|record| wanted(&record.event)),
        );
    }
    records.drain(..records.len().saturating_sub(count));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use farm_events::{HookFailed, Identity};

    use super::*;

    fn record(number: usize) -> Record {
        Record {
            time: jiff::Timestamp::UNIX_EPOCH,
            identity: Identity::default(),
            event: HookFailed {
                task: number.to_string(),
                error: "x".repeat(1000),
                run_id: "r".into(),
            }
            .into(),
        }
    }

    fn task(record: &Record) -> String {
        match &record.event {
            Event::HookFailed(event) => event.task.clone(),
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn the_last_records_are_read_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::open(directory.path()).unwrap();
        for number in 0..5 {
            history.append(&record(number)).unwrap();
        }
        let records = last(directory.path(), 2, |_| true).unwrap();
        assert_eq!(records.iter().map(task).collect::<Vec<_>>(), ["3", "4"]);
    }

    #[test]
    fn the_journal_keeps_two_files_of_bounded_size() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::open(directory.path()).unwrap();
        for number in 0..10_000 {
            history.append(&record(number)).unwrap();
        }
        let size: u64 = fs_err::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!(size <= 2 * MAX_BYTES + 4096, "{size}");
        let records = last(directory.path(), 1, |_| true).unwrap();
        assert_eq!(task(&records[0]), "9999");
    }

    #[test]
    fn a_line_cut_short_by_a_crash_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let mut history = History::open(directory.path()).unwrap();
        history.append(&record(1)).unwrap();
        fs_err::OpenOptions::new()
            .append(true)
            .open(directory.path().join(FILE))
            .unwrap()
            .write_all(b"{\"time\":\"2026")
            .unwrap();
        let mut history = History::open(directory.path()).unwrap();
        history.append(&record(2)).unwrap();
        let records = last(directory.path(), 9, |_| true).unwrap();
        assert_eq!(records.iter().map(task).collect::<Vec<_>>(), ["1", "2"]);
    }
}
