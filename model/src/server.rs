//! PostgreSQL, as far as the protocol can see it: one key's row, the writes of its operation, and who holds which lock.

use std::fmt;

/// One execution of the closure: the `attempt` column. It stands for the execution's result, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attempt {
    /// Whose.
    pub caller: u8,
    /// In which of its calls.
    pub call: u8,
    /// Its number in that call, from 1.
    pub number: u8,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}.{}", letter(self.caller), self.call + 1, self.number)
    }
}

/// How a caller is printed.
pub fn letter(caller: u8) -> char {
    char::from(b'A' + caller)
}

/// A version of the key's row in `pgonce.keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Who owns it, and what a replay returns once it is finished.
    pub attempt: Attempt,
    /// Of the parameters.
    pub fingerprint: u8,
    /// Not finished.
    pub pending: bool,
    /// By the server's clock.
    pub claimed_at: u8,
}

impl Row {
    /// Whether its retention, which is one tick of the clock, has ended. A pending row has none.
    pub fn expired(&self, now: u8) -> bool {
        !self.pending && self.claimed_at < now
    }
}

/// The business writes of one execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Effect {
    /// Whose.
    pub attempt: Attempt,
    /// When its key was claimed.
    pub claimed_at: u8,
}

/// What is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Data {
    /// The key's row.
    pub row: Option<Row>,
    /// The business writes, in the order of their commits. Nobody reads them, so they may stay for ever.
    pub effects: Vec<Effect>,
}

/// A connection with an open transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SessionId {
    /// A caller may have several: those that it has lost, and the one that it uses.
    Caller(u8, u8),
    /// The purge of expired keys.
    Purge,
    /// The claim of another key, whose advisory lock happens to be the same.
    Stranger,
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caller(caller, n) => write!(f, "{}'s session {n}", letter(*caller)),
            Self::Purge => f.write_str("the purge"),
            Self::Stranger => f.write_str("the other key's claim"),
        }
    }
}

/// What the server has heard from the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Somebody is there.
    Open,
    /// COMMIT is under way, and its sender waits.
    CommitSent,
    /// Nobody is there, which the server will notice at some time.
    Cut,
    /// Nobody is there, but a COMMIT may still arrive.
    CutAfterCommit,
}

/// An open transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// Whose.
    pub id: SessionId,
    /// Its version of the row: written, or deleted.
    pub version: Option<Option<Row>>,
    /// Its business writes.
    pub effect: Option<Effect>,
    /// The connection.
    pub link: Link,
}

/// The server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Server {
    /// What a new snapshot sees.
    pub visible: Data,
    /// What a crash leaves, where that may be less: see [`Durability`](crate::Durability).
    pub durable: Option<Data>,
    /// Who holds the key's advisory lock.
    pub lock: Option<SessionId>,
    /// Sorted.
    pub sessions: Vec<Session>,
}

impl Server {
    /// BEGIN. No snapshot is taken yet.
    pub fn begin(&mut self, id: SessionId) {
        self.sessions.push(Session { id, version: None, effect: None, link: Link::Open });
        self.sessions.sort_by_key(|session| session.id);
    }

    /// An id that no open transaction of this caller has.
    pub fn unused(&self, caller: u8) -> SessionId {
        let unused = |id: &SessionId| self.sessions.iter().all(|session| session.id != *id);
        (0..).map(|n| SessionId::Caller(caller, n)).find(unused).expect("there are never many")
    }

    /// The open transaction.
    pub fn session(&mut self, id: SessionId) -> &mut Session {
        self.sessions.iter_mut().find(|session| session.id == id).expect("it is open")
    }

    /// `pg_try_advisory_xact_lock`: whether it is ours, now or before.
    pub fn try_lock(&mut self, id: SessionId) -> bool {
        *self.lock.get_or_insert(id) == id
    }

    /// Whether another transaction has written the row or its place in the unique index, and has not ended. Who wants to
    /// write it has to wait.
    pub fn busy(&self, id: SessionId) -> bool {
        self.sessions.iter().any(|session| session.id != id && session.version.is_some())
    }

    /// A row that is finished, but not committed. No snapshot shows it.
    pub fn finished(&self) -> Option<Row> {
        self.sessions.iter().filter_map(|session| session.version.flatten()).find(|row| !row.pending)
    }

    /// COMMIT arrives. False when it is refused, which rolls back.
    pub fn commit(&mut self, id: SessionId, guarded: bool) -> bool {
        let session = self.session(id).clone();
        // keys_finished_before_commit
        let refused = guarded && session.version.flatten().is_some_and(|row| row.pending);
        if !refused {
            if let Some(version) = session.version {
                self.visible.row = version;
            }
            self.visible.effects.extend(session.effect);
        }
        self.end(id);
        !refused
    }

    /// The transaction ends, and its locks with it: after a COMMIT not before its writes can be seen.
    pub fn end(&mut self, id: SessionId) {
        self.sessions.retain(|session| session.id != id);
        if self.lock == Some(id) {
            self.lock = None;
        }
    }

    /// What is visible now survives a crash from now on.
    pub fn flush(&mut self) {
        if let Some(durable) = &mut self.durable {
            durable.clone_from(&self.visible);
        }
    }

    /// All transactions end, and what was not durable never was. Returns the executions that are lost.
    pub fn crash(&mut self) -> Vec<Attempt> {
        self.sessions.clear();
        self.lock = None;
        let Some(durable) = &self.durable else { return Vec::new() };
        let lost = self.visible.effects.split_off(durable.effects.len());
        self.visible.clone_from(durable);
        lost.iter().map(|effect| effect.attempt).collect()
    }
}
