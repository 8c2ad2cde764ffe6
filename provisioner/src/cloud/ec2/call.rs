//! One call of EC2: admitted by the budget, bounded in time, and its failure understood.
//!
//! The SDK's own retries are off. It would repeat what EC2 answers with 500, lack of capacity among
//! it, behind the back of the budget; what is worth repeating is repeated here, each time through the
//! budget.

use std::error::Error;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use tracing::{debug, warn};

use super::action::Action;
use super::fault::{self, Fault};
use crate::cloud::ShortReason;
use crate::cloud::budget::{Budget, Cost, Priority};
use crate::ids::Region;

/// First pause after a lost answer; it doubles. What is throttled waits in the budget instead.
const PAUSE: Duration = Duration::from_millis(250);

/// A lost answer is asked for once more, not twice: a region that is down costs a pass two timeouts.
const ATTEMPTS_AT_LOST: u32 = 2;

/// Counts calls, by action.
#[derive(Debug, Default)]
pub(super) struct Calls([AtomicU64; Action::ALL.len()]);

impl Calls {
    fn count(&self, action: Action) {
        self.0[action as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn of(&self, action: Action) -> u64 {
        self.0[action as usize].load(Ordering::Relaxed)
    }
}

/// What talks to one region.
pub(super) struct Caller {
    pub(super) client: Client,
    /// Those of `client`, to ask them what is wrong with them.
    pub(super) credentials: Option<SharedCredentialsProvider>,
    /// Where they are looked for, for a person.
    pub(super) credentials_from: String,
    pub(super) region: Region,
    pub(super) timeout: Duration,
    pub(super) budget: Budget,
    pub(super) calls: Calls,
}

impl Caller {
    /// Makes the call `send`, which launches or ends `instances`, as often as its action allows.
    pub(super) async fn call<O, E, F>(
        &self,
        action: Action,
        priority: Priority,
        instances: u32,
        send: impl Fn(Client) -> F,
    ) -> Result<O, Fault>
    where
        E: Error + ProvideErrorMetadata + 'static,
        F: Future<Output = Result<O, SdkError<E>>>,
    {
        let mut attempt = 1;
        loop {
            // What failed launched or ended nothing: its instances are counted once.
            let cost = action.cost(if attempt == 1 { instances } else { 0 });
            self.admit(action, priority, cost).await?;
            let fault = match self.once(action, cost, &send).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            let attempts = match fault {
                Fault::Lost { .. } => action.attempts().min(ATTEMPTS_AT_LOST),
                Fault::Throttled { .. } | Fault::Refused { .. } | Fault::Mismatch { .. } => {
                    action.attempts()
                }
            };
            if attempt >= attempts || !fault.may_pass() {
                return Err(fault);
            }
            tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
            attempt += 1;
        }
    }

    async fn admit(&self, action: Action, priority: Priority, cost: Cost) -> Result<(), Fault> {
        let admitted = self.budget.admit(priority, cost, action.patience()).await;
        admitted.map_err(|exhausted| Fault::Throttled {
            retry_after: exhausted.retry_after,
            message: format!("{} was not called: {exhausted}", action.name()),
        })
    }

    async fn once<O, E, F>(
        &self,
        action: Action,
        cost: Cost,
        send: &impl Fn(Client) -> F,
    ) -> Result<O, Fault>
    where
        E: Error + ProvideErrorMetadata + 'static,
        F: Future<Output = Result<O, SdkError<E>>>,
    {
        self.calls.count(action);
        let region = &self.region;
        let timeout = action.timeout(self.timeout);
        let Ok(answer) = tokio::time::timeout(timeout, send(self.client.clone())).await else {
            let name = action.name();
            warn!(%region, action = name, ?timeout, "EC2 did not answer in time");
            let timeout = humantime::format_duration(timeout);
            let message = format!("{name} in {region} was not answered within {timeout}");
            return Err(Fault::Lost { message });
        };
        let mut fault = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => match self.credentials_fault(&error).await {
                Some(fault) => fault,
                None => understood(action, &error),
            },
        };
        if let Fault::Throttled { retry_after, .. } = &mut fault {
            *retry_after = self.budget.throttled(cost).max(*retry_after);
            warn!(%region, action = action.name(), ?retry_after, "EC2 throttles us");
        } else {
            let error = fault::shown(fault.message());
            debug!(%region, action = action.name(), error, "a call of EC2 failed");
        }
        Err(fault)
    }

    /// Whether the call was not sent because there are no credentials. The SDK says so in words only,
    /// so the credentials are asked once more.
    async fn credentials_fault<E>(&self, error: &SdkError<E>) -> Option<Fault> {
        let not_of_the_network =
            matches!(error, SdkError::DispatchFailure(failure) if failure.is_other());
        let credentials = self.credentials.as_ref().filter(|_| not_of_the_network)?;
        let asked = tokio::time::timeout(self.timeout, credentials.provide_credentials());
        let error = asked.await.ok()?.err()?;
        let message = format!(
            "there are no credentials in {}: {}",
            self.credentials_from,
            chain(&error)
        );
        Some(Fault::refused(ShortReason::NotAllowed, message))
    }
}

fn understood<E: Error + ProvideErrorMetadata + 'static>(
    action: Action,
    error: &SdkError<E>,
) -> Fault {
    let message = || format!("{}: {}", action.name(), chain(error));
    match error {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            let meta = answer.err().meta();
            fault::read(status, meta.code(), meta.message().unwrap_or_default())
        }
        // Nothing was sent: no credentials, or parameters the SDK refuses.
        SdkError::ConstructionFailure(_) => Fault::Refused {
            reason: ShortReason::NotAllowed,
            code: String::new(),
            message: message(),
        },
        // Whether it was sent is not known for certain in any of these.
        SdkError::TimeoutError(_)
        | SdkError::DispatchFailure(_)
        | SdkError::ResponseError(_)
        | _ => Fault::Lost { message: message() },
    }
}

/// An error and what caused it, on one line.
fn chain(error: &dyn Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.last().is_some_and(|last| last.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ").chars().take(400).collect()
}
