//! The statements of a call, one step each, as in `src/protocol.rs`, `src/run.rs` and `src/sql.rs`.

use crate::caller::{Caller, Phase, Told};
use crate::server::{Attempt, Effect, Link, Row, Session, SessionId};
use crate::{Flaw, Plan, Setup, State};

/// The caller whose turn it is.
pub(crate) struct Turn<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) state: &'a mut State,
    pub(crate) me: usize,
}

impl Turn<'_> {
    /// The next step. None when it has to wait.
    pub(crate) fn step(mut self) -> Option<()> {
        let now = self.state.now;
        let phase = self.caller().phase;
        match phase {
            Phase::Ready => self.begin(1),
            Phase::Claiming if self.has(Flaw::ClaimLast) || self.has(Flaw::KeyInItsOwnTransaction) => {
                self.goto(Phase::Looking)
            }
            Phase::Claiming if self.has(Flaw::ClaimWithoutLock) || self.try_lock() => {
                self.goto(Phase::Inserting)
            }
            Phase::Claiming => self.goto(Phase::Looking),
            Phase::Inserting => {
                self.not_busy()?;
                if self.state.server.visible.row.is_none() || self.has(Flaw::ClaimOverwrites) {
                    self.write_pending();
                } else {
                    self.goto(Phase::Looking);
                }
            }
            Phase::Looking => {
                let published = self.has(Flaw::ResultPublishedEarly).then(|| self.state.server.finished());
                let row = published.flatten().or(self.state.server.visible.row);
                self.goto(Phase::Reading(row));
            }
            Phase::Reading(row) => self.read(row),
            Phase::TakingOver => match self.state.server.visible.row {
                Some(row) if row.expired(now) || self.has(Flaw::TakeOverWithoutRecheck) => {
                    self.goto(Phase::Updating);
                }
                _ => self.goto(Phase::Claiming),
            },
            Phase::Updating => {
                self.not_busy()?;
                match self.state.server.visible.row {
                    Some(row) if row.expired(now) || self.has(Flaw::TakeOverWithoutRecheck) => {
                        self.write_pending();
                    }
                    _ => self.goto(Phase::Claiming),
                }
            }
            Phase::Running => self.run()?,
            Phase::Answered(committed) => self.hear(committed),
            Phase::Resolving => self.ask_for_the_lock(),
            Phase::Seeking { ours } => self.seek(ours),
            Phase::Touching { ours } => self.touch(ours)?,
            Phase::Acknowledging => self.acknowledge(),
            Phase::LockingLate { present } => self.lock_late(present),
            Phase::Committing | Phase::Ended => return None,
        }
        Some(())
    }

    /// A new attempt: BEGIN. The stopwatch is started before anything is sent.
    pub(crate) fn begin(&mut self, attempt: u8) {
        let now = self.state.now;
        self.caller().attempt = attempt;
        self.caller().since = now;
        self.open();
        self.goto(Phase::Claiming);
    }

    /// What LOOK came to. Its row is that of its snapshot, its lock and its clock are those of now.
    fn read(&mut self, row: Option<Row>) {
        let now = self.state.now;
        let ours = self.try_lock();
        match row {
            Some(row) if !row.expired(now) => {
                let same = row.fingerprint == self.plan().fingerprint;
                self.end();
                self.tell(match row {
                    _ if row.pending => Told::AtomicityViolation,
                    _ if same || self.has(Flaw::ReplayIgnoresFingerprint) => Told::Replayed(row.attempt),
                    _ => Told::FingerprintMismatch,
                });
            }
            None if self.has(Flaw::ClaimLast) || self.has(Flaw::KeyInItsOwnTransaction) => {
                self.goto(Phase::Running)
            }
            _ if !ours => {
                self.end();
                self.tell(Told::InFlight);
            }
            Some(_) => self.goto(Phase::TakingOver),
            None => self.goto(Phase::Claiming),
        }
    }

    /// Claimed: the row is ours, and pending.
    fn write_pending(&mut self) {
        let row = Row {
            attempt: self.attempt(),
            fingerprint: self.plan().fingerprint,
            pending: true,
            claimed_at: self.state.now,
        };
        self.session().version = Some(Some(row));
        self.goto(Phase::Running);
    }

    /// The closure writes, FINISH succeeds, COMMIT is sent.
    fn run(&mut self) -> Option<()> {
        let now = self.state.now;
        if self.has(Flaw::ClaimLast) {
            self.not_busy()?;
            if self.state.server.visible.row.is_none() {
                self.write_pending();
            }
        }
        if self.has(Flaw::StopwatchStartsLate) {
            self.caller().since = now;
        }
        let attempt = self.attempt();
        let session = self.session();
        let row = session.version.as_mut().and_then(Option::as_mut);
        session.effect = Some(Effect { attempt, claimed_at: row.as_ref().map_or(now, |row| row.claimed_at) });
        if let Some(row) = row {
            row.pending = false;
        }
        self.send_commit();
        Some(())
    }

    pub(crate) fn send_commit(&mut self) {
        self.session().link = Link::CommitSent;
        if self.has(Flaw::UnlockBeforeCommit) {
            self.state.server.lock = None;
        }
        self.goto(Phase::Committing);
    }

    /// The answer to COMMIT arrives.
    fn hear(&mut self, committed: bool) {
        let attempt = self.attempt();
        if self.has(Flaw::KeyInItsOwnTransaction) && self.state.server.visible.row.is_none() {
            let fingerprint = self.plan().fingerprint;
            let row = Row { attempt, fingerprint, pending: false, claimed_at: self.state.now };
            self.state.server.visible.row = Some(row);
        }
        self.tell(if committed { Told::Executed { attempt, resolved: false } } else { Told::Failed });
    }

    /// The call returns.
    pub(crate) fn tell(&mut self, told: Told) {
        let calls = self.plan().calls;
        let caller = self.caller();
        caller.told.push(told);
        caller.since = 0;
        caller.phase = if caller.told.len() < usize::from(calls) { Phase::Ready } else { Phase::Ended };
    }

    /// BEGIN on a connection of its own.
    pub(crate) fn open(&mut self) {
        let id = self.state.server.unused(self.me as u8);
        self.state.server.begin(id);
        self.caller().session = Some(id);
    }

    /// ROLLBACK, and its answer.
    pub(crate) fn end(&mut self) {
        let kept = self.state.server.lock.filter(|_| self.has(Flaw::LockOutlivesRollback));
        if let Some(id) = self.caller().session.take() {
            self.state.server.end(id);
        }
        self.state.server.lock = self.state.server.lock.or(kept);
    }

    /// The connection is gone on this side. The server learns of it later, maybe after a COMMIT that was under way.
    pub(crate) fn cut(&mut self) {
        if let Some(id) = self.caller().session.take() {
            let session = self.state.server.session(id);
            session.link = match session.link {
                Link::CommitSent | Link::CutAfterCommit => Link::CutAfterCommit,
                Link::Open | Link::Cut => Link::Cut,
            };
        }
    }

    pub(crate) fn try_lock(&mut self) -> bool {
        let id = self.id();
        self.state.server.try_lock(id)
    }

    pub(crate) fn not_busy(&mut self) -> Option<()> {
        let id = self.id();
        (!self.state.server.busy(id)).then_some(())
    }

    pub(crate) fn goto(&mut self, phase: Phase) {
        self.caller().phase = phase;
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.setup.has(flaw)
    }

    pub(crate) fn plan(&self) -> Plan {
        self.setup.callers[self.me]
    }

    pub(crate) fn caller(&mut self) -> &mut Caller {
        &mut self.state.callers[self.me]
    }

    pub(crate) fn attempt(&self) -> Attempt {
        let caller = &self.state.callers[self.me];
        Attempt { caller: self.me as u8, call: caller.told.len() as u8, number: caller.attempt }
    }

    pub(crate) fn id(&mut self) -> SessionId {
        self.caller().session.expect("it is in a transaction")
    }

    pub(crate) fn session(&mut self) -> &mut Session {
        let id = self.id();
        self.state.server.session(id)
    }
}
