//! The disturbances of a sweep. Private.

use std::fmt::Debug;
use std::time::Duration;

use tokio::time::timeout;

use super::bench::{Bench, Line, PATIENCE};
use super::case::{Case, DUPLICATES, is_commit, places};
use super::handler::{Said, all};
use super::proxy::{Edge, Fault, Message};
use super::report::Wrong;
use super::trial::Trial;
use crate::InFlight;

/// How long a COMMIT goes unanswered where the network swallows it, before pgonce gives it up.
const SWALLOWED: Duration = Duration::from_millis(200);

/// The same, before the caller gives up.
const GIVEN_UP: Duration = Duration::from_secs(3);

impl<T: PartialEq + Debug> Bench<'_, '_, T> {
    /// Makes the call, undisturbed, and returns what went over the wire, and how often its future was polled.
    pub(super) async fn rehearse(&self, line: Line, trial: &mut Trial<T>) -> (Vec<Message>, usize) {
        let mut polls = usize::MAX;
        trial.said.push(self.call_for(&mut polls, &line.idempotency, &trial.key).await);
        (line.proxy.conversation(), usize::MAX - polls)
    }

    /// Makes the call, in this case.
    pub(super) async fn disturb(&self, trial: &mut Trial<T>) -> Result<(), Wrong> {
        let Line { proxy, mut idempotency } = self.line().await?;
        let Trial { case, key, said } = trial;
        match case {
            Case::Undisturbed => said.push(self.call(&idempotency, key).await),
            Case::Fault(fault, edge, place) => {
                let there = place.clone();
                proxy.arm(*fault, *edge, move |message| there.has(message));
                if *fault == Fault::BlackHole {
                    idempotency = idempotency.with_commit_timeout(SWALLOWED);
                    let call = self.call(&idempotency, key);
                    said.push(timeout(GIVEN_UP, call).await.unwrap_or(Said::Nothing));
                } else {
                    said.push(self.call(&idempotency, key).await);
                }
                if proxy.conversation().iter().any(|message| place.has(message)) {
                    // After the last message the proxy may need a moment more than the call.
                    let _ = timeout(Duration::from_secs(1), proxy.hit(1)).await;
                } else {
                    // This time the call said something else.
                    *case = Case::Undisturbed;
                }
            }
            Case::Dropped(polls, reached) => {
                // With a connection that is ready, the polls are for the call.
                drop(idempotency.pool().acquire().await);
                while idempotency.pool().num_idle() < idempotency.pool().size() as usize {
                    tokio::task::yield_now().await;
                }
                said.push(self.call_for(&mut polls.clone(), &idempotency, key).await);
                *reached = places(&proxy.conversation()).pop();
            }
            Case::Duplicates { wait } => {
                if *wait {
                    idempotency = idempotency.with_in_flight(InFlight::Wait(PATIENCE));
                }
                let calls = (0..DUPLICATES).map(|_| async {
                    let mut said = Vec::new();
                    let asked = self.ask(&idempotency, key, &mut said, PATIENCE).await;
                    (said, asked)
                });
                for (heard, asked) in all(calls).await {
                    said.extend(heard);
                    asked?;
                }
            }
            Case::InFlight => {
                proxy.arm(Fault::Stall, Edge::Before, is_commit);
                let first = self.call(&idempotency, key);
                let second = async {
                    // Should it never come to that, the first call has ended for another reason.
                    let _ = timeout(PATIENCE, proxy.hit(1)).await;
                    // A handler may wait for the first call, which waits for us.
                    let call = self.call(&self.steady, key);
                    let heard = timeout(Duration::from_millis(100), call).await;
                    proxy.heal();
                    heard
                };
                let (first, second) = tokio::join!(first, second);
                said.push(first);
                said.extend(second);
            }
        }
        Ok(())
    }
}
