//! What all cases of a sweep work with: connections, calls and counts. Private.

use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::handler::Said;
use super::once::Sweep;
use super::proxy::Proxy;
use super::report::Wrong;
use crate::{Idempotency, IdempotencyKey};

/// How long a client makes the same call again, and how long one call may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// How long it does so when nothing else is going on.
const AT_REST: Duration = Duration::from_secs(2);

/// How long sessions that are still at work are waited for.
const SETTLING: Duration = Duration::from_secs(5);

/// The sessions of this database that are at work.
const AT_WORK: &str = "\
SELECT coalesce(array_agg(concat(pid, backend_start)), '{}') FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND state <> 'idle'";

/// Whether no session of this database is at work, except those in `$1`, and none of those named `$2` is left.
const SETTLED: &str = "\
SELECT NOT EXISTS (
    SELECT FROM pg_catalog.pg_stat_activity
    WHERE datname = pg_catalog.current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
      AND concat(pid, backend_start) <> ALL($1) AND (state <> 'idle' OR application_name = $2)
)";

pub(super) struct Bench<'s, 'a, T> {
    sweep: &'s Sweep<'a, T>,
    /// Over good connections.
    pub(super) steady: Idempotency,
    /// By which the server knows the connections that are disturbed.
    name: String,
    /// Sessions that were at work before.
    others: Vec<String>,
}

/// A pool of its own, behind a proxy of its own.
pub(super) struct Line {
    pub(super) proxy: Proxy,
    pub(super) idempotency: Idempotency,
}

impl<'s, 'a, T> Bench<'s, 'a, T> {
    pub(super) async fn new(sweep: &'s Sweep<'a, T>) -> Self {
        Self {
            sweep,
            steady: Idempotency::new(sweep.pool.clone()),
            name: format!("pgonce-testing-{}", Uuid::new_v4().simple()),
            // Where the database cannot be asked, whatever asks it next says why.
            others: sqlx::query_scalar(AT_WORK).fetch_one(&sweep.pool).await.unwrap_or_default(),
        }
    }

    pub(super) async fn line(&self) -> Result<Line, Wrong> {
        let pool = &self.sweep.pool;
        let proxy = Proxy::start(&pool.connect_options()).await;
        let proxy = proxy.map_err(|error| Wrong::Unusable(error.to_string()))?;
        // Without a cache each statement is sent with its text, by which the report names it.
        let options = proxy.options().application_name(&self.name).statement_cache_capacity(0);
        let pool = pool.options().clone().min_connections(0).connect_lazy_with(options);
        Ok(Line { proxy, idempotency: Idempotency::new(pool) })
    }

    pub(super) async fn call(&self, idempotency: &Idempotency, key: &IdempotencyKey) -> Said<T> {
        self.call_for(&mut usize::MAX.clone(), idempotency, key).await
    }

    /// Drops the call after so many polls, of which those that it did not need are left.
    pub(super) async fn call_for(
        &self,
        polls: &mut usize,
        idempotency: &Idempotency,
        key: &IdempotencyKey,
    ) -> Said<T> {
        timeout(PATIENCE, self.sweep.handler.call(idempotency, key, polls)).await.unwrap_or(Said::Nothing)
    }

    /// Calls as a client does, again and again until there is an answer, of which only the end is told.
    pub(super) async fn ask(
        &self,
        idempotency: &Idempotency,
        key: &IdempotencyKey,
        said: &mut Vec<Said<T>>,
        patience: Duration,
    ) -> Result<(), Wrong> {
        let started = Instant::now();
        loop {
            let heard = self.call(idempotency, key).await;
            let end = match &heard {
                Said::Answer(_) => Some(Ok(())),
                Said::Violation(_) => Some(Err(Wrong::Violation)),
                _ if started.elapsed() >= patience => Some(Err(Wrong::Unanswered)),
                _ => None,
            };
            if let Some(end) = end {
                said.push(heard);
                return end;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The same, when nobody disturbs it any more.
    pub(super) async fn ask_again(&self, key: &IdempotencyKey, said: &mut Vec<Said<T>>) -> Result<(), Wrong> {
        match self.ask(&self.steady, key, said, Duration::ZERO).await {
            // The server may still be busy with what was disturbed. When it has come to rest, there is no excuse.
            Err(Wrong::Unanswered) => {
                said.pop();
                let patience = if self.settle().await { AT_REST } else { PATIENCE };
                self.ask(&self.steady, key, said, patience).await
            }
            asked => asked,
        }
    }

    /// Makes everything ready for a case.
    pub(super) async fn prepare(&self) -> Result<Vec<i128>, Wrong> {
        for sql in &self.sweep.before_each {
            let done = sqlx::raw_sql(sql.clone()).execute(&self.sweep.pool).await;
            done.map_err(|error| unusable("`before_each`", error))?;
        }
        self.numbers().await
    }

    /// Each effect's number, when everything has come to rest.
    pub(super) async fn numbers(&self) -> Result<Vec<i128>, Wrong> {
        self.settle().await;
        let mut numbers = Vec::new();
        for effect in &self.sweep.effects {
            let number = effect.value(&self.sweep.pool).await;
            numbers.push(number.map_err(|error| unusable(&effect.name, error))?);
        }
        Ok(numbers)
    }

    /// Waits until nothing is going on, since what was dropped may go on for a moment on the server.
    async fn settle(&self) -> bool {
        let started = Instant::now();
        while started.elapsed() < SETTLING {
            let settled = sqlx::query_scalar(SETTLED).bind(&self.others).bind(&self.name);
            match settled.fetch_one(&self.sweep.pool).await {
                Ok(false) => sleep(Duration::from_millis(2)).await,
                Ok(true) => return true,
                Err(_) => break,
            }
        }
        false
    }

    /// By how much an execution changes each number.
    pub(super) async fn amounts(&self, before: &[i128]) -> Result<Vec<i128>, Wrong> {
        let amounts: Vec<_> =
            self.numbers().await?.iter().zip(before).map(|(after, before)| after - before).collect();
        match self.sweep.effects.iter().zip(&amounts).find(|(_, amount)| **amount == 0) {
            Some((effect, _)) => Err(Wrong::NoEffect(effect.name.clone())),
            None => Ok(amounts),
        }
    }

    /// Each effect has happened once.
    pub(super) async fn count(&self, before: &[i128], amounts: &[i128]) -> Result<(), Wrong> {
        let after = self.numbers().await?;
        for (number, effect) in self.sweep.effects.iter().enumerate() {
            let change = after[number] - before[number];
            if change != amounts[number] {
                return Err(Wrong::NotOnce(effect.name.clone(), change as f64 / amounts[number] as f64));
            }
        }
        Ok(())
    }

    /// The keys have done their work.
    pub(super) async fn forget(&self, keys: &[IdempotencyKey]) {
        let keys: Vec<_> = keys.iter().map(IdempotencyKey::as_str).collect();
        let pool: &PgPool = &self.sweep.pool;
        // Where that is not allowed they expire.
        drop(sqlx::query("DELETE FROM pgonce.keys WHERE key = ANY($1)").bind(keys).execute(pool).await);
    }
}

fn unusable(what: &str, error: impl std::fmt::Display) -> Wrong {
    Wrong::Unusable(format!("{what}: {error}"))
}
