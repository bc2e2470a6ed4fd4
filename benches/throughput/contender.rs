//! The contenders: the ways to make a payment once, or without any care.

mod by_hand;
#[cfg_attr(not(feature = "durare"), path = "contender/no_durare.rs")]
mod durare;
#[cfg(feature = "axum")]
mod layer;
mod ours;
pub mod redis;

use std::time::Duration;

use pgonce::{Idempotency, InFlight, Isolation, Mode};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::business::{Business, Payment, Receipt};

/// A way to make payments. Another one takes a line here, in [`ALL`](Self::ALL) and in [`title`](Self::title), and an arm
/// in [`Bed::call`]; another setting of pgonce's, an arm in [`settings`](Self::settings) as well. `latency`, `statements` and
/// the pictures show some of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// A transaction, and no key: the limit.
    Unkeyed,
    /// The same, with one INSERT of the finished row at its end. It keeps no promise, and it is what a key costs at least.
    Floor,
    /// The INSERT first and the UPDATE last that people write by hand.
    ByHand,
    /// A lock and the response in Redis, beside the database.
    Redis,
    /// Its transactional step, in `benches/rivals`.
    Durare,
    Execute,
    /// `execute` in optimistic mode.
    Optimistic,
    /// `execute` that looks before it begins.
    LookFirst,
    Recording,
    Serializable,
    /// `execute` on a hardened pool.
    Hardened,
    ExecuteIn,
    /// `claim` and `complete`.
    Claim,
    Process,
    /// `process_batch` with so many messages, each with the statements of its own.
    Batch(usize),
    /// `IdempotencyLayer` and a handler, called as a tower service, without HTTP.
    Layer,
    /// A row that is read by its key in a transaction of its own: what a replay costs at least.
    Select,
}

use Contender::*;

impl Contender {
    pub const ALL: [Self; 17] = [
        Unkeyed,
        Floor,
        ByHand,
        Redis,
        Durare,
        Execute,
        Optimistic,
        LookFirst,
        Recording,
        Serializable,
        Hardened,
        ExecuteIn,
        Claim,
        Process,
        Batch(100),
        Layer,
        Select,
    ];

    pub fn title(self) -> String {
        match self {
            Unkeyed => "no key".into(),
            Floor => "one plain INSERT at the end (the floor)".into(),
            ByHand => "by hand: INSERT first, UPDATE last".into(),
            Redis => "Redis: lock, response".into(),
            Durare => "durare: a transactional step".into(),
            Execute => "`execute`".into(),
            Optimistic => "`execute`, optimistic".into(),
            LookFirst => "`execute`, looks first".into(),
            Recording => "`execute_recording`".into(),
            Serializable => "`execute`, serializable".into(),
            Hardened => "`execute`, hardened pool".into(),
            ExecuteIn => "`execute_in`".into(),
            Claim => "`claim`, `complete`".into(),
            Process => "`Inbox::process`".into(),
            Batch(size) => format!("`Inbox::process_batch` of {size}"),
            Layer => "`IdempotencyLayer`, without HTTP".into(),
            Select => "a SELECT by the key, in a transaction".into(),
        }
    }

    /// By which it is chosen on the command line.
    pub fn name(self) -> String {
        format!("{self:?}").split('(').next().unwrap_or_default().to_lowercase()
    }

    /// What sets its `Idempotency` apart from others.
    fn settings(self, idempotency: Idempotency) -> Idempotency {
        match self {
            Optimistic => idempotency.with_mode(Mode::Optimistic),
            LookFirst => idempotency.with_mode(Mode::LookFirst),
            // Neighbours in an index conflict, and are repeated.
            Serializable => idempotency.with_isolation(Isolation::Serializable).with_max_attempts(50),
            _ => idempotency,
        }
    }

    /// Whether it remembers keys.
    pub fn has_keys(self) -> bool {
        self != Unkeyed
    }

    /// Whether a duplicate gets what the first one got, and is told so.
    pub fn replays(self) -> bool {
        !matches!(self, Unkeyed | Floor | Durare)
    }

    /// Whether it can make payments.
    pub fn pays(self) -> bool {
        self != Select
    }

    /// Whether it is pgonce.
    pub fn is_ours(self) -> bool {
        !matches!(self, Unkeyed | Floor | ByHand | Redis | Durare | Select)
    }

    /// Whether a duplicate waits for the first one. (`execute_in` does not: its caller's transaction would wait with it.)
    pub fn waits(self) -> bool {
        !matches!(self, Unkeyed | Floor | Durare | Select | ExecuteIn | Batch(_))
    }

    /// Who makes the keys that it replays.
    pub fn key_maker(self) -> Self {
        if self == Select { ByHand } else { self }
    }

    /// Payments in one call.
    pub fn batch(self) -> usize {
        if let Batch(size) = self { size } else { 1 }
    }

    fn is_available(self, redis: bool) -> bool {
        match self {
            Redis => redis,
            Durare => cfg!(feature = "durare"),
            Layer => cfg!(feature = "axum"),
            _ => true,
        }
    }
}

/// Who takes part.
#[derive(Clone)]
pub struct Field {
    contenders: Vec<Contender>,
}

impl Field {
    /// Those of which there is all that they need, or of these those that are named.
    pub fn of(names: &[String], redis: bool) -> Self {
        let named = |one: &Contender| names.is_empty() || names.contains(&one.name());
        let all = Contender::ALL.into_iter().filter(|one| one.is_available(redis) && named(one));
        Self { contenders: all.collect() }
    }

    pub fn filter(&self, wanted: impl Fn(Contender) -> bool) -> Vec<Contender> {
        self.contenders.iter().copied().filter(|one| wanted(*one)).collect()
    }

    /// Of these, those that take part.
    pub fn among(&self, wanted: &[Contender]) -> Vec<Contender> {
        self.filter(|one| wanted.contains(&one))
    }
}

/// What a call came to. Of a duplicate, `receipt` is that of the first call; an inbox has none.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub executed: usize,
    pub replayed: usize,
    pub receipt: Option<Receipt>,
}

impl Answer {
    fn executed(receipt: Receipt) -> Self {
        Self { executed: 1, replayed: 0, receipt: Some(receipt) }
    }

    fn replayed(receipt: Option<Receipt>) -> Self {
        Self { executed: 0, replayed: 1, receipt }
    }
}

/// What a contender calls with: its connections, and what there is to do.
pub struct Bed {
    pub contender: Contender,
    pub pool: PgPool,
    business: Business,
    idempotency: Idempotency,
    /// Keys of one contender are none of another's.
    scope: String,
    redis: Option<redis::Recipe>,
    durare: Option<durare::Durare>,
    #[cfg(feature = "axum")]
    router: axum::Router,
}

impl Bed {
    /// With so many connections, all of them open already.
    pub async fn make(
        contender: Contender,
        options: &PgConnectOptions,
        connections: u32,
        redis: Option<redis::Recipe>,
        business: Business,
    ) -> anyhow::Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .min_connections(connections)
            .acquire_timeout(Duration::from_secs(60));
        let idempotency = match contender {
            Hardened => Idempotency::connect_with(pool, options.clone()).await?,
            _ => Idempotency::new(pool.connect_with(options.clone()).await?),
        };
        let idempotency =
            contender.settings(idempotency.with_in_flight(InFlight::Wait(Duration::from_secs(60))));
        let scope = format!("acct_42/{}", contender.key_maker().name());
        Ok(Self {
            contender,
            pool: idempotency.pool().clone(),
            business,
            #[cfg(feature = "axum")]
            router: layer::router(&idempotency, &scope, business)?,
            idempotency,
            scope,
            redis,
            durare: match contender {
                Durare => Some(durare::Durare::at(options, connections).await?),
                _ => None,
            },
        })
    }

    pub async fn close(&self) {
        self.pool.close().await;
        if let Some(durare) = &self.durare {
            durare.close().await;
        }
    }

    /// Makes these payments, or finds out that they were made: one, or a batch.
    pub async fn call(&self, payments: &[Payment]) -> anyhow::Result<Answer> {
        let payment = &payments[0];
        match self.contender {
            Unkeyed => by_hand::unkeyed(self, payment).await,
            Floor => by_hand::floor(self, payment).await,
            ByHand => by_hand::claim_first(self, payment).await,
            Select => by_hand::select(self, payment).await,
            Redis => redis::call(self, payment).await,
            Durare => durare::call(self, payment).await,
            Execute | Optimistic | LookFirst | Serializable | Hardened => ours::execute(self, payment).await,
            Recording => ours::execute_recording(self, payment).await,
            ExecuteIn => ours::execute_in(self, payment).await,
            Claim => ours::claim(self, payment).await,
            Process => ours::process(self, payment).await,
            Batch(_) => ours::process_batch(self, payments).await,
            #[cfg(feature = "axum")]
            Layer => layer::call(self, payment).await,
            #[cfg(not(feature = "axum"))]
            Layer => anyhow::bail!("without the feature axum there is no layer"),
        }
    }
}

/// Makes the contenders' own tables empty.
pub async fn forget_all(pool: &PgPool) -> anyhow::Result<()> {
    durare::forget_all(pool).await
}

/// Keys that are remembered in the database, with what came of them.
pub async fn count_keys(pool: &PgPool) -> anyhow::Result<i64> {
    Ok(by_hand::count_keys(pool).await? + durare::count_keys(pool).await?)
}
