//! `docs/partitioned.sql`: all that the schema promises, in 16 partitions.

use std::time::Duration;

use pgonce::{
    Delivery, Error, ErrorKind, Idempotency, Isolation, Message, Mode, Operation, Outcome, Scope, State,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::task::JoinSet;

use crate::document;
use crate::fifth::Fifth;
use crate::migrating::step_back_to;
use crate::support::deed::{ALL, commit_deed, write_on};
use crate::support::{Database, charge, key, operation, scope};
use crate::upgrade::{consumer, message};

async fn partition(pool: &PgPool) {
    let script = document::read("partitioned.sql");
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {script} COMMIT"))).execute(pool).await.unwrap();
}

async fn must_not_run(_: &mut PgConnection) -> Result<i64, Error> {
    panic!("must not run")
}

fn order(n: usize) -> Operation {
    Operation::new(scope(), key(&format!("order-{n}")))
}

/// What a table is to its rows, one line each.
const SHAPE: &str = "
SELECT regexp_replace(regexp_replace(line, ' NOT VALID', ''), '\\s+', ' ', 'g') FROM (
    SELECT format('column %s %s %s %s', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attcollation) AS line
    FROM pg_attribute a WHERE a.attrelid = 'pgonce.keys'::regclass AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT format('constraint %s %s %s %s', conname, pg_get_constraintdef(oid), condeferrable, condeferred)
    FROM pg_constraint WHERE conrelid = 'pgonce.keys'::regclass AND contype <> 'n'
    UNION ALL
    SELECT replace(indexdef, ' ON ONLY ', ' ON ') FROM pg_indexes WHERE schemaname = 'pgonce' AND tablename = 'keys'
    UNION ALL
    SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'pgonce.keys'::regclass AND NOT tgisinternal
    UNION ALL
    SELECT pg_get_viewdef('pgonce.readable_keys'::regclass)
    UNION ALL
    SELECT format('comment %s %s', objsubid, description) FROM pg_description WHERE objoid = 'pgonce.keys'::regclass
    UNION ALL
    SELECT format('grant %s', acl) FROM pg_class, unnest(relacl) AS acl WHERE oid = 'pgonce.keys'::regclass
) AS lines ORDER BY line COLLATE \"C\"";

#[tokio::test]
async fn what_was_there_is_there_and_the_table_is_the_same_to_its_rows() {
    let db = Database::new().await;
    let warm = Idempotency::new(db.pool_of(1));
    let inbox = warm.inbox(Scope::new("consumer").unwrap());
    let first = warm.execute(&order(1), async |conn| charge(conn, 1).await).await.unwrap().into_inner();
    let declined = async |_: &mut PgConnection| Ok::<Result<i64, String>, Error>(Err("declined".to_owned()));
    warm.execute_recording(&order(2), declined).await.unwrap().into_inner().unwrap_err();
    inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
    sqlx::raw_sql("GRANT SELECT ON pgonce.keys TO PUBLIC").execute(&db.pool).await.unwrap();
    let shape = async || sqlx::query_scalar::<_, String>(SHAPE).fetch_all(&db.pool).await.unwrap();
    let rows = "SELECT r::text FROM pgonce.keys r ORDER BY key";
    let rows = async || sqlx::query_scalar::<_, String>(rows).fetch_all(&db.pool).await.unwrap();
    let before = (shape().await, rows().await);

    partition(&db.pool).await;

    assert_eq!((shape().await, rows().await), before);
    pgonce::verify(&db.pool).await.unwrap();
    // Also to a connection that knows the statements of before.
    assert_eq!(warm.execute(&order(1), must_not_run).await.unwrap(), Outcome::Replayed(first));
    let recorded =
        async |_: &mut PgConnection| -> Result<Result<i64, String>, Error> { panic!("must not run") };
    let again = warm.execute_recording(&order(2), recorded).await.unwrap();
    assert_eq!(again, Outcome::Replayed(Err("declined".to_owned())));
    let again = inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
    assert_eq!(again, Delivery::Duplicate);
    assert_eq!(db.count("pgonce.readable_keys WHERE result = '\"declined\"' AND state = 'failed'").await, 1);
    assert_eq!(warm.find(&scope(), order(1).key()).await.unwrap().unwrap().state(), State::Completed);
    // Migrating once more finds nothing to do.
    pgonce::migrate(&db.pool).await.unwrap();
}

#[tokio::test]
async fn every_guard_holds_in_every_partition() {
    let db = Database::new().await;
    partition(&db.pool).await;
    let idempotency =
        Idempotency::connect_with(PgPoolOptions::new().max_connections(2), db.options()).await.unwrap();
    let operation = operation();
    for deed in ALL {
        let call = idempotency.execute(&operation, async |conn| {
            commit_deed(conn, deed).await?;
            drop(write_on(conn).await);
            Ok::<_, Error>(1)
        });
        let error = call.await.expect_err(&format!("{deed:?}"));
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation, "{deed:?}: {error}");
        db.assert_untouched().await;
    }
    let columns = "scope, key, fingerprint, attempt, created_at, expires_at, completed_at, state, unfinished, result, result_format";
    let fingerprint = "decode(repeat('00', 33), 'hex')";
    for n in 0..64 {
        let insert = format!(
            "INSERT INTO pgonce.keys ({columns})
             VALUES ('s', 'k{n}', {fingerprint}, gen_random_uuid(), now(), now(), NULL, 'pending', 0, NULL, NULL)"
        );
        let error = sqlx::raw_sql(AssertSqlSafe(insert)).execute(&db.pool).await.unwrap_err();
        let constraint = error.as_database_error().unwrap().constraint();
        assert_eq!(constraint, Some("keys_finished_before_commit"), "{error}");
    }
    db.assert_untouched().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_every_kind_work_and_keys_are_unique_across_the_partitions() {
    let db = Database::new().await;
    partition(&db.pool).await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let idempotency = Idempotency::new(db.pool_of(8)).with_isolation(isolation).with_max_attempts(50);
        let name = |name: &str| Operation::new(scope(), key(&format!("{isolation:?}/{name}")));
        let pay = async |conn: &mut PgConnection| {
            let insert = "INSERT INTO ledger (amount) VALUES (1) RETURNING id";
            Ok::<i64, Error>(sqlx::query_scalar(insert).fetch_one(conn).await?)
        };
        // Duplicates at the same moment: one executes.
        let mut calls = JoinSet::new();
        for n in 0..60 {
            let (idempotency, operation) = (idempotency.clone(), name(&format!("order-{}", n % 20)));
            calls.spawn(async move {
                let wait = pgonce::InFlight::Wait(Duration::from_secs(60));
                idempotency.execute(&operation.with_in_flight(wait), pay).await
            });
        }
        let executed =
            calls.join_all().await.into_iter().filter(|call| !call.as_ref().unwrap().is_replayed());
        assert_eq!(executed.count(), 20, "{isolation:?}");
        for n in 0..20 {
            let operation = name(&format!("order-{n}"));
            let record = idempotency.find(operation.scope(), operation.key()).await.unwrap().unwrap();
            assert_eq!((record.state(), record.key()), (State::Completed, operation.key()), "{isolation:?}");
        }
        assert!(idempotency.find(&scope(), &key("unknown")).await.unwrap().is_none());

        // A claim in flight is noticed; what it leaves is free.
        let claim = idempotency.claim(&name("claimed")).await.unwrap();
        let error = idempotency.execute(&name("claimed"), must_not_run).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InFlight);
        drop(claim);
        // Expired keys are taken over in place, or purged, and live ones stay.
        let expires = name("expires").with_retention(Duration::ZERO);
        for _ in 0..2 {
            assert!(!idempotency.execute(&expires, pay).await.unwrap().is_replayed());
        }
        assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1, "{isolation:?}");
        assert_eq!(idempotency.purge_expired(10).await.unwrap(), 0, "{isolation:?}");
        let mismatch = name("order-1").with_params(&"others").unwrap();
        let error = idempotency.execute(&mismatch, must_not_run).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);

        // Messages: alone, in batches, and again when they have expired.
        let consumer = Scope::new(format!("consumer/{isolation:?}")).unwrap();
        let inbox = idempotency.inbox(consumer.clone());
        let batch: Vec<Message<()>> = (0..40).map(|n| Message::new(key(&format!("evt-{n}")))).collect();
        inbox.process(&batch[7], async |_| Ok::<_, Error>(())).await.unwrap();
        for fresh in [39, 0] {
            let seen = async |_: &mut PgConnection, fresh: &[&Message<()>]| Ok::<_, Error>(fresh.len());
            let report = inbox.process_batch(&batch, seen).await.unwrap();
            let processed =
                report.messages.iter().filter(|handled| matches!(handled, pgonce::Handled::Processed));
            assert_eq!(processed.count(), fresh, "{isolation:?}");
        }
        db.wait_until_idle().await;
        sqlx::query("UPDATE pgonce.keys SET expires_at = 'epoch' WHERE scope = $1")
            .bind(consumer.as_str())
            .execute(&db.pool)
            .await
            .unwrap();
        let again = inbox.process(&batch[7], async |_| Ok::<_, Error>(())).await.unwrap();
        assert!(!again.is_duplicate(), "{isolation:?}");
        let report = inbox.process_batch(&batch, async |_, _| Ok::<_, Error>(())).await.unwrap();
        let duplicates =
            report.messages.iter().filter(|handled| matches!(handled, pgonce::Handled::Duplicate));
        assert_eq!(duplicates.count(), 1, "{isolation:?}");
    }
    assert_eq!(db.count("ledger").await, 3 * (20 + 2));
    assert_eq!(db.count("pgonce.keys").await, 3 * (20 + 40));
    let partitions = "(SELECT DISTINCT tableoid FROM pgonce.keys) AS used";
    assert_eq!(db.count(partitions).await, 16, "the keys are everywhere");
    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = 'epoch'").execute(&db.pool).await.unwrap();
    assert_eq!(db.count("pgonce.purge_expired(1000) AS purged WHERE purged = 180").await, 1);
    assert_eq!(db.count("pgonce.keys").await, 0);
}

/// The primary key that is violated is that of a partition.
#[tokio::test(flavor = "multi_thread")]
async fn the_optimistic_mode_finds_the_first_result_in_every_partition() {
    let db = Database::new().await;
    partition(&db.pool).await;
    // Of different processes: nobody hears of the other.
    let [one, other] = [(); 2].map(|()| Idempotency::new(db.pool_of(4)).with_mode(Mode::Optimistic));
    let pay = async |conn: &mut PgConnection| {
        let insert = "INSERT INTO ledger (amount) VALUES (1) RETURNING id";
        Ok::<i64, Error>(sqlx::query_scalar(insert).fetch_one(conn).await?)
    };
    let wait = pgonce::InFlight::Wait(Duration::from_secs(60));
    for order in (0..100).map(|n| order(n).with_in_flight(wait)) {
        let (first, second) = tokio::join!(one.execute(&order, pay), other.execute(&order, pay));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_ne!(first.is_replayed(), second.is_replayed(), "one of them executes");
        assert_eq!(first.as_ref().into_inner(), second.as_ref().into_inner());
        let again = other.execute(&order, pay).await.unwrap();
        assert_eq!(again, Outcome::Replayed(first.into_inner()));
    }
    assert_eq!((db.count("ledger").await, db.count("pgonce.keys").await), (100, 100));
    assert_eq!(db.count("(SELECT DISTINCT tableoid FROM pgonce.keys) AS used").await, 16);
    let error = one.execute(&order(1).with_params(&1).unwrap(), pay).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
}

/// What `partitioned.sql` had at schema version 5, after the index.
const TRIGGER_OF_VERSION_5: &str = "\
CREATE CONSTRAINT TRIGGER messages_finished_before_commit
    AFTER INSERT OR UPDATE OF fingerprint ON pgonce.keys
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.result IS NULL AND NEW.unfinished IS NULL)
    EXECUTE FUNCTION pgonce.refuse_unfinished()";

#[tokio::test]
async fn migration_6_is_that_of_a_partitioned_table_too() {
    let db = Database::new().await;
    step_back_to(5, &db.pool).await;
    partition(&db.pool).await;
    sqlx::raw_sql(TRIGGER_OF_VERSION_5).execute(&db.pool).await.unwrap();
    let mut fifth = Fifth(PgConnection::connect_with(&db.options()).await.unwrap());
    for n in 0..32 {
        assert!(fifth.process(&message(n)).await);
    }
    let inbox = db.idempotency().inbox(consumer());
    let run = async |_: &mut PgConnection| Ok::<_, Error>(());
    inbox.process("evt-100", run).await.expect_err("the trigger refuses it");

    pgonce::migrate(&db.pool).await.unwrap();
    pgonce::verify(&db.pool).await.unwrap();
    assert_eq!(db.count("pg_trigger WHERE tgname LIKE 'messages_finished%'").await, 0, "nor in a partition");
    for n in 0..32 {
        assert!(inbox.process(message(n).key().clone(), run).await.unwrap().is_duplicate());
        assert!(!inbox.process(message(100 + n).key().clone(), run).await.unwrap().is_duplicate());
        assert!(fifth.process(&message(200 + n)).await);
    }
}
