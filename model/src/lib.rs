//! A model of pgonce's protocol, for `stateright` to explore exhaustively. See `README.md` beside it.

mod caller;
mod faults;
mod flaw;
mod promise;
mod resolution;
mod server;
mod setup;
mod turn;

use std::fmt;

use stateright::{Model, Property};

pub use self::caller::{Caller, Phase, Told};
pub use self::faults::{Mistake, Purge};
pub use self::flaw::{FLAWS, Flaw};
pub use self::promise::{PROMISE, REACHED};
pub use self::server::{Attempt, Data, Effect, Link, Row, Server, Session, SessionId};
pub use self::setup::{Bounds, Durability, Plan, Setup};
use self::turn::Turn;

/// The whole system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// PostgreSQL.
    pub server: Server,
    /// Who calls.
    pub callers: Vec<Caller>,
    /// The purge of expired keys.
    pub purge: Purge,
    /// The clock, in retentions.
    pub now: u8,
    /// How much may still go wrong.
    pub left: Bounds,
    /// Executions that a crash took back.
    pub vanished: Vec<Attempt>,
}

/// One step of somebody.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The caller's next statement.
    Step(usize, Phase),
    /// The caller stops resolving: its time is over.
    GiveUp(usize),
    /// The caller's connection is lost.
    Lose(usize),
    /// The caller's process is killed.
    Kill(usize),
    /// The caller's closure breaks its transaction.
    Err(usize, Mistake),
    /// A COMMIT arrives, and is done.
    Commit(SessionId),
    /// A COMMIT arrives, and is refused.
    Refuse(SessionId),
    /// The server notices that a connection is gone.
    Notice(SessionId),
    /// What is visible becomes durable.
    Flush,
    /// The server crashes.
    Crash,
    /// The clock moves on.
    Tick,
    /// The purge's next statement.
    Purge(Purge),
    /// Another key's claim takes the same advisory lock, or ends.
    Collide,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |caller: usize| server::letter(caller as u8);
        match self {
            Self::Step(me, phase) => write!(f, "{}: {}", name(*me), phase.statement()),
            Self::GiveUp(me) => write!(f, "{}: gives up", name(*me)),
            Self::Lose(me) => write!(f, "{}: loses its connection", name(*me)),
            Self::Kill(me) => write!(f, "{}: is killed", name(*me)),
            Self::Err(me, mistake) => write!(f, "{}: its closure {mistake:?}", name(*me)),
            Self::Commit(id) => write!(f, "server: commits {id:?}"),
            Self::Refuse(id) => write!(f, "server: refuses to commit {id:?}"),
            Self::Notice(id) => write!(f, "server: notices that {id:?} is gone"),
            Self::Flush => write!(f, "server: makes everything durable"),
            Self::Crash => write!(f, "server: crashes"),
            Self::Tick => write!(f, "clock: one retention has passed"),
            Self::Purge(purge) => write!(f, "purge: {purge:?}"),
            Self::Collide => write!(f, "another key: takes or gives back the same advisory lock"),
        }
    }
}

/// The protocol, in a setup.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// The setup.
    pub setup: Setup,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let durable = (self.setup.durability != Durability::Full).then(Data::default);
        vec![State {
            server: Server { durable, ..Server::default() },
            callers: vec![Caller::default(); self.setup.callers.len()],
            purge: Purge::Idle,
            now: 0,
            left: self.setup.bounds,
            vanished: Vec::new(),
        }]
    }

    /// Also those that have to wait: then there is no next state.
    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        for (me, caller) in state.callers.iter().enumerate() {
            match caller.phase {
                Phase::Ended => continue,
                Phase::Committing => {}
                phase => actions.push(Action::Step(me, phase)),
            }
            if caller.phase == Phase::Resolving {
                actions.push(Action::GiveUp(me));
            }
            if left.losses > 0 {
                actions.push(Action::Lose(me));
            }
            if left.kills > 0 {
                actions.push(Action::Kill(me));
            }
            if left.mistakes > 0 && caller.phase == Phase::Running {
                let mistakes = [Mistake::SwallowsAnError, Mistake::Commits, Mistake::LeavesAndWrites];
                actions.extend(mistakes.map(|mistake| Action::Err(me, mistake)));
            }
        }
        for session in &state.server.sessions {
            match session.link {
                Link::Open => continue,
                Link::CommitSent => actions.push(Action::Commit(session.id)),
                Link::Cut => actions.push(Action::Notice(session.id)),
                Link::CutAfterCommit => {
                    actions.extend([Action::Commit(session.id), Action::Notice(session.id)])
                }
            }
            if left.refusals > 0 {
                actions.push(Action::Refuse(session.id));
            }
        }
        actions.extend([
            Action::Flush,
            Action::Crash,
            Action::Tick,
            Action::Purge(state.purge),
            Action::Collide,
        ]);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        let state = &mut next;
        let left = &mut state.left;
        let setup = &self.setup;
        match action {
            Action::Step(me, _) => Turn { setup, state, me }.step()?,
            Action::GiveUp(me) => Turn { setup, state, me }.unknown(),
            Action::Lose(me) => {
                left.losses = left.losses.checked_sub(1)?;
                Turn { setup, state, me }.lose()?;
            }
            Action::Kill(me) => {
                left.kills = left.kills.checked_sub(1)?;
                Turn { setup, state, me }.kill()?;
            }
            Action::Err(me, mistake) => {
                left.mistakes = left.mistakes.checked_sub(1)?;
                Turn { setup, state, me }.err(mistake)?;
            }
            Action::Commit(id) => state.commit(setup, id, false)?,
            Action::Refuse(id) => state.commit(setup, id, true)?,
            Action::Notice(id) => state.notice(id)?,
            Action::Flush => {
                if state.server.durable.as_ref()? == &state.server.visible {
                    return None;
                }
                state.server.flush();
            }
            Action::Crash => state.crash(setup)?,
            Action::Tick => {
                left.ticks = left.ticks.checked_sub(1)?;
                state.now += 1;
            }
            Action::Purge(_) => state.purge(setup)?,
            Action::Collide => state.collide()?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        promise::properties()
    }
}
