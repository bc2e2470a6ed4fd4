//! A rolling deploy: for some minutes two releases are at the same keys.

use std::sync::Arc;
use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, Mode, Operation, Outcome, Scope};
use sqlx::{Connection, PgConnection};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::fifth::Fifth;
use crate::former::{Answer, Former, pay};
use crate::support::{Database, key, scope};

pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub async fn former(db: &Database) -> Former {
    // Where it should not wait, it does not wait for ever.
    let options = db.options().options([("lock_timeout", "20s")]);
    Former(PgConnection::connect_with(&options).await.unwrap())
}

fn order(n: usize) -> Operation {
    Operation::new(scope(), key(&format!("order-{n}"))).with_params(&n).unwrap()
}

async fn must_not_run(_: &mut PgConnection) -> Result<i64, Error> {
    panic!("must not run")
}

/// Where it is a replay, this shows in the ledger unless it is undone.
async fn pay_again(conn: &mut PgConnection) -> Result<i64, Error> {
    pay(conn).await
}

pub fn consumer() -> Scope {
    Scope::new("consumer").unwrap()
}

pub fn message(n: usize) -> Operation {
    Operation::new(consumer(), key(&format!("evt-{n}")))
}

/// The current release's call, made again while the other one is at the key.
pub async fn current(idempotency: &Idempotency, operation: &Operation) -> i64 {
    loop {
        match idempotency.execute(operation, async |conn| pay(conn).await).await {
            Ok(outcome) => return outcome.into_inner(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InFlight, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// The former release's.
pub async fn formerly(former: &mut Former, operation: &Operation) -> i64 {
    loop {
        match former.execute(operation, DAY).await {
            Answer::Executed(charged) | Answer::Replayed(charged) => return charged,
            Answer::InFlight => tokio::task::yield_now().await,
            Answer::Mismatch => panic!("{operation:?}: the parameters are the same"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_releases_race_for_the_same_keys_and_each_is_executed_once() {
    const KEYS: usize = 150;
    let db = Database::new().await;
    // Three of each, and each key is begun by all of them at the same moment.
    let barrier = Arc::new(Barrier::new(6));
    let mut workers = JoinSet::new();
    for n in 0..6 {
        let barrier = Arc::clone(&barrier);
        let (mut former, idempotency) = (former(&db).await, Idempotency::new(db.pool_of(1)));
        workers.spawn(async move {
            let mut told = Vec::new();
            for order in (0..KEYS).map(order) {
                barrier.wait().await;
                told.push(match n % 2 {
                    0 => formerly(&mut former, &order).await,
                    _ => current(&idempotency, &order).await,
                });
            }
            told
        });
    }
    let told = workers.join_all().await;
    for other in &told {
        assert_eq!(other, &told[0], "each call of a key gets the same charge");
    }
    assert_eq!(db.count("ledger").await, KEYS as i64);
    assert_eq!(db.count("pgonce.keys WHERE state = 'completed'").await, KEYS as i64);
}

#[tokio::test]
async fn each_release_understands_what_the_other_has_left() {
    let db = Database::new().await;
    let (mut former, idempotency) = (former(&db).await, db.idempotency());
    let expires = order(0).with_retention(Duration::ZERO);
    let other = |n| order(n).with_params(&"others").unwrap();

    // Results, in both directions, and the refusal of other parameters.
    let Answer::Executed(charged) = former.execute(&order(1), DAY).await else { panic!() };
    assert_eq!(idempotency.execute(&order(1), must_not_run).await.unwrap(), Outcome::Replayed(charged));
    let error = idempotency.execute(&other(1), must_not_run).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
    let charged = idempotency.execute(&order(2), async |conn| pay(conn).await).await.unwrap().into_inner();
    assert_eq!(former.execute(&order(2), DAY).await, Answer::Replayed(charged));
    assert_eq!(former.execute(&other(2), DAY).await, Answer::Mismatch);

    // Takeovers of what has expired.
    former.execute(&expires, Duration::ZERO).await;
    let taken = idempotency.execute(&expires, async |conn| pay(conn).await).await.unwrap();
    assert!(!taken.is_replayed());
    assert!(matches!(former.execute(&expires, Duration::ZERO).await, Answer::Executed(_)));

    // Each sees that the other is in flight.
    let claim = idempotency.claim(&order(3)).await.unwrap();
    assert_eq!(former.execute(&order(3), DAY).await, Answer::InFlight);
    drop(claim);

    // Messages, alone and in a batch; how the former release looks for a lost COMMIT; and both purges.
    let inbox = idempotency.inbox(consumer());
    assert!(former.process(&message(1), DAY, 1).await);
    assert!(inbox.process("evt-1", async |conn| pay(conn).await).await.unwrap().is_duplicate());
    assert!(!inbox.process("evt-2", async |conn| pay(conn).await).await.unwrap().is_duplicate());
    assert!(!former.process(&message(2), DAY, 1).await);
    let batch = [1, 2, 3].map(|n| pgonce::Message::new(message(n).key().clone()));
    let report = inbox
        .process_batch(&batch, async |conn, fresh| {
            assert_eq!(fresh.len(), 1);
            pay(conn).await
        })
        .await
        .unwrap();
    assert!(report.messages.iter().all(pgonce::Handled::is_committed));
    assert!(!former.process(&message(3), DAY, 1).await);
    let record = idempotency.find(&scope(), order(2).key()).await.unwrap().unwrap();
    assert!(former.confirm(&order(2), record.attempt()).await);
    assert!(!former.confirm(&order(2), uuid::Uuid::new_v4()).await);

    assert_eq!(former.purge(10).await, 1);
    former.execute(&expires, Duration::ZERO).await;
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1);
    assert_eq!(db.count("ledger").await, 9);
}

#[tokio::test]
async fn the_release_at_schema_version_5_and_this_one_understand_each_other() {
    let db = Database::new().await;
    let mut fifth = Fifth(PgConnection::connect_with(&db.options()).await.unwrap());
    for (n, mode) in [Mode::ClaimFirst, Mode::LookFirst, Mode::Optimistic].into_iter().enumerate() {
        let idempotency = db.idempotency().with_mode(mode);
        let [theirs, theirs_too, ours, ours_too] = [0, 1, 2, 3].map(|more| order(10 * n + more));
        let paid = fifth.execute(&theirs).await;
        assert_eq!(
            idempotency.execute(&theirs, pay_again).await.unwrap(),
            Outcome::Replayed(paid),
            "{mode:?}"
        );
        let paid = fifth.execute_optimistically(&theirs_too).await;
        assert_eq!(
            idempotency.execute(&theirs_too, pay_again).await.unwrap(),
            Outcome::Replayed(paid),
            "{mode:?}"
        );
        let paid = idempotency.execute(&ours, pay_again).await.unwrap().into_inner();
        assert_eq!(fifth.execute(&ours).await, paid, "{mode:?}");
        let paid = idempotency.execute(&ours_too, pay_again).await.unwrap().into_inner();
        assert_eq!(fifth.execute_optimistically(&ours_too).await, paid, "{mode:?}");
    }
    assert_eq!(db.count("ledger").await, 12);

    let inbox = db.idempotency().inbox(consumer());
    assert!(fifth.process(&message(1)).await);
    assert!(inbox.process("evt-1", pay_again).await.unwrap().is_duplicate());
    assert!(!inbox.process("evt-2", pay_again).await.unwrap().is_duplicate());
    assert!(!fifth.process(&message(2)).await);
    assert_eq!(fifth.process_batch(&consumer(), &[1, 2, 3, 4].map(message)).await, ["evt-3", "evt-4"]);
    let batch = [2, 3, 4, 5].map(|n| pgonce::Message::new(message(n).key().clone()));
    let fresh = async |_: &mut PgConnection, fresh: &[&pgonce::Message<()>]| {
        Ok::<_, Error>(fresh.iter().map(|message| message.id().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(inbox.process_batch(&batch, fresh).await.unwrap().results, [["evt-5"]]);
    assert_eq!(fifth.process_batch(&consumer(), &[3, 5].map(message)).await, [""; 0]);
    assert_eq!(db.count("ledger").await, 12 + 3);
}
