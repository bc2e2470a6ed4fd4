//! What a caller does when the answer to COMMIT was lost: rounds, each in a transaction of its own.

use crate::caller::{Phase, Told};
use crate::turn::Turn;
use crate::{Durability, Flaw};

impl Turn<'_> {
    /// The answer to COMMIT is lost.
    pub(crate) fn lose_the_answer(&mut self) {
        let attempt = self.attempt();
        if self.has(Flaw::LostMeansFailed) {
            self.tell(Told::Failed);
        } else if self.has(Flaw::LostMeansExecuted) {
            self.tell(Told::Executed { attempt, resolved: false });
        } else if self.has(Flaw::RetryWithoutProof) {
            self.dead();
        } else {
            self.goto(Phase::Resolving);
        }
    }

    /// A round begins: its first statement asks for the lock. It is ours when the attempt's transaction has ended.
    pub(crate) fn ask_for_the_lock(&mut self) {
        self.open();
        if self.has(Flaw::LookBeforeLock) {
            let present = self.sees_the_row();
            return self.goto(Phase::LockingLate { present });
        }
        // Advisory locks are not replicated: on a standby it is always free.
        let ours = self.has(Flaw::ResolveOnStandby) || self.try_lock();
        if self.has(Flaw::StopwatchIsReadEarly) && self.is_late() {
            return self.unknown();
        }
        if self.has(Flaw::LockIsProof) && ours {
            return self.absent(true);
        }
        self.goto(Phase::Seeking { ours });
    }

    /// The second statement takes its snapshot. An UPDATE whose snapshot does not show the row does nothing.
    pub(crate) fn seek(&mut self, ours: bool) {
        if !self.sees_the_row() {
            self.absent(ours || self.has(Flaw::AbsenceIsProof));
        } else if self.has(Flaw::ResolveWithoutWrite) || self.has(Flaw::ResolveOnStandby) {
            self.present();
        } else {
            self.goto(Phase::Touching { ours });
        }
    }

    /// It waits until the row is not busy, and checks again.
    pub(crate) fn touch(&mut self, ours: bool) -> Option<()> {
        self.not_busy()?;
        if self.sees_the_row() {
            self.session().version = Some(self.state.server.visible.row);
            self.goto(Phase::Acknowledging);
        } else {
            self.absent(ours);
        }
        Some(())
    }

    /// COMMIT of the little write, and its answer: what it waited for covers the attempt's COMMIT.
    pub(crate) fn acknowledge(&mut self) {
        let id = self.id();
        self.state.server.commit(id, true);
        if self.setup.durability == Durability::Replicated {
            self.state.server.flush();
        }
        self.caller().session = None;
        self.present();
    }

    pub(crate) fn lock_late(&mut self, present: bool) {
        let ours = self.try_lock();
        if present { self.present() } else { self.absent(ours) }
    }

    /// Our row is not there. That proves something with the lock, and as long as nothing can have removed the row.
    fn absent(&mut self, ours: bool) {
        if !ours && self.setup.patient {
            self.end();
            self.goto(Phase::Resolving);
        } else if !ours || self.is_late() && !self.has(Flaw::StopwatchIsReadEarly) {
            self.unknown();
        } else {
            self.end();
            self.dead();
        }
    }

    /// Our row is there.
    fn present(&mut self) {
        let attempt = self.attempt();
        self.end();
        self.tell(Told::Executed { attempt, resolved: true });
    }

    /// Nothing of the attempt is left, nor will be.
    fn dead(&mut self) {
        let attempt = self.caller().attempt;
        if attempt < self.plan().attempts {
            self.begin(attempt + 1);
        } else {
            self.tell(Told::Failed);
        }
    }

    /// It is over, and the question open.
    pub(crate) fn unknown(&mut self) {
        let attempt = self.caller().attempt;
        self.end();
        self.tell(Told::CommitUnknown(attempt));
    }

    /// Whether the retention may have ended since the claim, by our own stopwatch.
    fn is_late(&mut self) -> bool {
        let now = self.state.now;
        self.caller().since < now && !self.has(Flaw::IgnoreExpiryInProof)
    }

    /// Whether a snapshot that is taken now shows our attempt.
    fn sees_the_row(&self) -> bool {
        let server = &self.state.server;
        let data = match &server.durable {
            Some(standby) if self.has(Flaw::ResolveOnStandby) => standby,
            _ => &server.visible,
        };
        data.row.is_some_and(|row| row.attempt == self.attempt() || self.has(Flaw::AttemptNotCompared))
    }
}
