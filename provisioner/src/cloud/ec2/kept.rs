//! An answer that is good for a while: asked for once, shared by all who want it meanwhile.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The last answer and its time.
#[derive(Debug)]
pub(super) struct Kept<T>(Mutex<Option<(Instant, Arc<T>)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    /// The kept answer if it is younger than `age` and `serves`; else a new one. Who comes while
    /// another asks waits for that answer. A failure is not kept.
    pub(super) async fn get<E, F: Future<Output = Result<T, E>>>(
        &self,
        age: Duration,
        serves: impl FnOnce(&T) -> bool,
        ask: impl FnOnce(Option<Arc<T>>) -> F,
    ) -> Result<Arc<T>, E> {
        let mut kept = self.0.lock().await;
        let known = kept.as_ref();
        if let Some((at, answer)) = known
            && at.elapsed() < age
            && serves(answer)
        {
            return Ok(Arc::clone(answer));
        }
        let before = known.map(|(_, answer)| Arc::clone(answer));
        let begin = Instant::now();
        let answer = Arc::new(ask(before).await?);
        *kept = Some((begin, Arc::clone(&answer)));
        Ok(answer)
    }

    /// Forgets the answer, so that the next one is new.
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const AGE: Duration = Duration::from_secs(60);

    async fn ask(kept: &Kept<u32>, calls: &AtomicU32) -> u32 {
        let answer = kept.get(
            AGE,
            |_| true,
            |_| async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok::<_, ()>(calls.fetch_add(1, Ordering::Relaxed))
            },
        );
        *answer.await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_asked_for_once_by_many_and_again_when_it_is_old() {
        let (kept, calls) = (Kept::default(), AtomicU32::new(0));
        let two = tokio::join!(ask(&kept, &calls), ask(&kept, &calls));
        assert_eq!(two, (0, 0));
        // Its age counts from when it was asked for: it may be as old as that.
        tokio::time::advance(AGE - Duration::from_millis(1001)).await;
        assert_eq!(ask(&kept, &calls).await, 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(ask(&kept, &calls).await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_serve_and_a_failure_are_asked_for_again() {
        let kept: Kept<u32> = Kept::default();
        let answer = |number| async move { Ok::<_, ()>(number) };
        assert_eq!(
            kept.get(AGE, |_| true, |_| async { Err::<u32, _>("down") })
                .await,
            Err("down")
        );
        assert_eq!(*kept.get(AGE, |_| true, |_| answer(1)).await.unwrap(), 1);
        assert_eq!(
            *kept
                .get(AGE, |known| *known > 1, |_| answer(2))
                .await
                .unwrap(),
            2
        );
        kept.forget().await;
        assert_eq!(*kept.get(AGE, |_| true, |_| answer(3)).await.unwrap(), 3);
    }
}
