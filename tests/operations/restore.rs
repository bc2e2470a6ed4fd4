//! A backup and the WAL after it, restored to a point in time, by the server's own programs.

use pgonce::{Error, Idempotency, Operation, Outcome, Scope};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use throwaway_postgres::{Server, Settings};
use tokio::task::block_in_place;

use crate::document;
use crate::support::private::Bank;
use crate::support::{charge, key, scope};

const SCOPE_OF_CONSUMER: &str = "consumer";

fn order(name: &str) -> Operation {
    Operation::new(scope(), key(name))
}

async fn must_not_run(_: &mut PgConnection) -> Result<i64, Error> {
    panic!("must not run")
}

async fn pool(server: &Server) -> PgPool {
    PgPoolOptions::new().connect_lazy_with(server.url().parse::<PgConnectOptions>().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_to_a_point_in_time_keys_and_effects_are_those_of_that_moment() {
    // With a setting of its own it is never the server of DATABASE_URL.
    let mut bank = Bank::start(Settings::fast().with("wal_retrieve_retry_interval", "100ms")).await;
    let pay = async |idempotency: &Idempotency, name: &str| {
        idempotency.execute(&order(name), async |conn| charge(conn, 1).await).await.unwrap().into_inner()
    };
    let consume = async |idempotency: &Idempotency, id: &str| {
        let inbox = idempotency.inbox(Scope::new(SCOPE_OF_CONSUMER).unwrap());
        inbox.process(id, async |conn| charge(conn, 1).await).await.unwrap().is_duplicate()
    };
    let before = Idempotency::new(bank.pool_of(4));
    let in_backup = pay(&before, "in-the-backup").await;
    before.pool().close().await;

    // The backup: a copy of the folder. What becomes of it is told by its settings, as in the runbook.
    let mut restored = block_in_place(|| bank.server.standby()).unwrap();
    let at_the_copy = pool(&restored).await;
    let mut conn = at_the_copy.acquire().await.unwrap();
    for setting in ["recovery_target_name = 'before_the_mistake'", "recovery_target_action = 'promote'"] {
        assert!(document::read("operations.md").contains(setting), "the runbook has another {setting}");
        let setting = AssertSqlSafe(format!("ALTER SYSTEM SET {setting}"));
        sqlx::raw_sql(setting).execute(&mut *conn).await.unwrap();
    }
    drop(conn);
    at_the_copy.close().await;
    block_in_place(|| restored.stop_fast()).unwrap();

    // Life goes on, and then the mistake.
    let idempotency = Idempotency::new(bank.pool_of(4));
    let in_wal = pay(&idempotency, "in-the-WAL").await;
    assert!(!consume(&idempotency, "evt-kept").await);
    let mut open = PgConnection::connect_with(&bank.options()).await.unwrap();
    let mut open = open.begin().await.unwrap();
    let straddles = order("straddles");
    let run = async |conn: &mut PgConnection| charge(conn, 1).await;
    idempotency.execute_in(&mut open, &straddles, run).await.unwrap();
    let point = document::statement("SELECT pg_create_restore_point");
    sqlx::raw_sql(AssertSqlSafe(point)).execute(&bank.pool).await.unwrap();
    open.commit().await.unwrap();
    // Whoever it pays outside, a processor, has this key from then on, and is not restored.
    let lost = order("lost");
    let capture = async |idempotency: &Idempotency| {
        let outcome = idempotency.execute(&lost, async |conn| {
            charge(conn, 1).await?;
            Ok::<_, Error>(lost.derived_key("capture").to_string())
        });
        outcome.await.unwrap()
    };
    let captured = capture(&idempotency).await.into_inner();
    assert!(!consume(&idempotency, "evt-lost").await);
    let kept = order("in-the-backup");
    assert!(idempotency.execute(&kept, must_not_run).await.unwrap().is_replayed());

    // The restore. The old server ends when its WAL has been read.
    block_in_place(|| restored.start_again()).unwrap();
    let pool = pool(&restored).await;
    while sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(&pool).await.unwrap() {
        tokio::task::yield_now().await;
    }
    block_in_place(|| bank.server.stop_immediately()).unwrap();
    bank.pool = pool.clone();

    // For every key an effect, and the other way round.
    let count = async |query: &str| bank.number(&format!("SELECT count(*) FROM {query}")).await;
    assert_eq!(count("ledger").await, 3);
    assert_eq!(count("pgonce.keys").await, 3);
    assert_eq!(bank.number("SELECT balance FROM accounts WHERE id = 'bob'").await, 3);
    let torn = "(SELECT * FROM pgonce.keys WHERE scope <> 'consumer') AS k FULL JOIN ledger ON convert_from(result, 'UTF8') = id::text
                WHERE key IS NULL OR state <> 'completed'";
    assert_eq!(count(torn).await, 1, "the message's row in the ledger, which no result names");
    pgonce::verify(&pool).await.unwrap();

    // What a retry then gets.
    let idempotency = Idempotency::new(pool);
    for (name, charged) in [("in-the-backup", in_backup), ("in-the-WAL", in_wal)] {
        let outcome = idempotency.execute(&order(name), must_not_run).await.unwrap();
        assert_eq!(outcome, Outcome::Replayed(charged), "{name}");
    }
    assert!(consume(&idempotency, "evt-kept").await);
    for name in ["lost", "straddles"] {
        assert!(idempotency.find(&scope(), &key(name)).await.unwrap().is_none());
    }
    let outcome = idempotency.execute(&straddles, run).await.unwrap();
    assert!(!outcome.is_replayed(), "it runs again");
    assert!(idempotency.execute(&straddles, must_not_run).await.unwrap().is_replayed());
    // The processor recognises the second run by the key that the first one gave it.
    assert_eq!(capture(&idempotency).await, Outcome::Executed(captured.clone()));
    assert_eq!(capture(&idempotency).await, Outcome::Replayed(captured));
    assert!(!consume(&idempotency, "evt-lost").await);
    assert_eq!(bank.number("SELECT balance FROM accounts WHERE id = 'bob'").await, 6);
}
