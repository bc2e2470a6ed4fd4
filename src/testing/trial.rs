//! One case of a sweep: a call that is disturbed, and what its callers hear. Private.

use std::fmt::Debug;

use super::case::Case;
use super::handler::Said;
use super::proxy::Fault;
use super::report::Wrong;
use crate::IdempotencyKey;

pub(super) struct Trial<T> {
    pub(super) case: Case,
    pub(super) key: IdempotencyKey,
    /// In turn: by the calls that were disturbed, then by those that were not.
    pub(super) said: Vec<Said<T>>,
}

impl<T: PartialEq + Debug> Trial<T> {
    pub(super) fn new(case: Case) -> Self {
        Self { case, key: IdempotencyKey::new_v4(), said: Vec::new() }
    }

    /// What was said last is an answer, as it must be to a call that nothing disturbs.
    pub(super) fn is_answered(&self) -> Result<(), Wrong> {
        match self.said.last() {
            Some(Said::Answer(_)) => Ok(()),
            Some(Said::Violation(_)) => Err(Wrong::Violation),
            _ => Err(Wrong::Fails),
        }
    }

    /// Nothing was said to the disturbed calls that must never be said.
    pub(super) fn is_orderly(&self) -> Result<(), Wrong> {
        // Whoever lost its connection cannot tell whether it had left the transaction.
        let knows = !matches!(self.case, Case::Fault(Fault::Cut | Fault::BlackHole, ..) | Case::Dropped(..));
        if knows && self.said.iter().any(|said| matches!(said, Said::Violation(_))) {
            return Err(Wrong::Violation);
        }
        if matches!(self.case, Case::Undisturbed) {
            return self.is_answered();
        }
        let may_hang = matches!(self.case, Case::Fault(Fault::BlackHole, ..) | Case::Dropped(..));
        if !may_hang && self.said.iter().any(|said| matches!(said, Said::Nothing)) {
            return Err(Wrong::Unanswered);
        }
        Ok(())
    }

    pub(super) fn all_answers_are_equal(&self) -> Result<(), Wrong> {
        let mut answers = self.said.iter().filter_map(|said| match said {
            Said::Answer(answer) => Some(answer),
            _ => None,
        });
        let first = answers.next();
        // Also against itself, for what is not even equal to itself.
        if first.into_iter().chain(answers).all(|answer| Some(answer) == first) {
            return Ok(());
        }
        Err(Wrong::AnswersDiffer)
    }
}
