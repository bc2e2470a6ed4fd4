//! Serialization failures and deadlocks: repeated with a fresh copy of the closure, within bounds.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pgonce::{ClosureError, Error, ErrorKind, Isolation, Operation};
use sqlx::{Executor, PgConnection};
use support::{Database, charge, key, operation, scope};
use tokio::sync::Barrier;

/// An error of the server's with this SQLSTATE.
async fn raise(conn: &mut PgConnection, code: &str) -> Result<(), sqlx::Error> {
    let block = format!("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '{code}'; END $$");
    conn.execute(sqlx::AssertSqlSafe(block)).await.map(drop)
}

#[derive(Debug, thiserror::Error)]
enum ChargeError {
    /// Hides the `sqlx::Error` itself from the chain of sources.
    #[error(transparent)]
    Transparent(sqlx::Error),
    #[error("the database failed")]
    Source(#[from] sqlx::Error),
    #[error(transparent)]
    Idempotency(#[from] Error),
}

#[rustfmt::skip]
impl ClosureError for ChargeError { fn as_error(&self) -> &(dyn std::error::Error + 'static) { self } }

#[tokio::test]
async fn a_conflict_in_the_closure_is_repeated_whatever_the_error_type() {
    let db = Database::new().await;
    for code in ["40001", "40P01"] {
        for shape in ["pgonce", "anyhow", "anyhow context", "source", "transparent"] {
            let operation = Operation::new(scope(), key(&format!("{code}/{shape}").replace(' ', "-")));
            let ledger = db.count("ledger").await;
            let runs = &AtomicU32::new(0);
            let idempotency = db.idempotency();
            // Fails twice, after its charge, and succeeds in the third attempt.
            let attempt = async |conn: &mut PgConnection| {
                let id = charge(conn, 1).await.expect("charge");
                if runs.fetch_add(1, Ordering::SeqCst) < 2 {
                    raise(conn, code).await.map(|()| id)
                } else {
                    Ok(id)
                }
            };
            let attempt = &attempt;
            let replayed = match shape {
                "pgonce" => {
                    let call = idempotency
                        .execute(&operation, async |conn| attempt(conn).await.map_err(Error::from));
                    call.await.map_err(anyhow::Error::from)
                }
                "anyhow" => {
                    idempotency
                        .execute(&operation, async |conn| attempt(conn).await.map_err(anyhow::Error::from))
                        .await
                }
                "anyhow context" => {
                    let call = idempotency.execute(&operation, async |conn| {
                        attempt(conn)
                            .await
                            .map_err(|error| anyhow::Error::from(error).context("while charging"))
                    });
                    call.await
                }
                "source" => {
                    let call = idempotency
                        .execute(&operation, async |conn| attempt(conn).await.map_err(ChargeError::from));
                    call.await.map_err(anyhow::Error::from)
                }
                _ => {
                    let call = idempotency.execute(&operation, async |conn| {
                        attempt(conn).await.map_err(ChargeError::Transparent)
                    });
                    call.await.map_err(anyhow::Error::from)
                }
            };
            assert!(!replayed.unwrap_or_else(|error| panic!("{code} {shape}: {error:?}")).is_replayed());
            assert_eq!(runs.load(Ordering::SeqCst), 3, "{code} {shape}");
            assert_eq!(db.count("ledger").await, ledger + 1, "{code} {shape}: one execution remains");
        }
    }
}

#[tokio::test]
async fn the_attempts_are_bounded_and_each_gets_a_fresh_copy() {
    let db = Database::new().await;
    for (limit, expected) in [(0, 1), (1, 1), (3, 3)] {
        let runs = Arc::new(AtomicU32::new(0));
        let mut used_up = 0;
        let counter = runs.clone();
        let error = db
            .idempotency()
            .with_max_attempts(limit)
            .execute(&operation(), async move |conn: &mut PgConnection| {
                counter.fetch_add(1, Ordering::SeqCst);
                // State that the closure changes starts anew in each copy.
                used_up += 1;
                assert_eq!(used_up, 1);
                raise(conn, "40001").await?;
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database);
        assert!(error.is_retryable() && error.is_conflict(), "{error}");
        assert_eq!(runs.load(Ordering::SeqCst), expected, "max_attempts {limit}");
    }
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_conflict_is_not_repeated_while_a_statement_of_the_closure_may_still_run() {
    let db = Database::new().await;
    let runs = &AtomicU32::new(0);
    let error = db
        .idempotency()
        .execute(&operation(), async |conn| {
            runs.fetch_add(1, Ordering::SeqCst);
            // The conflict comes from elsewhere; on its own connection the closure gives up on a statement.
            let conflict = raise(&mut *db.pool.acquire().await?, "40001").await.unwrap_err();
            let slow = conn.execute("SELECT pg_sleep(300)");
            tokio::time::timeout(std::time::Duration::from_millis(100), slow).await.unwrap_err();
            Err::<(), Error>(conflict.into())
        })
        .await
        .unwrap_err();
    assert!(error.is_conflict(), "{error}");
    assert_eq!(runs.load(Ordering::SeqCst), 1, "it is not proven that nothing is left of it");
}

#[tokio::test]
async fn execute_once_returns_the_conflict() {
    let db = Database::new().await;
    let mut runs = 0;
    let error = db
        .idempotency()
        .execute_once(&operation(), async |conn| {
            runs += 1;
            charge(conn, 42).await?;
            raise(conn, "40P01").await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(runs, 1);
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_real_deadlock_ends_with_both_executed() {
    let db = Database::new().await;
    sqlx::raw_sql("UPDATE accounts SET balance = 1000").execute(&db.pool).await.unwrap();
    let both_hold_one = Arc::new(Barrier::new(2));
    let runs = Arc::new(AtomicU32::new(0));
    let transfer = |from: &'static str, to: &'static str| {
        let (idempotency, both_hold_one, runs) = (db.idempotency(), both_hold_one.clone(), runs.clone());
        tokio::spawn(async move {
            let operation = Operation::new(scope(), key(&format!("{from}-{to}")));
            idempotency
                .execute(&operation, async |conn| {
                    let change = "UPDATE accounts SET balance = balance + $2 WHERE id = $1";
                    sqlx::query(change).bind(from).bind(-1_i64).execute(&mut *conn).await?;
                    if runs.fetch_add(1, Ordering::SeqCst) < 2 {
                        both_hold_one.wait().await;
                    }
                    sqlx::query(change).bind(to).bind(1_i64).execute(conn).await?;
                    Ok::<_, Error>(())
                })
                .await
        })
    };
    let (one, other) = (transfer("alice", "bob"), transfer("bob", "alice"));
    assert!(!one.await.unwrap().unwrap().is_replayed());
    assert!(!other.await.unwrap().unwrap().is_replayed());
    assert_eq!(runs.load(Ordering::SeqCst), 3, "one was the victim, and ran again");
    assert_eq!((db.balance("alice").await, db.balance("bob").await), (1000, 1000));
}

#[tokio::test]
async fn real_serialization_failures_lose_no_update() {
    let db = Database::new().await;
    for isolation in [Isolation::RepeatableRead, Isolation::Serializable] {
        sqlx::raw_sql("UPDATE accounts SET balance = 0").execute(&db.pool).await.unwrap();
        let idempotency = db.idempotency().with_isolation(isolation).with_max_attempts(100);
        let calls = (0..10).map(|n| {
            let idempotency = idempotency.clone();
            tokio::spawn(async move {
                let operation = Operation::new(scope(), key(&format!("{isolation:?}/{n}")));
                idempotency
                    .execute(&operation, async |conn| {
                        // Read, then write: without the level an update would be lost.
                        let balance: i64 =
                            sqlx::query_scalar("SELECT balance FROM accounts WHERE id = 'bob'")
                                .fetch_one(&mut *conn)
                                .await?;
                        sqlx::query("UPDATE accounts SET balance = $1 WHERE id = 'bob'")
                            .bind(balance + 1)
                            .execute(conn)
                            .await?;
                        Ok::<_, Error>(())
                    })
                    .await
            })
        });
        for call in calls.collect::<Vec<_>>() {
            assert!(!call.await.unwrap().unwrap().is_replayed());
        }
        assert_eq!(db.balance("bob").await, 10, "{isolation:?}");
    }
}

#[tokio::test]
async fn a_conflict_at_the_commit_is_repeated() {
    let db = Database::new().await;
    // Fires at COMMIT, and only there; a sequence remembers across the rollback that it has fired.
    sqlx::raw_sql(
        "CREATE SEQUENCE fired;
         CREATE FUNCTION conflict_once() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('fired') < 3 THEN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION conflict_once()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let finished = &AtomicU32::new(0);
    let outcome = db
        .idempotency()
        .execute(&operation(), async |conn| {
            let id = charge(conn, 42).await?;
            finished.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Error>(id)
        })
        .await
        .unwrap();
    assert!(!outcome.is_replayed());
    assert_eq!(finished.load(Ordering::SeqCst), 3, "the closure itself met no conflict");
    db.assert_charged_once().await;
}

#[tokio::test]
async fn write_skew_is_impossible_under_serializable() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_isolation(Isolation::Serializable).with_max_attempts(20);
    let both_have_read = Arc::new(Barrier::new(2));
    let runs = Arc::new(AtomicU32::new(0));
    let calls = ["a", "b"].map(|name| {
        let (idempotency, both_have_read, runs) = (idempotency.clone(), both_have_read.clone(), runs.clone());
        tokio::spawn(async move {
            idempotency
                .execute(&Operation::new(scope(), key(name)), async |conn| {
                    let rows: i64 =
                        sqlx::query_scalar("SELECT count(*) FROM ledger").fetch_one(&mut *conn).await?;
                    if runs.fetch_add(1, Ordering::SeqCst) < 2 {
                        both_have_read.wait().await;
                    }
                    sqlx::query("INSERT INTO ledger (amount) VALUES ($1)").bind(rows).execute(conn).await?;
                    Ok::<_, Error>(rows)
                })
                .await
        })
    });
    let mut seen = Vec::new();
    for call in calls {
        seen.push(call.await.unwrap().unwrap().into_inner());
    }
    seen.sort();
    assert_eq!(seen, [0, 1], "as if one had run after the other");
}

#[tokio::test]
async fn unrelated_keys_do_not_conflict_under_serializable() {
    let db = Database::new().await;
    let idempotency = support::on(db.pool_of(16)).with_isolation(Isolation::Serializable);
    // A small table with statistics, of which the planner knows that reading all of it is the cheapest way.
    for n in 0..5 {
        let operation = Operation::new(scope(), key(&format!("old-{n}")));
        idempotency.execute(&operation, async |_| Ok::<_, Error>(())).await.unwrap();
    }
    for statement in ["VACUUM ANALYZE pgonce.keys"] {
        sqlx::raw_sql(statement).execute(&db.pool).await.unwrap();
    }
    let runs = Arc::new(AtomicU32::new(0));
    let all_inside = Arc::new(Barrier::new(16));
    let calls: Vec<_> = (0..16)
        .map(|n| {
            let (idempotency, runs, all_inside) = (idempotency.clone(), runs.clone(), all_inside.clone());
            tokio::spawn(async move {
                idempotency
                    .execute(&Operation::new(scope(), key(&format!("new-{n}"))), async |_| {
                        if runs.fetch_add(1, Ordering::SeqCst) < 16 {
                            all_inside.wait().await;
                        }
                        Ok::<_, Error>(())
                    })
                    .await
            })
        })
        .collect();
    for call in calls {
        assert!(!call.await.unwrap().unwrap().is_replayed());
    }
    assert_eq!(runs.load(Ordering::SeqCst), 16, "none had to be repeated");
}

#[tokio::test]
async fn the_isolation_level_is_the_one_that_was_asked_for() {
    let db = Database::new().await;
    // Even where the server's default is another one.
    let name = db.name();
    let set = format!("ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&db.pool).await.unwrap();
    for (isolation, expected) in [
        (Isolation::ReadCommitted, "read committed"),
        (Isolation::RepeatableRead, "repeatable read"),
        (Isolation::Serializable, "serializable"),
    ] {
        let idempotency = support::on(db.pool_of(1)).with_isolation(isolation);
        let level = idempotency
            .execute(&Operation::new(scope(), key(&format!("{isolation:?}"))), async |conn| {
                Ok::<_, Error>(
                    sqlx::query_scalar::<_, String>("SHOW transaction_isolation").fetch_one(conn).await?,
                )
            })
            .await
            .unwrap();
        assert_eq!(level.into_inner(), expected);
    }
}
