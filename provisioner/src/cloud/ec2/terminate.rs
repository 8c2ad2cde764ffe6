//! Ending instances in batches that survive a bad id.
//!
//! `TerminateInstances` takes at most 1,000 ids and, if one of them is unknown, protected or not ours
//! to end, ends none (in that zone). EC2 mostly names the culprit in its sentence: it is set aside and
//! the rest is sent again. If it names none, the batch is halved. Ending what is ending already is no
//! error, so a half that was done is harmless.
//!
//! **Calls.** `n` good ids take ⌈n/1000⌉. One bad id of 1,000 takes 2 if it is named, and 21 at most
//! if it is not: 1 for all and 2 for each of the 10 halvings. [`MOST_CALLS`] bounds what any mixture
//! takes for 1,000 ids; what is left then is answered "later".

use std::collections::{BTreeMap, BTreeSet};

use super::fault::{Fault, shown};
use crate::cloud::{ShortReason, TerminateError};
use crate::ids::InstanceId;

/// "TerminateInstances: up to 1000 instances" (EC2 API Reference).
pub(super) const BATCH: usize = 1000;

/// Calls made for one batch: enough for three unnamed culprits anywhere; 12 seconds of the bucket's refill.
pub(super) const MOST_CALLS: u32 = 60;

/// The state of ending one batch.
#[derive(Debug)]
pub(super) struct Ending {
    todo: Vec<Vec<InstanceId>>,
    calls: u32,
    /// Ids of the call that goes first, until it has gone.
    fresh: u32,
    done: BTreeMap<InstanceId, Result<(), TerminateError>>,
}

impl Ending {
    pub(super) fn of(batch: &[InstanceId]) -> Self {
        // The same id twice would be a bad request.
        let ids: BTreeSet<&InstanceId> = batch.iter().collect();
        let ids: Vec<InstanceId> = ids.into_iter().cloned().collect();
        Self {
            fresh: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            todo: if ids.is_empty() {
                Vec::new()
            } else {
                vec![ids]
            },
            calls: 0,
            done: BTreeMap::new(),
        }
    }

    /// The ids of the next call; `None` when all have their answer.
    pub(super) fn next_call(&mut self) -> Option<Vec<InstanceId>> {
        let next = self.todo.pop()?;
        if self.calls == MOST_CALLS {
            let later = format!("{MOST_CALLS} calls did not find out which ids are bad");
            self.answer(next, &Err(TerminateError::Unavailable(later)));
            return self.next_call();
        }
        self.calls += 1;
        Some(next)
    }

    /// Ids of the coming call that were in none before: each counts once in the budget of instances.
    pub(super) fn first_time(&mut self) -> u32 {
        std::mem::take(&mut self.fresh)
    }

    /// What came of the call for `ids`.
    pub(super) fn answered(&mut self, ids: Vec<InstanceId>, result: Result<(), Fault>) {
        let fault = match result {
            Ok(()) => return self.answer(ids, &Ok(())),
            Err(fault) => fault,
        };
        let verdict = Err(verdict(&fault));
        if !concerns_single_ids(&fault) {
            return self.answer(ids, &verdict);
        }
        let (named, rest) = ids
            .into_iter()
            .partition::<Vec<_>, _>(|id| names(fault.message(), id));
        if !named.is_empty() {
            self.answer(named, &verdict);
            self.push(rest);
        } else if rest.len() == 1 {
            self.answer(rest, &verdict);
        } else {
            let (first, second) = rest.split_at(rest.len() / 2);
            self.push(second.to_vec());
            self.push(first.to_vec());
        }
    }

    pub(super) fn done(self) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
        self.done
    }

    fn push(&mut self, ids: Vec<InstanceId>) {
        if !ids.is_empty() {
            self.todo.push(ids);
        }
    }

    fn answer(&mut self, ids: Vec<InstanceId>, result: &Result<(), TerminateError>) {
        self.done
            .extend(ids.into_iter().map(|id| (id, result.clone())));
    }
}

fn verdict(fault: &Fault) -> TerminateError {
    if fault.is_missing("InvalidInstanceID") {
        return TerminateError::Unknown;
    }
    match fault {
        Fault::Refused { message, .. } => TerminateError::Refused(shown(message)),
        Fault::Throttled { message, .. }
        | Fault::Lost { message }
        | Fault::Mismatch { message } => TerminateError::Unavailable(shown(message)),
    }
}

/// Whether the fault may be that of some ids only. A right can be limited to instances with our owner
/// tag, so "not authorized" is one; wrong credentials are not.
fn concerns_single_ids(fault: &Fault) -> bool {
    match fault {
        Fault::Refused { reason, code, .. } => {
            *reason != ShortReason::NotAllowed || code.starts_with("UnauthorizedOperation")
        }
        Fault::Throttled { .. } | Fault::Lost { .. } | Fault::Mismatch { .. } => false,
    }
}

/// Whether `id` stands in `message` as a word of its own.
fn names(message: &str, id: &InstanceId) -> bool {
    let part_of_id = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    message
        .split(|letter: char| !part_of_id(letter))
        .any(|word| word == id.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fault;
    use super::*;

    fn ids(count: usize) -> Vec<InstanceId> {
        (0..count)
            .map(|number| InstanceId::parse(&format!("i-{number:017x}")).unwrap())
            .collect()
    }

    /// EC2, with ids it does not know; `names` says whether it says which.
    struct Cloud {
        bad: BTreeSet<InstanceId>,
        names: bool,
        code: &'static str,
        calls: u32,
    }

    impl Cloud {
        fn with_bad(bad: impl IntoIterator<Item = InstanceId>, names: bool) -> Self {
            Self {
                bad: bad.into_iter().collect(),
                names,
                code: "InvalidInstanceID.NotFound",
                calls: 0,
            }
        }

        fn end(
            &mut self,
            batch: &[InstanceId],
        ) -> BTreeMap<InstanceId, Result<(), TerminateError>> {
            let mut ending = Ending::of(batch);
            while let Some(ids) = ending.next_call() {
                self.calls += 1;
                let bad: Vec<&str> = ids
                    .iter()
                    .filter(|id| self.bad.contains(*id))
                    .map(InstanceId::as_str)
                    .collect();
                let result = if bad.is_empty() {
                    Ok(())
                } else {
                    let named = if self.names {
                        bad.join(", ")
                    } else {
                        String::new()
                    };
                    let message = format!("The instance IDs '{named}' do not exist");
                    Err(fault::read(400, Some(self.code), &message))
                };
                ending.answered(ids, result);
            }
            ending.done()
        }
    }

    #[test]
    fn good_ids_take_one_call() {
        let mut cloud = Cloud::with_bad([], true);
        let done = cloud.end(&ids(BATCH));
        assert_eq!((done.len(), cloud.calls), (BATCH, 1));
        assert!(done.values().all(Result::is_ok));
        assert_eq!(Cloud::with_bad([], true).end(&[]), BTreeMap::new());
    }

    #[test]
    fn one_bad_id_of_a_thousand_is_found_with_two_calls_if_it_is_named_and_21_if_not() {
        let ids = ids(BATCH);
        for (names, most) in [(true, 2), (false, 21)] {
            for bad in [0, 1, 499, 500, 998, 999] {
                let mut cloud = Cloud::with_bad([ids[bad].clone()], names);
                let done = cloud.end(&ids);
                assert!(cloud.calls <= most, "{names} {bad}: {}", cloud.calls);
                for (number, id) in ids.iter().enumerate() {
                    let expected = if number == bad {
                        Err(TerminateError::Unknown)
                    } else {
                        Ok(())
                    };
                    assert_eq!(done[id], expected, "{number}");
                }
            }
        }
    }

    #[test]
    fn a_thousand_bad_ids_do_not_take_a_thousand_calls() {
        let all = ids(BATCH);
        let mut cloud = Cloud::with_bad(all.clone(), false);
        let done = cloud.end(&all);
        assert_eq!((cloud.calls, done.len()), (MOST_CALLS, BATCH));
        assert!(done.values().all(Result::is_err));
        let mut cloud = Cloud::with_bad(all.clone(), true);
        cloud.end(&all);
        assert_eq!(cloud.calls, 1);
    }

    #[test]
    fn a_protected_instance_is_refused_and_hinders_no_other() {
        let ids = ids(10);
        let mut cloud = Cloud::with_bad([ids[3].clone()], true);
        cloud.code = "OperationNotPermitted";
        let done = cloud.end(&ids);
        assert!(matches!(done[&ids[3]], Err(TerminateError::Refused(_))));
        assert_eq!(done.values().filter(|result| result.is_ok()).count(), 9);
    }

    #[test]
    fn what_is_nobodys_fault_is_not_bisected() {
        for (status, code) in [
            (503, "RequestLimitExceeded"),
            (500, "InternalError"),
            (401, "AuthFailure"),
        ] {
            let mut ending = Ending::of(&ids(100));
            let call = ending.next_call().unwrap();
            ending.answered(call, Err(fault::read(status, Some(code), "")));
            assert_eq!(ending.next_call(), None, "{code}");
            assert_eq!(ending.done().len(), 100);
        }
    }

    #[test]
    fn an_id_is_not_found_within_another() {
        let short = InstanceId::parse("i-1234567").unwrap();
        assert!(!names(
            "The instance ID 'i-12345678' does not exist",
            &short
        ));
        assert!(names(
            "The instance IDs 'i-0, i-1234567' do not exist",
            &short
        ));
        assert!(names(
            "on resource: arn:aws:ec2:r:1:instance/i-1234567 because",
            &short
        ));
    }

    proptest! {
        #[test]
        fn every_id_gets_its_answer_whatever_is_bad(
            bad in prop::collection::btree_set(0usize..200, 0..4), names: bool
        ) {
            let ids = ids(200);
            let mut cloud = Cloud::with_bad(bad.iter().map(|number| ids[*number].clone()), names);
            let done = cloud.end(&ids);
            for (number, id) in ids.iter().enumerate() {
                let expected = if bad.contains(&number) { Err(TerminateError::Unknown) } else { Ok(()) };
                prop_assert_eq!(&done[id], &expected);
            }
        }
    }
}
