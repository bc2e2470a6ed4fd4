//! A handler that answers what the test says, and is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use axum::response::IntoResponse;
use axum::routing::{MethodRouter, any};

/// How often the handler ran.
#[derive(Clone, Default)]
pub struct Runs(Arc<AtomicU64>);

impl Runs {
    pub fn count(&self) -> u64 {
        self.0.load(SeqCst)
    }

    /// A handler for all methods. `answer` gets the number of the run, from 1 on.
    pub fn answer<R: IntoResponse + 'static>(
        &self,
        answer: impl Fn(u64) -> R + Clone + Send + Sync + 'static,
    ) -> MethodRouter {
        let runs = Arc::clone(&self.0);
        any(move || {
            let response = answer(runs.fetch_add(1, SeqCst) + 1).into_response();
            async move { response }
        })
    }

    /// Answers with the number of the run.
    pub fn number(&self) -> MethodRouter {
        self.answer(|run| run.to_string())
    }
}
