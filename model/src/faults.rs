//! What goes wrong, and what goes on besides the callers.

use crate::caller::{Phase, Told};
use crate::server::{Effect, Link, SessionId};
use crate::turn::Turn;
use crate::{Durability, Flaw, Setup, State};

/// How a closure breaks its transaction. On a hardened pool all of it leaves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// It swallows the error of a statement: the transaction is aborted, which COMMIT does not say.
    SwallowsAnError,
    /// It says COMMIT.
    Commits,
    /// It says ROLLBACK, and writes on.
    LeavesAndWrites,
}

impl Turn<'_> {
    /// The connection is lost, or cut off by the commit timeout.
    pub(crate) fn lose(mut self) -> Option<()> {
        self.cut();
        match self.caller().phase {
            Phase::Ready | Phase::Resolving | Phase::Ended => return None,
            Phase::Committing | Phase::Answered(_) => self.lose_the_answer(),
            // Any failure in a round is another round.
            Phase::Seeking { .. }
            | Phase::Touching { .. }
            | Phase::Acknowledging
            | Phase::LockingLate { .. } => self.goto(Phase::Resolving),
            // COMMIT was never sent.
            _ => self.tell(Told::Failed),
        }
        Some(())
    }

    /// The process is killed.
    pub(crate) fn kill(mut self) -> Option<()> {
        if matches!(self.caller().phase, Phase::Ready | Phase::Ended) {
            return None;
        }
        self.cut();
        let attempt = self.caller().attempt;
        self.tell(Told::Nothing(attempt));
        self.goto(Phase::Ended);
        Some(())
    }

    /// The closure does more than it may, and returns as if nothing had happened. FINISH then fails, or finds no row.
    pub(crate) fn err(mut self, mistake: Mistake) -> Option<()> {
        if self.caller().phase != Phase::Running {
            return None;
        }
        let id = self.id();
        let attempt = self.attempt();
        let claimed_at = self.state.now;
        let effect = Effect { attempt, claimed_at };
        match mistake {
            Mistake::SwallowsAnError if self.has(Flaw::NoFinishCheck) => {
                self.session().version = None;
                self.send_commit();
                return Some(());
            }
            Mistake::SwallowsAnError => self.end(),
            Mistake::Commits => {
                self.session().effect = Some(effect);
                let guarded = !self.has(Flaw::NoGuard);
                self.state.server.commit(id, guarded);
            }
            Mistake::LeavesAndWrites => {
                self.end();
                if self.has(Flaw::PlainPool) {
                    self.state.server.visible.effects.push(effect);
                }
            }
        }
        self.caller().session = None;
        self.tell(Told::AtomicityViolation);
        Some(())
    }
}

/// A purge of expired keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Purge {
    /// None runs.
    #[default]
    Idle,
    /// Its snapshot shows the key as expired.
    Selected,
    /// The row is deleted, but not committed.
    Deleted,
}

impl State {
    /// The next step of the purge.
    pub(crate) fn purge(&mut self, setup: &Setup) -> Option<()> {
        let expired = self.server.visible.row.is_some_and(|row| row.expired(self.now));
        let careless = setup.has(Flaw::PurgeWithoutRecheck);
        let id = SessionId::Purge;
        self.purge = match self.purge {
            Purge::Idle => {
                self.left.purges = self.left.purges.checked_sub(1)?;
                if !expired {
                    return None;
                }
                self.server.begin(id);
                Purge::Selected
            }
            Purge::Selected if self.server.busy(id) && careless => return None,
            // SKIP LOCKED; and FOR UPDATE checks the condition again.
            Purge::Selected if !careless && (self.server.busy(id) || !expired) => {
                self.server.end(id);
                Purge::Idle
            }
            Purge::Selected => {
                self.server.session(id).version = Some(None);
                Purge::Deleted
            }
            Purge::Deleted => {
                self.server.commit(id, true);
                self.flush_with(setup, true);
                Purge::Idle
            }
        };
        Some(())
    }

    /// The advisory lock of another key, which has the same number, is taken or given back.
    pub(crate) fn collide(&mut self) -> Option<()> {
        let id = SessionId::Stranger;
        if self.server.lock == Some(id) {
            self.server.end(id);
        } else {
            self.left.collisions = self.left.collisions.checked_sub(1)?;
            self.server.begin(id);
            self.server.try_lock(id).then_some(())?;
        }
        Some(())
    }

    /// COMMIT arrives at the server, or is refused there.
    pub(crate) fn commit(&mut self, setup: &Setup, id: SessionId, refused: bool) -> Option<()> {
        let link = self.server.session(id).link;
        if !matches!(link, Link::CommitSent | Link::CutAfterCommit) {
            return None;
        }
        let committed = if refused {
            self.left.refusals = self.left.refusals.checked_sub(1)?;
            self.server.end(id);
            false
        } else {
            self.server.commit(id, !setup.has(Flaw::NoGuard))
        };
        if let (Link::CommitSent, SessionId::Caller(caller, _)) = (link, id) {
            let caller = &mut self.callers[usize::from(caller)];
            caller.phase = Phase::Answered(committed);
            caller.session = None;
        }
        self.flush_with(setup, link == Link::CommitSent);
        Some(())
    }

    /// Synchronous replication: COMMIT is answered when the standby has it.
    fn flush_with(&mut self, setup: &Setup, answered: bool) {
        if setup.durability == Durability::Replicated && answered {
            self.server.flush();
        }
    }

    /// The server notices that nobody is there any more. A COMMIT that was under way never arrives.
    pub(crate) fn notice(&mut self, id: SessionId) -> Option<()> {
        let link = self.server.session(id).link;
        matches!(link, Link::Cut | Link::CutAfterCommit).then(|| self.server.end(id))
    }

    /// The server crashes, and comes back.
    pub(crate) fn crash(&mut self, setup: &Setup) -> Option<()> {
        self.left.crashes = self.left.crashes.checked_sub(1)?;
        self.vanished.extend(self.server.crash());
        self.vanished.sort();
        self.purge = Purge::Idle;
        for me in 0..self.callers.len() {
            // An answer that is under way still arrives, or is lost like others.
            if self.callers[me].session.take().is_some() {
                Turn { setup, state: self, me }.lose();
            }
        }
        Some(())
    }
}
