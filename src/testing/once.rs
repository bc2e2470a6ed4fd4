//! The entry to the test kit: what is to happen once, and how that is seen.

use std::fmt::{self, Debug};
use std::panic::Location;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::{PgConnection, PgPool, SqlSafeStr, SqlStr};

use super::effect::Effect;
use super::handler::{Boxed, Handler};
use super::report::Report;
use crate::{AsyncClosure, ClosureError, Idempotency, IdempotencyKey, Operation, Scope};

/// Asserts that what this closure does happens exactly once, whatever happens to the call.
///
/// **The promise.** The closure, as it would be given to [`Idempotency::execute`], is executed many times, each time under
/// another key and with another disturbance: the connection is cut, the COMMIT or its answer is lost, the future is dropped,
/// a statement fails, duplicates come at the same time. Each time the same call is then made again, as a client does. The
/// awaited test panics unless [`effect`](Sweep::effect) then happened once, and every call got the same answer.
///
/// The pool leads, over TCP, to a migrated database for this test alone.
///
/// ```no_run
/// # use sqlx::PgConnection;
/// # async fn charge(conn: &mut PgConnection) -> Result<i64, pgonce::Error> { Ok(1) }
/// # async fn test(pool: sqlx::PgPool) {
/// pgonce::testing::once(&pool, async |conn| charge(conn).await)
///     .effect("SELECT count(*) FROM charges")
///     .await;
/// # }
/// ```
#[track_caller]
pub fn once<'a, T, E, F>(pool: &PgPool, closure: F) -> Sweep<'a, T>
where
    F: for<'c> AsyncClosure<&'c mut PgConnection, Result<T, E>, Fut: Send> + Clone + Send + Sync + 'a,
    T: Serialize + DeserializeOwned + PartialEq + Debug + Send + 'a,
    E: ClosureError + 'a,
{
    once_per_key(pool, async move |idempotency: Idempotency, key| {
        let operation = Operation::new(Scope::new("pgonce-testing")?, key);
        Ok::<_, E>(idempotency.execute(&operation, closure).await?.into_inner())
    })
}

/// Like [`once`], for a whole handler: whatever calls `execute` itself.
///
/// **The promise** is the same. The handler is given an [`Idempotency`], whose connections are the ones that are disturbed, and
/// the key of the request, and is to use both. It makes its own [`Operation`], as it does in production, so that its scope
/// and its parameters are tested too. What it returns is what its client sees, the same at every retry: the result, without
/// [`Outcome`](crate::Outcome). An error is an answer that a client would not be content with.
///
/// ```no_run
/// # use pgonce::{Error, Idempotency, IdempotencyKey};
/// # use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
/// # #[derive(Default)] struct Processor { captures: AtomicI64 }
/// # struct Service { idempotency: Idempotency, processor: std::sync::Arc<Processor> }
/// # impl Service { async fn post_charge(&self, key: IdempotencyKey) -> Result<i64, Error> { Ok(1) } }
/// # async fn test(pool: sqlx::PgPool) {
/// # let processor = std::sync::Arc::new(Processor::default());
/// pgonce::testing::once_per_key(&pool, async |idempotency, key| {
///     Service { idempotency, processor: processor.clone() }.post_charge(key).await
/// })
/// .effect("SELECT sum(amount) FROM charges")
/// .effect_of("captures", async || processor.captures.load(SeqCst))
/// .await;
/// # }
/// ```
#[track_caller]
pub fn once_per_key<'a, T, E, F, Fut>(pool: &PgPool, handler: F) -> Sweep<'a, T>
where
    F: FnOnce(Idempotency, IdempotencyKey) -> Fut + Clone + Send + Sync + 'a,
    Fut: Future<Output = Result<T, E>> + Send + 'a,
    T: PartialEq + Debug + Send + 'a,
    E: ClosureError,
{
    Sweep {
        pool: pool.clone(),
        handler: Handler::new(handler),
        effects: Vec::new(),
        before_each: Vec::new(),
        at_most: 40,
        caller: Location::caller(),
    }
}

/// A test by [`once`] or [`once_per_key`]. Awaited, it runs, and panics with what it found.
#[must_use = "nothing is tested until it is awaited"]
pub struct Sweep<'a, T> {
    pub(super) pool: PgPool,
    pub(super) handler: Handler<'a, T>,
    pub(super) effects: Vec<Effect<'a>>,
    pub(super) before_each: Vec<SqlStr>,
    pub(super) at_most: usize,
    pub(super) caller: &'static Location<'static>,
}

impl<'a, T> Sweep<'a, T> {
    /// What is to happen once, as a query that gives one number: how many rows there are, what they sum up to, a balance.
    ///
    /// One undisturbed execution must change the number, and each other one must change it by as much. It may be given
    /// several times; then each must happen once. An integer or a `numeric` with up to six decimals; NULL counts as 0.
    pub fn effect(mut self, query: impl SqlSafeStr) -> Self {
        self.effects.push(Effect::of_query(query.into_sql_str().as_str()));
        self
    }

    /// Like [`effect`](Self::effect), for what happens somewhere else: how often a fake card processor has charged, how many
    /// emails are in the outbox.
    pub fn effect_of<F, Fut>(mut self, name: &str, number: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'a,
        Fut: Future<Output = i64> + Send + 'a,
    {
        self.effects.push(Effect::of_callback(name, number));
        self
    }

    /// Statements that are run before each case, where one execution would stand in the way of the next one: an account that
    /// runs empty, a number that must be unique.
    pub fn before_each(mut self, sql: impl SqlSafeStr) -> Self {
        self.before_each.push(sql.into_sql_str());
        self
    }

    /// At how many places of the call, spread over it, each disturbance is tried. Default: 40, which is all of them for some
    /// fifteen statements. 0 counts as 1.
    pub fn at_most(mut self, places: usize) -> Self {
        self.at_most = places.max(1);
        self
    }
}

impl<'a, T: PartialEq + Debug + Send + 'a> IntoFuture for Sweep<'a, T> {
    type Output = Report;
    type IntoFuture = Boxed<'a, Report>;

    #[allow(clippy::panic, reason = "it is how a test fails")]
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.run().await.unwrap_or_else(|finding| panic!("{finding}")) })
    }
}

impl<T> Debug for Sweep<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweep").field("caller", &self.caller).finish_non_exhaustive()
    }
}
