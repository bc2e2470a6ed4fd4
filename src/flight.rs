//! Single flight: of the calls for one key in this process, one asks the database, and the others wait for what it finds in
//! memory, without a connection. Private.
//!
//! It saves work and decides nothing. What is heard is a result that was committed, which stays true. That a key is in flight
//! may be true no longer when it is heard, so it is always asked of the database; and so does whoever waits in vain for a second or two,
//! or hears that the call has ended otherwise than with a result.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::record::Record;
use crate::{IdempotencyKey, Operation, Scope};

/// How long nothing may be heard of a call before the database is asked. The call may be lost at its COMMIT, or have been
/// left half-way by whoever polls it.
const SILENCE: Duration = Duration::from_secs(1);

/// The keys that this process is at.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<Name, watch::Receiver<Stage>>>);

type Name = Arc<(Scope, IdempotencyKey)>;

/// How far the first call for a key is.
enum Stage {
    /// It asks the database.
    Asking,
    /// The key is its own, and it works; or another process has it, and it waits.
    Working,
    /// It stores the result and commits.
    Committing,
    /// This is committed.
    Landed(Arc<Record>),
}

/// What a call finds when it comes to its key.
pub(crate) enum Place {
    First(Flight),
    Behind(Follower),
}

/// The first call for a key; when it is dropped, another one becomes the first.
pub(crate) struct Flight {
    flights: Arc<Flights>,
    name: Name,
    stage: watch::Sender<Stage>,
    began: Instant,
    left: bool,
}

/// A call for a key at which another one is.
pub(crate) struct Follower(watch::Receiver<Stage>);

/// What a follower hears.
pub(crate) enum News {
    /// What was committed meanwhile.
    Landed(Arc<Record>),
    /// The first one has ended without a result.
    Ended,
    /// Nothing: the database knows more.
    Silence,
}

impl Flights {
    pub(crate) fn board(self: &Arc<Self>, operation: &Operation) -> Place {
        let name = Arc::new((operation.scope().clone(), operation.key().clone()));
        match self.lock().entry(name) {
            Entry::Occupied(first) => Place::Behind(Follower(first.get().clone())),
            Entry::Vacant(place) => {
                let (stage, receiver) = watch::channel(Stage::Asking);
                let name = place.key().clone();
                place.insert(receiver);
                Place::First(Flight {
                    flights: self.clone(),
                    name,
                    stage,
                    began: Instant::now(),
                    left: false,
                })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, watch::Receiver<Stage>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    pub(crate) fn somebody_works(&self) {
        self.stage.send_replace(Stage::Working);
    }

    pub(crate) fn commits(&self) {
        self.stage.send_replace(Stage::Committing);
    }

    /// Since when it may have had the key.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Tells what is committed to those who wait for it. From now on, calls ask the database again.
    pub(crate) fn lands(mut self, record: impl FnOnce() -> Record) {
        self.leaves();
        // Nobody comes any more; those who wait have their own receivers.
        if self.stage.receiver_count() > 0 {
            self.stage.send_replace(Stage::Landed(Arc::new(record())));
        }
    }

    fn leaves(&mut self) {
        if !mem::replace(&mut self.left, true) {
            self.flights.lock().remove(&self.name);
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.leaves();
    }
}

impl Follower {
    /// Waits for news, at most so long; without a limit, only while the result may be there any moment.
    ///
    /// The database knows nothing of an optimistic run before that ends, so it is not asked meanwhile.
    pub(crate) async fn hears(&mut self, limit: Option<Duration>, optimistic: bool) -> News {
        let wait = match limit {
            Some(limit) if optimistic => limit,
            limit => limit.map_or(SILENCE, |limit| limit.min(silence())),
        };
        let end = Instant::now() + wait;
        loop {
            match &*self.0.borrow_and_update() {
                Stage::Landed(record) => return News::Landed(record.clone()),
                Stage::Working if limit.is_none() => return News::Silence,
                _ => {}
            }
            match timeout_at(end, self.0.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return News::Ended,
                Err(_) => return News::Silence,
            }
        }
    }
}

/// One to two seconds, so that those who came together do not ask together.
fn silence() -> Duration {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    SILENCE + SILENCE / 64 * (NEXT.fetch_add(1, Relaxed) % 64)
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}
