//! A reaper in a task of its own.

use std::fmt;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::Reaper;

/// A running [`Reaper`]; made by [`Reaper::spawn`].
///
/// **Dropping it stops the reaper**, as [`stop`](Self::stop) does, only that nobody waits for its end. So keep it for as long as the
/// application runs. A reaper that outlived its handle would go on with a pool that its owner has done with, and nobody could end
/// it; who wants that says so, with `tokio::spawn(reaper.run())`.
#[must_use = "a reaper whose handle is dropped stops"]
pub struct ReaperHandle {
    /// Dropped or not, it is heard.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl ReaperHandle {
    pub(super) fn spawn(reaper: Reaper) -> Self {
        let (stop, stopped) = oneshot::channel();
        Self { stop, task: tokio::spawn(reaper.run_until(async { drop(stopped.await) })) }
    }

    /// Lets the batch that is under way finish, begins no other, and returns when the reaper has ended. Nothing is left in the
    /// database: no lock, no open transaction.
    ///
    /// A batch that takes longer than 5 seconds is given up: its connection is closed, and the server rolls it back as soon as it
    /// notices.
    pub async fn stop(self) {
        drop(self.stop);
        // It fails only when the runtime ends, and the reaper with it.
        let _ = self.task.await;
    }

    /// Whether the task has ended, which it does by itself only when its runtime does.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl fmt::Debug for ReaperHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaperHandle").field("finished", &self.is_finished()).finish_non_exhaustive()
    }
}
