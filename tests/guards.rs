//! What a careless closure can do to its transaction, and that nothing is lost or wrongly reported.

mod support;

use futures_util::FutureExt;
use pgonce::{Error, ErrorKind, Idempotency, Isolation, Mode};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection};
use support::deed::*;
use support::{Database, charge, mode, must_not_run, operation};

async fn hardened(db: &Database) -> Idempotency {
    let pool = PgPoolOptions::new().max_connections(4);
    Idempotency::connect_with(pool, db.options()).await.unwrap().with_mode(mode())
}

/// A violation was reported, in words that help; the key is free, and the next call works.
async fn assert_reported(db: &Database, idempotency: &Idempotency, error: Error, case: &str) {
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{case}: {error}");
    assert!(!error.is_retryable(), "{case}");
    assert!(error.to_string().len() > 100, "{case}: it must say what to do: {error}");
    assert_eq!(db.count("pgonce.keys").await, 0, "{case}: a key was left");
    assert_eq!(db.balance("alice").await, 1000, "{case}: money moved");
    sqlx::raw_sql("TRUNCATE ledger").execute(&db.pool).await.unwrap();
    let retry = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!retry.is_replayed(), "{case}");
    db.assert_charged_once().await;
}

#[tokio::test]
async fn every_deed_is_reported_on_a_plain_pool() {
    for deed in all() {
        let db = Database::new().await;
        let idempotency = db.idempotency();
        let error = idempotency
            .execute(&operation(), async |conn| {
                commit_deed(conn, deed).await?;
                // On an aborted transaction it fails; a careless closure does not look.
                drop(write_on(conn).await);
                Ok::<_, Error>(1)
            })
            .await
            .expect_err(&format!("{deed:?}"));
        assert_reported(&db, &idempotency, error, &format!("{deed:?}")).await;
    }
}

#[tokio::test]
async fn every_deed_is_reported_even_if_the_closure_then_fails() {
    // Where the closure only swallowed an error, or left a savepoint, everything is undone and its error stands.
    let harmless = [SwallowAnError, ForgetNested];
    for deed in all().filter(|deed| !harmless.contains(deed)) {
        let db = Database::new().await;
        let idempotency = db.idempotency();
        let error = idempotency
            .execute(&operation(), async |conn| {
                commit_deed(conn, deed).await?;
                drop(write_on(conn).await);
                // An error of its own, after the deed.
                Err::<i64, _>(Error::from(sqlx::Error::RowNotFound))
            })
            .await
            .unwrap_err();
        assert_reported(&db, &idempotency, error, &format!("{deed:?}")).await;
    }
    for deed in harmless {
        let db = Database::new().await;
        let error = db
            .idempotency()
            .execute(&operation(), async |conn| {
                commit_deed(conn, deed).await?;
                Err::<i64, _>(Error::from(sqlx::Error::RowNotFound))
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database, "{deed:?}: {error}");
        db.assert_untouched().await;
    }
}

#[tokio::test]
async fn on_a_hardened_pool_nothing_is_written_after_an_escape() {
    let db = Database::new().await;
    for deed in all() {
        let idempotency = hardened(&db).await;
        let error = idempotency
            .execute(&operation(), async |conn| {
                commit_deed(conn, deed).await?;
                drop(write_on(conn).await);
                Ok::<_, Error>(1)
            })
            .await
            .expect_err(&format!("{deed:?}"));
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{deed:?}: {error}");
        db.assert_untouched().await;
    }
    // The pool itself is read-only, and the idempotent way through it is not.
    let idempotency = hardened(&db).await;
    let error = sqlx::raw_sql("DELETE FROM ledger").execute(idempotency.pool()).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("25006"));
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let idempotency = idempotency.clone().with_isolation(isolation);
        let outcome = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
        assert_eq!(outcome.is_replayed(), isolation != Isolation::ReadCommitted);
    }
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 0);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn an_escape_is_reported_even_if_the_result_cannot_be_stored() {
    let db = Database::new().await;
    let error = db
        .idempotency()
        .execute(&operation(), async |conn| {
            commit_deed(conn, Rollback).await?;
            write_on(conn).await?;
            Ok::<_, Error>("x".repeat(300 * 1024))
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{error}");
}

#[tokio::test]
async fn a_nested_operation_that_was_dropped_half_way_keeps_the_outer_one_from_committing() {
    let db = Database::new().await;
    let idempotency = support::on(db.forwarded_pool().await);
    let inner = pgonce::Operation::new(support::scope(), support::key("inner"));
    let error = idempotency
        .execute(&operation(), async |conn| {
            // Dropped inside of its closure, after its claim.
            let call = idempotency.execute_in(conn, &inner, async |_| {
                std::future::pending::<()>().await;
                Ok::<_, Error>(())
            });
            let dropped = tokio::time::timeout(std::time::Duration::from_millis(500), call).await;
            assert!(dropped.is_err());
            charge(conn, 42).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{error}");
    assert!(error.to_string().contains("half-way"), "{error}");
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_closure_that_gave_up_on_a_statement_is_not_waited_for() {
    let db = Database::new().await;
    let idempotency = support::on(db.pool_of(1));
    let started = std::time::Instant::now();
    let error = idempotency
        .execute(&operation(), async |conn| {
            charge(conn, 42).await?;
            let slow = conn.execute("SELECT pg_sleep(300)");
            let slow = tokio::time::timeout(std::time::Duration::from_millis(100), slow).await;
            slow.map_err(|_| anyhow::anyhow!("too slow"))?.map_err(anyhow::Error::from).map(drop)
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "too slow");
    // Not a measurement of speed: the statement takes five minutes.
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
    // The slot of the pool is free as well, while the server is still at it.
    sqlx::query("SELECT 1").execute(idempotency.pool()).await.unwrap();
}

#[tokio::test]
async fn the_report_of_a_refused_commit_does_not_promise_too_much() {
    let db = Database::new().await;
    let error = Idempotency::new(db.pool.clone())
        .execute(&operation(), async |conn| {
            let refused = conn.execute("COMMIT").await.unwrap_err();
            write_on(conn).await?;
            Err::<(), Error>(refused.into())
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    assert_eq!(db.count("ledger").await, 1, "on a plain pool it is committed");
    assert!(error.to_string().contains("what the closure wrote after a COMMIT of its own is"), "{error}");
}

#[tokio::test]
async fn a_table_that_hides_its_rows_is_reported_and_not_tried_for_ever() {
    for obstacle in [
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER hidden BEFORE INSERT ON pgonce.keys FOR EACH ROW EXECUTE FUNCTION nothing()",
        "CREATE RULE hidden AS ON INSERT TO pgonce.keys DO INSTEAD NOTHING",
    ] {
        let db = Database::new().await;
        sqlx::raw_sql(obstacle).execute(&db.pool).await.unwrap();
        let idempotency = db.idempotency();
        let operation = operation();
        let call = idempotency.execute(&operation, async |conn| charge(conn, 42).await);
        let call = tokio::time::timeout(std::time::Duration::from_secs(60), call).await;
        let error = call.expect("it tries for ever").unwrap_err();
        let refused = [ErrorKind::AtomicityViolation, ErrorKind::Database].contains(&error.kind());
        assert!(refused, "{error}");
        assert_eq!(db.count("ledger").await, 0);
        let verified = pgonce::verify(&db.pool).await.unwrap_err();
        assert!(verified.to_string().contains("hidden"), "{verified}");
    }
}

#[tokio::test]
async fn a_write_refused_after_an_escape_is_reported_as_the_escape() {
    let db = Database::new().await;
    let error = hardened(&db)
        .await
        .execute(&operation(), async |conn| {
            commit_deed(conn, Rollback).await?;
            write_on(conn).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{error}");
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_commit_by_the_closure_is_named_as_such() {
    let db = Database::new().await;
    let guard = match mode() {
        Mode::Optimistic => "operations_finished_before_commit",
        _ => "keys_finished_before_commit",
    };
    for deed in all().filter(|deed| [Commit, SetConstraintsImmediate].contains(deed)) {
        let error = hardened(&db)
            .await
            .execute(&operation(), async |conn| commit_deed(conn, deed).await)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{deed:?}");
        assert!(error.to_string().contains(guard), "{deed:?}: {error}");
        db.assert_untouched().await;
    }
}

#[tokio::test]
async fn the_closures_own_deferred_constraints_can_be_made_immediate_by_name() {
    let db = Database::new().await;
    sqlx::raw_sql(
        "CREATE TABLE entries (account text CONSTRAINT entries_account REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let outcome = db
        .idempotency()
        .execute(&operation(), async |conn| {
            conn.execute("INSERT INTO entries VALUES ('alice'); SET CONSTRAINTS entries_account IMMEDIATE")
                .await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    assert!(!outcome.is_replayed());

    // And where it is not made immediate, the server says no at COMMIT.
    let other = pgonce::Operation::new(support::scope(), support::key("order-2"));
    let error = db
        .idempotency()
        .execute(&other, async |conn| {
            conn.execute("INSERT INTO entries VALUES ('nobody')").await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.to_string().contains("entries_account"), "{error}");
    assert_eq!(db.count("pgonce.keys").await, 1);
    assert_eq!(db.count("entries").await, 1);
}

#[tokio::test]
async fn a_raw_begin_inside_of_the_transaction_is_harmless() {
    let db = Database::new().await;
    let outcome =
        db.idempotency().execute(&operation(), async |conn| commit_deed(conn, RawBegin).await).await.unwrap();
    assert!(!outcome.is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_committed_pending_row_is_never_run_nor_replayed_nor_taken_over_nor_purged() {
    let db = Database::new().await;
    let idempotency = Idempotency::new(db.pool.clone());
    sqlx::raw_sql("ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit")
        .execute(&db.pool)
        .await
        .unwrap();
    let error =
        idempotency.execute(&operation(), async |conn| commit_deed(conn, Commit).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "reported without the guard too: {error}");
    // Where another statement finishes, too.
    let serializable = idempotency.clone().with_isolation(pgonce::Isolation::Serializable);
    let other = pgonce::Operation::new(support::scope(), support::key("order-2"));
    let error = serializable.execute(&other, async |conn| commit_deed(conn, Commit).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{error}");
    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = 'epoch'").execute(&db.pool).await.unwrap();

    let error = idempotency.execute(&operation(), must_not_run::<()>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    let text = error.to_string();
    assert!(text.contains("pgonce.readable_keys") && text.contains("delete it"), "{text}");
    assert_eq!(idempotency.claim(&operation()).await.unwrap_err().kind(), ErrorKind::AtomicityViolation);
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 0);
    let record = idempotency.find(&support::scope(), &support::key("order-1")).await.unwrap().unwrap();
    assert_eq!(record.state(), pgonce::State::Pending);
    let verified = pgonce::verify(&db.pool).await.unwrap_err();
    assert!(verified.to_string().contains("keys_finished_before_commit is missing"), "{verified}");
}

#[tokio::test]
async fn no_statement_can_commit_a_pending_row() {
    let db = Database::new().await;
    let error = sqlx::raw_sql(
        "INSERT INTO pgonce.keys (scope, key, fingerprint, state, attempt, created_at, expires_at, unfinished)
         VALUES ('s', 'k', decode(repeat('00', 33), 'hex'), 'pending', gen_random_uuid(), now(), now(), 0)",
    )
    .execute(&db.pool)
    .await
    .unwrap_err();
    assert_eq!(error.as_database_error().unwrap().constraint(), Some("keys_finished_before_commit"));
    let error =
        sqlx::raw_sql("INSERT INTO pgonce.unfinished VALUES (0)").execute(&db.pool).await.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().constraint(), Some("unfinished_stays_empty"));
}

#[tokio::test]
async fn an_operation_that_executes_itself_is_refused() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    // On another connection it is simply in flight.
    let nested = idempotency
        .execute(&operation(), async |_| {
            idempotency.execute(&operation(), async |_| Ok::<_, Error>(())).await.map(drop)
        })
        .await;
    match mode() {
        // The inner one is the first to claim.
        Mode::Optimistic => {
            assert!(nested.unwrap().is_replayed());
            sqlx::raw_sql("TRUNCATE pgonce.keys").execute(&db.pool).await.unwrap();
        }
        _ => assert_eq!(nested.unwrap_err().kind(), ErrorKind::InFlight),
    }
    // In the same transaction it would wait for itself.
    let error = idempotency
        .execute(&operation(), async |conn| {
            idempotency.execute_in(conn, &operation(), async |_| Ok::<_, Error>(())).await.map(drop)
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    assert!(error.to_string().contains("executes it again"), "{error}");
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_panic_rolls_back_closes_the_connection_and_frees_the_key() {
    let db = Database::new().await;
    let idempotency = support::on(db.pool_of(1));
    let pid = async |idempotency: &Idempotency| {
        sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(idempotency.pool()).await.unwrap()
    };
    let before = pid(&idempotency).await;
    let operation = operation();
    let call = idempotency.execute(&operation, async |conn| {
        charge(conn, 42).await?;
        if conn.is_in_transaction() {
            panic!("a bug in the closure");
        }
        Ok::<_, Error>(())
    });
    std::panic::AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    // The pool's only slot comes back, with another connection in it.
    assert_ne!(pid(&idempotency).await, before);
    db.wait_until_idle().await;
    db.assert_untouched().await;
    idempotency.execute(&operation, async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}

#[tokio::test]
async fn an_escape_does_not_leave_its_connection_in_the_pool() {
    let db = Database::new().await;
    for deed in all() {
        let idempotency = support::on(db.pool_of(1));
        let failed = idempotency
            .execute(&operation(), async |conn| {
                commit_deed(conn, deed).await?;
                Ok::<_, Error>(1)
            })
            .await;
        failed.unwrap_err();
        // If its state were carried on, this would be a savepoint of an open transaction and never be committed.
        let mut transaction = idempotency.pool().begin().await.unwrap();
        transaction.execute("INSERT INTO ledger (amount) VALUES (1)").await.unwrap();
        transaction.commit().await.unwrap();
        assert_eq!(db.count("ledger").await, 1, "{deed:?}");
        sqlx::raw_sql("TRUNCATE ledger").execute(&db.pool).await.unwrap();
    }
}

#[tokio::test]
async fn statements_that_are_mixed_up_are_named_as_such() {
    let db = Database::new().await;
    let idempotency = support::on(db.pool_of(1));
    idempotency.execute(&operation(), async |conn| support::charge(conn, 42).await).await.unwrap();

    // As behind a pooler: what was prepared is no longer there.
    let other = pgonce::Operation::new(support::scope(), support::key("order-2"));
    let deallocate = async |conn: &mut PgConnection| {
        conn.execute("DEALLOCATE ALL").await?;
        Ok::<_, Error>(())
    };
    let error = idempotency.execute(&other, deallocate).await.unwrap_err();
    assert_eq!(support::sqlstate(&error).as_deref(), Some("26000"));
    assert!(error.to_string().contains("pgonce::verify"), "{error}");
    db.assert_charged_once().await;
}
