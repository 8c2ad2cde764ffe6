//! GitHub Actions: the jobs of the runs that are queued or in progress, by REST.
//!
//! "List workflow runs for a repository" and "List jobs for a workflow run" of the GitHub REST
//! reference. A run in progress may have jobs that are queued, so both kinds of runs are looked at;
//! a run costs one request. An answer that has not changed (`If-None-Match`, 304) is free of GitHub's
//! hourly limit. Requests are made one after another, as GitHub asks for, and after a refusal for too
//! many requests none is made until the time it names.
//!
//! The rules see `OWNER/NAME / WORKFLOW / JOB [label,label]`, labels in lower case and sorted.

use std::collections::HashMap;
use std::time::Duration;

use farm_config::secret::Secret;
use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::settings::GithubSettings;
use super::web::{self, Ask, Reply, Web};
use super::{DemandSource, Observation, SourceError, WaitingJob, Work};

/// Rows of a page; GitHub gives at most 100.
const PAGE: usize = 100;
/// Version of the API that is spoken.
const API_VERSION: &str = "2022-11-28";
/// Wait after a refusal that names no time, as GitHub asks for.
const DEFAULT_WAIT: Duration = Duration::from_secs(60);
/// Longest wait that is obeyed: the hourly limit is renewed within an hour.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Repositories of GitHub, or of a GitHub Enterprise server.
#[derive(Debug)]
pub struct Github {
    web: Web,
    settings: GithubSettings,
    /// Held while it is asked: requests are made one after another.
    known: Mutex<Known>,
}

/// What is remembered from pass to pass.
#[derive(Debug, Default)]
struct Known {
    /// Pages that may be the same next time, by path.
    pages: HashMap<String, Page>,
    /// No request is made before this.
    not_before: Option<Timestamp>,
}

/// A page, as far as it matters.
#[derive(Clone, Debug)]
struct Page {
    etag: HeaderValue,
    rows: Rows,
}

#[derive(Clone, Debug)]
enum Rows {
    Runs(usize, Vec<Run>),
    Jobs(usize, Vec<Job>),
}

#[derive(Deserialize)]
struct RunsAnswer {
    total_count: usize,
    workflow_runs: Vec<Run>,
}

#[derive(Deserialize)]
struct JobsAnswer {
    total_count: usize,
    jobs: Vec<Job>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Run {
    id: u64,
    name: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Job {
    name: String,
    status: String,
    created_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    #[serde(default)]
    labels: Vec<String>,
    workflow_name: Option<String>,
}

impl Github {
    pub(super) fn new(settings: GithubSettings) -> Result<Self, String> {
        Ok(Self {
            web: Web::new(&settings.url, settings.timeout)?,
            settings,
            known: Mutex::default(),
        })
    }
}

impl DemandSource for Github {
    async fn observe(&self, now: Timestamp) -> Result<Observation, SourceError> {
        let mut known = self.known.lock().await;
        if let Some(until) = known.not_before.filter(|until| now < *until) {
            return Err(SourceError::Unavailable(format!(
                "GitHub's limit of requests is used up until {until:.0}"
            )));
        }
        let secret = web::token(self.settings.token_file.as_deref())?;
        let mut asking = Asking {
            github: self,
            secret: secret.as_ref(),
            now,
            as_of: None,
            before: &known.pages,
            pages: HashMap::new(),
            requests: 0,
            not_before: None,
        };
        let jobs = asking.jobs().await;
        let (as_of, not_before) = (asking.as_of, asking.not_before);
        let pages = asking.pages;
        known.not_before = not_before;
        match jobs {
            Ok(jobs) => {
                // Pages of runs that are over are forgotten here.
                known.pages = pages;
                Ok(Observation::new(as_of.unwrap_or(now), Work::Jobs(jobs)))
            }
            Err(error) => {
                // What was not reached may still be the same; but there is an end to remembering.
                let most = 2 * self.settings.max_requests.get() as usize;
                if known.pages.len() + pages.len() > most {
                    known.pages.clear();
                }
                known.pages.extend(pages);
                Err(error)
            }
        }
    }
}

/// One pass over all repositories.
struct Asking<'a> {
    github: &'a Github,
    secret: Option<&'a Secret>,
    now: Timestamp,
    /// Time of the first answer: later ones may already know more.
    as_of: Option<Timestamp>,
    before: &'a HashMap<String, Page>,
    pages: HashMap<String, Page>,
    requests: u32,
    not_before: Option<Timestamp>,
}

impl Asking<'_> {
    async fn jobs(&mut self) -> Result<Vec<WaitingJob>, SourceError> {
        let mut jobs = Vec::new();
        for repository in &self.github.settings.repositories {
            // In this order: a run that starts in between is then seen twice, and not missed.
            let mut runs = self.runs(repository, "queued").await?;
            for run in self.runs(repository, "in_progress").await? {
                if !runs.contains(&run) {
                    runs.push(run);
                }
            }
            for run in runs {
                for job in self.jobs_of(repository, &run).await? {
                    jobs.extend(waiting(repository, &run, job)?);
                }
            }
        }
        Ok(jobs)
    }

    async fn runs(&mut self, repository: &str, status: &str) -> Result<Vec<Run>, SourceError> {
        let mut runs = Vec::new();
        for page in 1.. {
            let path = format!(
                "/repos/{repository}/actions/runs?status={status}&per_page={PAGE}&page={page}"
            );
            let rows = self.page(&path, |reply| {
                let answer: RunsAnswer = reply.json("GitHub")?;
                Ok(Rows::Runs(answer.total_count, answer.workflow_runs))
            });
            let Rows::Runs(total, rows) = rows.await? else {
                return Err(mixed_up());
            };
            let length = rows.len();
            runs.extend(rows);
            if length < PAGE || runs.len() >= total {
                complete(runs.len(), total, "runs")?;
                break;
            }
        }
        Ok(runs)
    }

    async fn jobs_of(&mut self, repository: &str, run: &Run) -> Result<Vec<Job>, SourceError> {
        let mut jobs = Vec::new();
        for page in 1.. {
            // `latest`: a run that is tried again has the jobs of earlier attempts too.
            let path = format!(
                "/repos/{repository}/actions/runs/{}/jobs?filter=latest&per_page={PAGE}&page={page}",
                run.id
            );
            let rows = self.page(&path, |reply| {
                let answer: JobsAnswer = reply.json("GitHub")?;
                Ok(Rows::Jobs(answer.total_count, answer.jobs))
            });
            let Rows::Jobs(total, rows) = rows.await? else {
                return Err(mixed_up());
            };
            let length = rows.len();
            jobs.extend(rows);
            if length < PAGE || jobs.len() >= total {
                complete(jobs.len(), total, "jobs")?;
                break;
            }
        }
        Ok(jobs)
    }

    /// One page, from memory if GitHub says that it is the same.
    async fn page(
        &mut self,
        path: &str,
        rows: impl FnOnce(&Reply) -> Result<Rows, SourceError>,
    ) -> Result<Rows, SourceError> {
        let most = self.github.settings.max_requests.get();
        if self.requests >= most {
            return Err(SourceError::Unavailable(format!(
                "more runs are active than {most} requests can show: raise `max_requests`, or divide `repositories` among several sources"
            )));
        }
        self.requests += 1;
        let mut headers = vec![
            (
                ACCEPT,
                HeaderValue::from_static("application/vnd.github+json"),
            ),
            (
                HeaderName::from_static("x-github-api-version"),
                HeaderValue::from_static(API_VERSION),
            ),
        ];
        let before = self.before.get(path);
        if let Some(before) = before {
            headers.push((IF_NONE_MATCH, before.etag.clone()));
        }
        let ask = Ask {
            path,
            authorization: web::authorization("Bearer", self.secret),
            headers,
            secret: self.secret,
            ..Ask::default()
        };
        let reply = self.github.web.ask(ask).await?;
        if let Some(error) = self.refusal(&reply) {
            return Err(error);
        }
        let page = match (reply.status, before) {
            (StatusCode::NOT_MODIFIED, Some(before)) => Some(before.clone()),
            _ => None,
        };
        let as_of = reply.as_of(self.now);
        self.as_of = Some(self.as_of.map_or(as_of, |first| first.min(as_of)));
        if let Some(page) = page {
            let rows = page.rows.clone();
            self.pages.insert(path.to_owned(), page);
            return Ok(rows);
        }
        let reply = reply.successful()?;
        let rows = rows(&reply)?;
        if let Some(etag) = reply.headers.get(ETAG) {
            let page = Page {
                etag: etag.clone(),
                rows: rows.clone(),
            };
            self.pages.insert(path.to_owned(), page);
        }
        Ok(rows)
    }

    /// Whether GitHub wants no further requests for now, and how long.
    fn refusal(&mut self, reply: &Reply) -> Option<SourceError> {
        let is_refusal = match reply.status {
            StatusCode::TOO_MANY_REQUESTS => true,
            StatusCode::FORBIDDEN => {
                reply.header("x-ratelimit-remaining") == Some("0")
                    || reply.header("retry-after").is_some()
                    || reply.quote().contains("rate limit")
            }
            _ => false,
        };
        if !is_refusal {
            return None;
        }
        let number = |name| reply.header(name)?.trim().parse::<i64>().ok();
        let by_its_clock = reply.as_of(self.now);
        let wait = number("retry-after")
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs)
            .or_else(|| {
                let used_up = reply.header("x-ratelimit-remaining") == Some("0");
                let reset = number("x-ratelimit-reset").filter(|_| used_up)?;
                let reset = Timestamp::from_second(reset).ok()?;
                Some(crate::world::elapsed(by_its_clock, reset))
            });
        let wait = wait.unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
        let until = self.now.checked_add(wait).unwrap_or(Timestamp::MAX);
        self.not_before = Some(until);
        Some(SourceError::Unavailable(format!(
            "HTTP {}: {}; not asked again before {until:.0}",
            reply.status.as_u16(),
            reply.quote()
        )))
    }
}

fn mixed_up() -> SourceError {
    SourceError::NotUnderstood("GitHub answers one question with the answer to another".into())
}

/// Refuses a list that says it has more rows than it shows. Some may have ended between two pages;
/// but not all of them, and not more than a page: GitHub shows no more than 1,000 runs.
fn complete(shown: usize, total: usize, what: &str) -> Result<(), SourceError> {
    if total > shown + PAGE || (shown == 0 && total > 0) {
        return Err(SourceError::NotUnderstood(format!(
            "GitHub says there are {total} {what}, and shows {shown}"
        )));
    }
    Ok(())
}

/// The job, if it waits for a host or has one.
fn waiting(repository: &str, run: &Run, job: Job) -> Result<Option<WaitingJob>, SourceError> {
    let (since, running) = match job.status.as_str() {
        "queued" => (job.created_at.or(job.started_at), false),
        "in_progress" => (job.started_at.or(job.created_at), true),
        // `completed`; `waiting`, `pending` and `requested` wait for a person or for other jobs.
        _ => return Ok(None),
    };
    let Some(since) = since else {
        let message = "GitHub shows a job without a time";
        return Err(SourceError::NotUnderstood(message.into()));
    };
    let workflow = job.workflow_name.as_ref().or(run.name.as_ref());
    let workflow = workflow.map_or("", String::as_str);
    let mut labels: Vec<String> = job.labels.iter().map(|it| it.to_lowercase()).collect();
    labels.sort();
    Ok(Some(WaitingJob {
        name: format!(
            "{repository} / {workflow} / {} [{}]",
            job.name,
            labels.join(",")
        ),
        since,
        running,
    }))
}

#[cfg(test)]
mod tests;
