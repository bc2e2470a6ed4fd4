//! Rows as `execute` leaves them, made by the server, since twenty million calls would take hours.

use std::ops::Range;

use futures_util::{StreamExt, TryStreamExt, stream};
use pgonce::{IdempotencyKey, Operation, Scope};
use sqlx::PgPool;

/// The keys of the clients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keys {
    /// UUIDv4: everywhere in the primary key.
    Random,
    /// UUIDv7: at the end of its scope.
    TimeOrdered,
}

impl Keys {
    pub fn title(self) -> &'static str {
        match self {
            Keys::Random => "UUIDv4",
            Keys::TimeOrdered => "UUIDv7",
        }
    }

    pub fn new_key(self) -> IdempotencyKey {
        match self {
            Keys::Random => IdempotencyKey::new_v4(),
            Keys::TimeOrdered => IdempotencyKey::new_v7(),
        }
    }
}

/// A hundred tenants, in `acct_100/charges` to `acct_199/charges`.
pub const SCOPES: i64 = 100;

/// Of 300 bytes, as JSON.
pub fn result() -> String {
    "x".repeat(298)
}

/// A row for each n, created $6 hours ago and n times $7 microseconds later, and remembered for a day. No parameters.
const FILL: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, state, result, result_format, attempt, transaction_id, created_at,
                         completed_at, expires_at)
SELECT 'acct_' || 100 + n % $5 || '/charges',
       CASE WHEN $3 THEN
           -- The version's 4 (0100) becomes a 7 (0111).
           encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
               PLACING substring(int8send(floor(extract(epoch FROM at) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
               'hex')::uuid::text
       ELSE gen_random_uuid()::text END,
       $4, 'completed', convert_to('\"' || $8 || '\"', 'UTF8'), 'json', gen_random_uuid(), pg_current_xact_id(), at, at,
       at + interval '1 day'
FROM generate_series($1::bigint, $2::bigint) AS n,
     LATERAL (VALUES (now() - $6::bigint * interval '1 hour' + n * $7::bigint * interval '1 microsecond')) AS t (at)";

/// The live keys from one number up to another. Of `most` of them the first is 20 hours old and the last one new.
pub async fn live(pool: &PgPool, keys: Keys, from: i64, to: i64, most: i64) -> anyhow::Result<()> {
    fill(pool, keys, from..to, 20, 20 * 3_600_000_000 / most).await
}

/// So many keys whose retention ended a day ago.
pub async fn expired(pool: &PgPool, keys: Keys, count: i64) -> anyhow::Result<()> {
    fill(pool, keys, 0..count, 48, 1000).await
}

async fn fill(pool: &PgPool, keys: Keys, numbers: Range<i64>, hours: i64, step: i64) -> anyhow::Result<()> {
    const CHUNK: i64 = 200_000;
    let nothing = Operation::new(Scope::new("fill")?, IdempotencyKey::new_v4());
    let chunks = numbers.clone().step_by(CHUNK as usize).map(|first| {
        sqlx::query(FILL)
            .bind(first)
            .bind((first + CHUNK).min(numbers.end) - 1)
            .bind(keys == Keys::TimeOrdered)
            .bind(nothing.fingerprint().as_bytes().as_slice())
            .bind(SCOPES)
            .bind(hours)
            .bind(step)
            .bind(result())
            .execute(pool)
    });
    stream::iter(chunks).buffer_unordered(2).try_for_each(async |_| Ok(())).await?;
    Ok(())
}
