//! The card network: another company, simulated. Its books are its own, and a rollback of ours does not undo what it did.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgonce::IdempotencyKey;
use tracing::info;

#[derive(Clone)]
pub struct CardNetwork {
    takes: Duration,
    done: Arc<Mutex<HashSet<IdempotencyKey>>>,
}

impl CardNetwork {
    pub fn new(takes: Duration) -> Self {
        Self { takes, done: Arc::default() }
    }

    /// Moves money: once for each key, as the real ones do. The key must be the same whenever the request is tried again.
    pub async fn transfer(&self, key: &IdempotencyKey, what: &'static str) {
        tokio::time::sleep(self.takes).await;
        let is_new = self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        info!("the card network: {what} {}", if is_new { "done" } else { "was done before" });
    }
}
