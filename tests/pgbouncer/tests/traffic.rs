//! Many clients of a PgBouncer with few connections to the server, on hot and cold keys, with all of pgonce's calls at
//! once: everybody gets what belongs to their own key, and every key was executed once.

#[path = "../../support/mod.rs"]
mod support;

use std::time::Duration;

use pgbouncer_tests::{PgBouncer, Program};
use pgonce::{Claim, Error, ErrorKind, Idempotency, InFlight, Isolation, Operation, State};
use sqlx::PgConnection;
use support::{Database, key, scope};
use tokio::task::JoinSet;

const CLIENTS: u32 = 24;
const CALLS: u32 = 30;
const HOT_KEYS: u32 = 8;

#[tokio::test]
async fn in_transaction_mode_with_few_connections() {
    everybody_gets_what_is_theirs(Program::New, &[("default_pool_size", "3")]).await;
    // Fewer statements than are in use, which PgBouncer has to prepare again and again.
    let settings = [("default_pool_size", "3"), ("max_prepared_statements", "3")];
    everybody_gets_what_is_theirs(Program::New, &settings).await;
}

#[tokio::test]
async fn in_session_mode_without_support_for_prepared_statements() {
    let settings = [("default_pool_size", "50"), ("pool_mode", "session")];
    everybody_gets_what_is_theirs(Program::Old, &settings).await;
}

async fn everybody_gets_what_is_theirs(program: Program, settings: &[(&str, &str)]) {
    let db = Database::new().await;
    sqlx::raw_sql("CREATE TABLE effects (key text NOT NULL, id bigint GENERATED ALWAYS AS IDENTITY)")
        .execute(&db.pool)
        .await
        .unwrap();
    let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
    // As from three processes, each with some connections.
    let pools = [pgbouncer.pool(8), pgbouncer.pool(8), pgbouncer.pool(8)];
    pgonce::verify(&pools[0]).await.unwrap();

    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let pool = pools[client as usize % pools.len()].clone();
        clients.spawn(async move {
            let idempotency = Idempotency::new(pool).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
            for call in 0..CALLS {
                let name = match call % 3 {
                    0 => format!("cold-{client}-{call}"),
                    _ => format!("hot-{}", (client + call) % HOT_KEYS),
                };
                // Which call a key is used with follows from its name, and so do the parameters.
                let kind = name.bytes().map(u32::from).sum::<u32>() % 6;
                one_call(&idempotency, kind, &name).await;
                around_it(&idempotency, call, &name).await;
            }
        });
    }
    clients.join_all().await;

    let keys: Vec<(String, String, String)> =
        sqlx::query_as("SELECT key, state, convert_from(result, 'UTF8') FROM pgonce.keys")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(keys.len(), (HOT_KEYS + CLIENTS * CALLS.div_ceil(3)) as usize);
    for (key, state, result) in keys {
        let effects: Vec<i64> = sqlx::query_scalar("SELECT id FROM effects WHERE key = $1")
            .bind(&key)
            .fetch_all(&db.pool)
            .await
            .unwrap();
        match state.as_str() {
            "failed" => assert_eq!((effects, result), (vec![], format!("\"{key} is declined\""))),
            _ => {
                assert_eq!(effects.len(), 1, "{key} was executed more than once");
                assert_eq!(result, format!("[\"{key}\",{}]", effects[0]));
            }
        }
    }
}

/// What a closure does: some statements, whose texts many clients share, and whose values are the key's own.
async fn work(conn: &mut PgConnection, name: &str) -> Result<(String, i64), Error> {
    let echo: String = sqlx::query_scalar("SELECT $1::text").bind(name).fetch_one(&mut *conn).await?;
    assert_eq!(echo, name, "another client's value");
    let (stored, id): (String, i64) =
        sqlx::query_as("INSERT INTO effects (key) VALUES ($1) RETURNING key, id")
            .bind(name)
            .fetch_one(&mut *conn)
            .await?;
    let again: String =
        sqlx::query_scalar("SELECT key FROM effects WHERE id = $1").bind(id).fetch_one(conn).await?;
    assert_eq!((stored.as_str(), again.as_str()), (name, name), "another client's value");
    Ok((again, id))
}

fn operation(name: &str) -> Operation {
    Operation::new(scope(), key(name)).with_params(&name).unwrap()
}

/// Executes or replays, in one of the ways there are.
async fn one_call(idempotency: &Idempotency, kind: u32, name: &str) {
    let operation = operation(name);
    let (found, id) = match kind {
        0 => idempotency.execute(&operation, async |conn| work(conn, name).await).await.unwrap().into_inner(),
        1 => {
            let idempotency =
                idempotency.clone().with_isolation(Isolation::Serializable).with_max_attempts(100);
            idempotency.execute(&operation, async |conn| work(conn, name).await).await.unwrap().into_inner()
        }
        2 => match idempotency.claim(&operation).await.unwrap() {
            Claim::Replayed(record) => record.result().unwrap(),
            Claim::Claimed(mut claimed) => {
                let result = work(&mut claimed, name).await.unwrap();
                claimed.complete(&result).await.unwrap();
                result
            }
        },
        3 => {
            let mut transaction = idempotency.pool().begin().await.unwrap();
            let call =
                idempotency.execute_in(&mut transaction, &operation, async |conn| work(conn, name).await);
            match call.await {
                Ok(outcome) => {
                    transaction.commit().await.unwrap();
                    outcome.into_inner()
                }
                // It cannot wait inside of somebody's transaction.
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::InFlight, "{error}");
                    transaction.rollback().await.unwrap();
                    idempotency
                        .execute(&operation, async |conn| work(conn, name).await)
                        .await
                        .unwrap()
                        .into_inner()
                }
            }
        }
        4 => {
            let failing = idempotency.execute(&operation, async |conn| {
                work(conn, name).await?;
                Err::<(String, i64), _>(anyhow::anyhow!("released"))
            });
            match failing.await {
                Ok(outcome) => assert!(outcome.is_replayed()),
                Err(error) => assert_eq!(error.to_string(), "released"),
            }
            idempotency.execute(&operation, async |conn| work(conn, name).await).await.unwrap().into_inner()
        }
        _ => {
            let outcome = idempotency.execute_recording(&operation, async |conn| {
                work(conn, name).await?;
                Ok::<Result<(), String>, Error>(Err(format!("{name} is declined")))
            });
            let declined = outcome.await.unwrap().into_inner().unwrap_err();
            assert_eq!(declined, format!("{name} is declined"));
            return;
        }
    };
    assert_eq!(found, name, "another key's result: {id}");
}

/// Calls that change nothing for the key.
async fn around_it(idempotency: &Idempotency, call: u32, name: &str) {
    let record = idempotency.find(&scope(), &key(name)).await.unwrap().expect("it was executed");
    assert_eq!(record.key().as_str(), name);
    let result = String::from_utf8(record.result_bytes().unwrap().to_vec()).unwrap();
    match record.state() {
        State::Failed => assert_eq!(result, format!("\"{name} is declined\"")),
        _ => assert!(result.starts_with(&format!("[\"{name}\",")), "{name}: {result}"),
    }
    if call.is_multiple_of(5) {
        let other = Operation::new(scope(), key(name)).with_params(&"other parameters").unwrap();
        let error = idempotency.execute(&other, async |conn| work(conn, "never").await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FingerprintMismatch, "{error}");
        assert_eq!(idempotency.purge_expired(10).await.unwrap(), 0);
    }
}
