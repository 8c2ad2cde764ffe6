//! Which job is at work: what a task writes into its report when it takes one.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::debug;

use super::{CurrentJob, Doing};
use crate::report::{MAX_FILE, Report};
use crate::spool::registered;

/// How soon after one look there may be another: who writes without end is not read without end.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Watches the report of one attempt; ends with this value.
#[derive(Debug)]
pub(crate) struct Watching(Option<tokio::task::JoinHandle<()>>);

impl Watching {
    /// Watches `report`. If that cannot be, the job is known when its task ends.
    pub(super) fn start(report: impl AsFd, trusted: bool, doing: watch::Sender<Doing>) -> Self {
        let report = report.as_fd();
        let watched =
            changes_of(report).and_then(|changes| Ok((changes, report.try_clone_to_owned()?)));
        Self(match watched {
            Ok((changes, report)) => Some(tokio::task::spawn_local(async move {
                if let Some(job) = wait_for_job(report.as_fd(), trusted, &changes).await {
                    doing.send_modify(|doing| doing.job = Some(job));
                }
            })),
            Err(error) => {
                debug!(%error, "the report of a task cannot be watched");
                None
            }
        })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The job that is named first. None if the file becomes too long, or cannot be read any more.
async fn wait_for_job(
    report: BorrowedFd<'_>,
    trusted: bool,
    changes: &AsyncFd<OwnedFd>,
) -> Option<CurrentJob> {
    loop {
        let content = content(report).ok()?;
        if let Some(job) = taken(&Report::parse(&content, trusted)) {
            return Some(job);
        }
        let mut ready = changes.readable().await.ok()?;
        let mut events = [0; 4096];
        // What the events say is of no interest: the file is read again in any case.
        if let Ok(Err(error)) =
            ready.try_io(|changes| Ok(rustix::io::read(changes.as_fd(), &mut events)?))
        {
            debug!(%error, "the report of a task cannot be watched any more");
            return None;
        }
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}

/// What is in the file, without moving where anybody reads or writes.
fn content(report: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let length = u64::try_from(rustix::fs::fstat(report)?.st_size).unwrap_or(u64::MAX);
    if length > MAX_FILE {
        return Err(io::Error::other("the report is too long"));
    }
    let mut content = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let read = rustix::io::pread(report, &mut content, 0)?;
    content.truncate(read);
    // A line that is not finished may be half a name.
    let whole = content.iter().rposition(|byte| *byte == b'\n');
    content.truncate(whole.map_or(0, |end| end + 1));
    Ok(content)
}

/// The job in a report: the one that ended, or else the one that was taken.
pub(crate) fn taken(report: &Report) -> Option<CurrentJob> {
    let job = |name, id| {
        Some(CurrentJob {
            name: report.value(name)?.to_owned(),
            id: report.value(id).unwrap_or_default().to_owned(),
        })
    };
    job("job.name", "job.id").or_else(|| job("taken.name", "taken.id"))
}

fn changes_of(file: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let changes = inotify::init(flags)?;
    // The open file, whatever has its name by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY)?;
    registered(changes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_job_is_known_as_soon_as_its_lines_are_whole() {
        tokio::task::LocalSet::new()
            .run_until(async {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                let (doing, mut doings) = watch::channel(Doing::default());
                let watching = Watching::start(file.as_file(), false, doing);
                file.write_all(b"taken.id=7\ntaken.name=linux").unwrap();
                tokio::time::sleep(BETWEEN_LOOKS * 2).await;
                assert_eq!(doings.borrow_and_update().job, None);
                file.write_all(b"64\n").unwrap();
                tokio::time::timeout(Duration::from_secs(20), doings.changed())
                    .await
                    .unwrap()
                    .unwrap();
                let job = doings.borrow().job.clone().unwrap();
                assert_eq!((job.name.as_str(), job.id.as_str()), ("linux64", "7"));
                drop(watching);
            })
            .await;
    }

    #[test]
    fn the_job_that_ended_counts_before_the_one_that_was_taken() {
        let report = |text: &str| taken(&Report::parse(text.as_bytes(), true));
        assert_eq!(report(""), None);
        assert_eq!(report("taken.name=a\n").unwrap().name, "a");
        assert_eq!(
            report("taken.name=a\njob.name=b\njob.id=1\n").unwrap().name,
            "b"
        );
    }
}
