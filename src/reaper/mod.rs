//! Expired keys go by themselves: [`Reaper`].

mod cycle;
mod events;
mod handle;
mod pace;

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use std::{future, io};

use tokio::time::{Instant, sleep, timeout};

pub use self::cycle::Reaped;
use self::cycle::{Cycle, Next};
pub use self::handle::ReaperHandle;
use self::pace::Pace;
use crate::sql::Purge;
use crate::{Error, Idempotency, metrics};

/// Deletes expired keys in the background, in small transactions of its own.
///
/// **What it does to the database.** It deletes rows of `pgonce.keys` whose retention has ended, the oldest first, and
/// nothing else. It never touches a live or a pending key, and skips a key that is being taken over. Between two
/// batches it holds no connection, no lock and no snapshot. A call that claims a key in the very moment in which it is
/// deleted waits until that batch has ended: some milliseconds, and 5 seconds more at most if this process stalls before
/// its COMMIT, since the server then undoes the batch. No other call waits for it. (That an expired key is a new
/// request does not depend on the reaper.)
///
/// **Many processes** may each have one. Who begins a batch takes a lock for this transaction (an advisory one, so it
/// works behind PgBouncer); who finds it taken does nothing for a whole [interval](Self::with_interval). When the one
/// at work ends, another one goes on at its next turn.
///
/// **It adapts.** After each batch it rests so many times as long as the batch took ([`with_rest`](Self::with_rest)),
/// so that it takes a bounded share of the server, and a slow server slows it down. **It does not give up**: when the
/// database is away, it says so in the log, waits longer each time, and goes on. What a crash of the server brings back
/// is expired still, and is deleted again.
///
/// ```no_run
/// # async fn shutdown() {}
/// # async fn example(idempotency: pgonce::Idempotency) {
/// let reaper = pgonce::Reaper::new(idempotency).spawn();
/// shutdown().await; // the application runs
/// reaper.stop().await;
/// # }
/// ```
///
/// It takes all keys of the table: those of every scope, messages of an [`Inbox`](crate::Inbox) too, each with its own
/// retention. The [guide] has the figures and settings for autovacuum.
///
/// Where no process can run it, pg_cron can delete a batch each minute. While a reaper is at work this does nothing:
///
/// ```sql
/// SELECT cron.schedule('pgonce', '* * * * *', 'SELECT pgonce.purge_expired(10000)');
/// ```
///
/// [guide]: https://github.com/pgonce/pgonce/blob/main/docs/reaper.md
#[derive(Clone, Debug)]
pub struct Reaper {
    idempotency: Idempotency,
    batch_size: u32,
    rest: u32,
    interval: Duration,
}

impl Reaper {
    const DEFAULT_BATCH_SIZE: u32 = 1000;
    const DEFAULT_REST: u32 = 4;
    const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

    /// On the pool of this [`Idempotency`], of which each batch takes a connection; its other settings do not matter.
    /// It does nothing until it is [spawned](Self::spawn) or [run](Self::run).
    pub fn new(idempotency: Idempotency) -> Self {
        Self {
            idempotency,
            batch_size: Self::DEFAULT_BATCH_SIZE,
            rest: Self::DEFAULT_REST,
            interval: Self::DEFAULT_INTERVAL,
        }
    }

    /// How many keys one transaction deletes at most. Default: 1000. 0 counts as 1.
    ///
    /// That takes 12 milliseconds on an idle server and some more on a busy one, which is what a claim of one of those
    /// keys may have to wait. More at a time take as long for each key.
    pub fn with_batch_size(mut self, keys: u32) -> Self {
        self.batch_size = keys.max(1);
        self
    }

    /// How many times as long as a batch took it rests after it. Default: 4, so that it works a fifth of the time.
    ///
    /// With 0 it does not rest while there is something to delete: for a night in which nothing else runs.
    pub fn with_rest(mut self, times: u32) -> Self {
        self.rest = times;
        self
    }

    /// How long it waits when nothing is left, or another one is at work; and at most so long after a failure.
    /// Default: a minute, since keys that stay a minute longer cost next to nothing.
    ///
    /// It waits a random time between two and four thirds of this, so that many processes do not come at once. Less
    /// than a millisecond counts as a millisecond, and more than a day as a day.
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval.clamp(Duration::from_millis(1), Duration::from_secs(24 * 60 * 60));
        self
    }

    /// Runs in a task of its own, beginning now, until the handle [stops](ReaperHandle::stop) it or is dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn(self) -> ReaperHandle {
        ReaperHandle::spawn(self)
    }

    /// Runs for ever, for who owns its tasks: `tokio::spawn(reaper.run())`, or a `JoinSet`.
    ///
    /// The future can be dropped (or its task aborted) at any moment: a batch that is under way is rolled back. With
    /// [`run_until`](Self::run_until) it is finished.
    pub async fn run(self) {
        self.run_until(future::pending()).await;
    }

    /// Runs until the signal comes. A batch that is under way is finished, for which it has 5 seconds; after that its
    /// connection is closed, and the server rolls it back.
    ///
    /// ```no_run
    /// # async fn example(idempotency: pgonce::Idempotency, stop: tokio::sync::oneshot::Receiver<()>) {
    /// let reaper = pgonce::Reaper::new(idempotency);
    /// reaper.run_until(async { drop(stop.await) }).await;
    /// # }
    /// ```
    pub async fn run_until(self, signal: impl Future<Output = ()>) {
        let mut signal = pin!(signal);
        let mut pace = Pace::new(self.rest, self.interval);
        let mut cycle = Cycle::new();
        loop {
            if pace.interval_has_passed()
                && unless(signal.as_mut(), pin!(metrics::sample(&self.idempotency))).await.is_none()
            {
                return events::stopped(true);
            }
            let mut step = pin!(self.step(&mut cycle, &mut pace));
            let Some(pause) = unless(signal.as_mut(), step.as_mut()).await else {
                let finished = timeout(GRACE, step).await.is_ok();
                return events::stopped(finished);
            };
            if unless(signal.as_mut(), pin!(sleep(pause))).await.is_none() {
                return events::stopped(true);
            }
        }
    }

    /// Deletes what is expired now, with the same batches and rests, and says how much that was: for a job of one's
    /// own, or a test. It ends at once when another reaper is at work.
    ///
    /// # Errors
    ///
    /// [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database). What was deleted
    /// before stays deleted. Call it again.
    pub async fn run_once(&self) -> Result<Reaped, Error> {
        let pace = Pace::new(self.rest, self.interval);
        let mut cycle = Cycle::new();
        loop {
            match self.batch(&mut cycle).await {
                Ok(Next::Rest(took)) => sleep(pace.rest(took)).await,
                Ok(Next::End(reaped)) => return Ok(reaped),
                Err(error) => {
                    events::failed(&error);
                    return Err(error);
                }
            }
        }
    }

    /// One batch, and how long to pause after it. Whatever fails is only a longer pause.
    async fn step(&self, cycle: &mut Cycle, pace: &mut Pace) -> Duration {
        match self.batch(cycle).await {
            Ok(Next::Rest(took)) => {
                pace.works();
                pace.rest(took)
            }
            Ok(Next::End(_)) => {
                pace.works();
                pace.interval()
            }
            Err(error) => {
                events::failed(&error);
                pace.failure()
            }
        }
    }

    async fn batch(&self, cycle: &mut Cycle) -> Result<Next, Error> {
        let began = Instant::now();
        let purge = Purge { limit: self.batch_size, since: cycle.since(), elected: true };
        let purged = match timeout(LONGEST_BATCH, self.idempotency.purge(purge)).await {
            Ok(purged) => purged?,
            Err(_) => return Err(no_answer()),
        };
        let took = began.elapsed();
        if purged.elected {
            events::batch(&purged, took);
        }
        Ok(cycle.after(purged, self.batch_size, took))
    }
}

/// How long a batch may go on after the signal to stop. It takes some milliseconds, where nothing is wrong.
const GRACE: Duration = Duration::from_secs(5);

/// After that a batch is given up: a host that is gone may never answer. Longer than any batch takes, also the first
/// one of a cycle, which may have to pass the remains of many before it.
const LONGEST_BATCH: Duration = Duration::from_secs(5 * 60);

fn no_answer() -> Error {
    let error =
        io::Error::new(io::ErrorKind::TimedOut, format!("a batch had no answer for {LONGEST_BATCH:?}"));
    sqlx::Error::Io(error).into()
}

/// What the work comes to, or None when the signal came first.
async fn unless<S: Future, W: Future>(mut signal: Pin<&mut S>, mut work: Pin<&mut W>) -> Option<W::Output> {
    future::poll_fn(|context| match signal.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(context).map(Some),
    })
    .await
}
