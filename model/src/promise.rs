//! The promise, as properties of every state that can be reached; and states that must be reachable.

use stateright::{Model, Property};

use crate::caller::{Phase, Told};
use crate::server::{Attempt, Effect, Link};
use crate::{Durability, Protocol, State};

type Condition = fn(&Protocol, &State) -> bool;

/// What always holds.
pub const PROMISE: [(&str, Condition); 10] = [
    ("at most one execution commits while a key is live", |_, state| {
        // One retention, a tick, lies between two claims.
        state.effects().is_sorted_by(|one, next| one.claimed_at < next.claimed_at)
    }),
    ("a key is committed exactly with its writes", |_, state| {
        let row = state.server.visible.row;
        let written = |row: &crate::Row| state.has_committed(row.attempt);
        let live = |effect: &&Effect| effect.claimed_at == state.now;
        row.as_ref().is_none_or(written)
            && state
                .effects()
                .iter()
                .filter(live)
                .all(|effect| row.is_some_and(|row| row.attempt == effect.attempt))
    }),
    ("no pending key is committed", |_, state| state.server.visible.row.is_none_or(|row| !row.pending)),
    ("an execution that was reported is committed", |protocol, state| {
        let excused = |attempt| {
            protocol.setup.durability == Durability::Asynchronous && state.vanished.contains(&attempt)
        };
        state.executed().all(|attempt| state.has_committed(attempt) || excused(attempt))
    }),
    ("a replay is the result of a committed execution", |_, state| {
        state.replayed().all(|attempt| state.has_committed(attempt) || state.vanished.contains(&attempt))
    }),
    ("after any other answer nothing of the call is ever committed", |_, state| {
        state.effects().iter().all(|Effect { attempt, .. }| match state.told(*attempt) {
            None | Some(Told::Executed { .. } | Told::CommitUnknown(_) | Told::Nothing(_)) => true,
            Some(_) => false,
        })
    }),
    ("an attempt that was given up for dead is never committed", |_, state| {
        state.effects().iter().all(|Effect { attempt, .. }| match state.told(*attempt) {
            None => attempt.number == state.callers[usize::from(attempt.caller)].attempt,
            Some(Told::CommitUnknown(last) | Told::Nothing(last)) => attempt.number == last,
            Some(Told::Executed { attempt: reported, .. }) => *attempt == reported,
            Some(_) => true,
        })
    }),
    ("all successes while a key is live have the same result", |_, state| {
        let period = |attempt: Attempt| {
            state.effects().iter().find(|effect| effect.attempt == attempt).map(|effect| effect.claimed_at)
        };
        let results: Vec<_> = state.executed().chain(state.replayed()).collect();
        results.iter().all(|one| {
            results
                .iter()
                .all(|other| one == other || period(*one).is_none() || period(*one) != period(*other))
        })
    }),
    ("a result is never replayed for other parameters", |protocol, state| {
        let fingerprint = |caller: u8| protocol.setup.callers[usize::from(caller)].fingerprint;
        state.all_told().all(|(caller, told)| match told {
            Told::Replayed(attempt) => fingerprint(caller) == fingerprint(attempt.caller),
            _ => true,
        })
    }),
    ("every call ends, and leaves nothing open", |protocol, state| {
        let over = state.callers.iter().all(|caller| caller.phase == Phase::Ended)
            && state.server.sessions.is_empty()
            && state.server.lock.is_none();
        over || {
            let mut actions = Vec::new();
            protocol.actions(state, &mut actions);
            actions.into_iter().any(|action| protocol.next_state(state, action).is_some())
        }
    }),
];

/// What can happen: without it the exploration would say little.
pub const REACHED: [(&str, Condition); 17] = [
    ("an execution", |_, state| {
        state.any_told(|told| matches!(told, Told::Executed { resolved: false, .. }))
    }),
    ("a replay", |_, state| state.any_told(|told| matches!(told, Told::Replayed(_)))),
    ("in flight", |_, state| state.any_told(|told| *told == Told::InFlight)),
    ("a fingerprint mismatch", |_, state| state.any_told(|told| *told == Told::FingerprintMismatch)),
    ("an atomicity violation", |_, state| state.any_told(|told| *told == Told::AtomicityViolation)),
    ("a definite failure", |_, state| state.any_told(|told| *told == Told::Failed)),
    ("a lost answer, resolved as executed", |_, state| {
        state.any_told(|told| matches!(told, Told::Executed { resolved: true, .. }))
    }),
    ("a lost answer, resolved as dead and run again", |_, state| {
        state.executed().any(|attempt| attempt.number > 1)
    }),
    ("a lost answer, resolved as dead and replayed from another", |_, state| {
        state.callers.iter().any(|it| it.attempt > 1 && matches!(it.told.last(), Some(Told::Replayed(_))))
    }),
    ("commit unknown", |_, state| state.any_told(|told| matches!(told, Told::CommitUnknown(_)))),
    ("commit unknown, and the next call replays it", |_, state| {
        state.callers.iter().enumerate().any(|(me, caller)| {
            caller.told.windows(2).any(|two| match two {
                [Told::CommitUnknown(number), Told::Replayed(result)] => {
                    (usize::from(result.caller), result.number) == (me, *number)
                }
                _ => false,
            })
        })
    }),
    ("a COMMIT under way after its call has ended", |_, state| {
        state.server.sessions.iter().any(|session| {
            session.link == Link::CutAfterCommit
                && session.effect.is_some_and(|effect| state.told(effect.attempt).is_some())
        })
    }),
    ("a COMMIT under way for a key that has expired", |_, state| {
        let commits = |link| matches!(link, Link::CommitSent | Link::CutAfterCommit);
        let late = |session: &crate::Session| session.effect.is_some_and(|it| it.claimed_at < state.now);
        state.server.sessions.iter().any(|session| commits(session.link) && late(session))
    }),
    ("a takeover", |_, state| state.server.visible.row.is_some() && state.effects().len() > 1),
    ("a purge", |_, state| state.server.visible.row.is_none() && !state.effects().is_empty()),
    // Documented limits, and nothing that pgonce could change.
    ("a crash takes back an execution that was reported", |_, state| {
        state.executed().any(|attempt| state.vanished.contains(&attempt))
    }),
    ("a crash takes back a result that was replayed", |_, state| {
        state.replayed().any(|attempt| state.vanished.contains(&attempt))
    }),
];

/// All of it, for the checker.
pub(crate) fn properties() -> Vec<Property<Protocol>> {
    let promise = PROMISE.iter().map(|(name, condition)| Property::always(name, *condition));
    let reached = REACHED.iter().map(|(name, condition)| Property::sometimes(name, *condition));
    promise.chain(reached).collect()
}

impl State {
    fn effects(&self) -> &[Effect] {
        &self.server.visible.effects
    }

    fn has_committed(&self, attempt: Attempt) -> bool {
        self.effects().iter().any(|effect| effect.attempt == attempt)
    }

    /// What the call of this attempt returned.
    fn told(&self, attempt: Attempt) -> Option<Told> {
        self.callers[usize::from(attempt.caller)].told.get(usize::from(attempt.call)).copied()
    }

    fn all_told(&self) -> impl Iterator<Item = (u8, Told)> {
        (0..).zip(&self.callers).flat_map(|(me, caller)| caller.told.iter().map(move |told| (me, *told)))
    }

    fn any_told(&self, wanted: impl Fn(&Told) -> bool) -> bool {
        self.all_told().any(|(_, told)| wanted(&told))
    }

    fn executed(&self) -> impl Iterator<Item = Attempt> {
        self.all_told().filter_map(|(_, told)| match told {
            Told::Executed { attempt, .. } => Some(attempt),
            _ => None,
        })
    }

    fn replayed(&self) -> impl Iterator<Item = Attempt> {
        self.all_told().filter_map(|(_, told)| match told {
            Told::Replayed(attempt) => Some(attempt),
            _ => None,
        })
    }
}
