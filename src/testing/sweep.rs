//! The sweep: a call is disturbed in every way, and what it leaves is counted. Private.

use std::fmt::Debug;

use super::bench::Bench;
use super::case::{Case, is_commit, plan};
use super::handler::Said;
use super::once::Sweep;
use super::proxy::Message;
use super::report::{Finding, Report, Wrong};
use super::trial::Trial;
use crate::IdempotencyKey;

/// What is known of an undisturbed call.
struct Rehearsal {
    /// By how much it changes each effect's number.
    amounts: Vec<i128>,
    conversation: Vec<Message>,
    polls: usize,
}

/// One run of a sweep.
struct Course<'s, 'a, T> {
    sweep: &'s Sweep<'a, T>,
    bench: Bench<'s, 'a, T>,
    keys: Vec<IdempotencyKey>,
    report: Report,
}

impl<T: PartialEq + Debug> Sweep<'_, T> {
    pub(super) async fn run(self) -> Result<Report, Finding> {
        let bench = Bench::new(&self).await;
        let mut course = Course { sweep: &self, bench, keys: Vec::new(), report: Report::default() };
        let rehearsal = course.rehearse().await?;
        for case in [Case::Undisturbed].into_iter().chain(plan(&rehearsal.conversation, self.at_most)) {
            course.check(case, &rehearsal).await?;
        }
        for polls in (1..).step_by(rehearsal.polls.div_ceil(self.at_most)) {
            let trial = course.check(Case::Dropped(polls, None), &rehearsal).await?;
            if !matches!(trial.said.first(), Some(Said::Nothing)) {
                break;
            }
        }
        course.bench.forget(&course.keys).await;
        Ok(course.report)
    }
}

impl<T: PartialEq + Debug> Course<'_, '_, T> {
    /// Calls twice, undisturbed.
    async fn rehearse(&mut self) -> Result<Rehearsal, Finding> {
        let mut trial = self.trial(Case::Undisturbed);
        let rehearsed = self.take_down(&mut trial).await;
        self.conclude(&trial, rehearsed)
    }

    async fn take_down(&self, trial: &mut Trial<T>) -> Result<Rehearsal, Wrong> {
        if self.sweep.effects.is_empty() {
            return Err(Wrong::Unusable("say what is to happen once, with `effect`".to_owned()));
        }
        let bench = &self.bench;
        let line = bench.line().await?;
        let before = bench.prepare().await?;
        let (conversation, polls) = bench.rehearse(line, trial).await;
        trial.is_answered()?;
        if !conversation.iter().any(is_commit) {
            let why =
                "the handler does not use the `Idempotency` that it is given, so nothing can be disturbed";
            return Err(Wrong::Unusable(why.to_owned()));
        }
        let amounts = bench.amounts(&before).await?;
        trial.said.push(bench.call(&bench.steady, &trial.key).await);
        trial.is_answered()?;
        bench.count(&before, &amounts).await?;
        trial.all_answers_are_equal()?;
        Ok(Rehearsal { amounts, conversation, polls })
    }

    /// Disturbs a call, then makes it again until it is answered, and once more.
    async fn check(&mut self, case: Case, rehearsal: &Rehearsal) -> Result<Trial<T>, Finding> {
        let mut trial = self.trial(case);
        let tried = self.attempt(&mut trial, &rehearsal.amounts).await;
        self.conclude(&trial, tried)?;
        self.report.count(trial.case.kind());
        Ok(trial)
    }

    async fn attempt(&self, trial: &mut Trial<T>, amounts: &[i128]) -> Result<(), Wrong> {
        let bench = &self.bench;
        let before = bench.prepare().await?;
        bench.disturb(trial).await?;
        trial.is_orderly()?;
        for _ in 0..2 {
            bench.ask_again(&trial.key, &mut trial.said).await?;
        }
        bench.count(&before, amounts).await?;
        trial.all_answers_are_equal()
    }

    fn trial(&mut self, case: Case) -> Trial<T> {
        let trial = Trial::new(case);
        self.keys.push(trial.key.clone());
        trial
    }

    fn conclude<V>(&self, trial: &Trial<T>, tried: Result<V, Wrong>) -> Result<V, Finding> {
        tried.map_err(|wrong| Finding {
            wrong,
            case: trial.case.to_string(),
            said: trial.said.iter().map(Said::to_string).collect(),
            key: trial.key.clone(),
            passed: self.report.cases(),
            caller: self.sweep.caller,
        })
    }
}
