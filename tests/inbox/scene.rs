//! A consumer that writes the amounts of its messages into a ledger.

use pgonce::{BatchReport, Error, Handled, Inbox, Message, Scope};
use sqlx::PgConnection;

use super::support::{Database, key};

pub fn consumer() -> Scope {
    Scope::new("ledger/payments").unwrap()
}

pub fn inbox(db: &Database) -> Inbox {
    db.idempotency().inbox(consumer())
}

/// Messages with these ids, whose amounts are their places: 0, 1, 2, …
pub fn messages<I: AsRef<str>>(ids: impl IntoIterator<Item = I>) -> Vec<Message<i64>> {
    ids.into_iter().enumerate().map(|(at, id)| Message::new(key(id.as_ref())).with_body(at as i64)).collect()
}

/// `prefix-0`, `prefix-1`, …
pub fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

/// A ledger row for each message, in their order; and money for bob.
pub async fn apply(conn: &mut PgConnection, fresh: &[&Message<i64>]) -> Result<(), Error> {
    let amounts: Vec<i64> = fresh.iter().map(|message| *message.body()).collect();
    sqlx::query("INSERT INTO ledger (amount) SELECT unnest($1::bigint[])")
        .bind(amounts)
        .execute(&mut *conn)
        .await?;
    sqlx::query("UPDATE accounts SET balance = balance + $1 WHERE id = 'bob'")
        .bind(fresh.len() as i64)
        .execute(conn)
        .await?;
    Ok(())
}

/// Processes them and returns the amounts that the closure was given.
pub async fn process(
    inbox: &Inbox,
    messages: &[Message<i64>],
) -> Result<BatchReport<Vec<i64>, Error>, Error> {
    inbox
        .process_batch(messages, async |conn, fresh| {
            apply(conn, fresh).await?;
            Ok(fresh.iter().map(|message| *message.body()).collect())
        })
        .await
}

pub async fn process_all(inbox: &Inbox, messages: &[Message<i64>]) {
    assert!(process(inbox, messages).await.unwrap().is_complete());
}

/// The amounts in the ledger, in the order in which they were written.
pub async fn ledger(db: &Database) -> Vec<i64> {
    sqlx::query_scalar("SELECT amount FROM ledger ORDER BY id").fetch_all(&db.pool).await.unwrap()
}

/// The report as a word: `P`rocessed, `D`uplicate, `F`ailed, `R`eleased.
pub fn word<T, E>(report: &BatchReport<T, E>) -> String {
    let letter = |handled: &Handled<E>| match handled {
        Handled::Processed => 'P',
        Handled::Duplicate => 'D',
        Handled::Failed(_) => 'F',
        Handled::Released => 'R',
        _ => '?',
    };
    report.messages.iter().map(letter).collect()
}

/// Nothing happened: no message, no ledger row, no money.
pub async fn assert_untouched(db: &Database) {
    assert_eq!(db.balance("bob").await, 0);
    db.assert_untouched().await;
}

/// Every message that is remembered has been applied once, and nothing else has.
pub async fn assert_whole(db: &Database) {
    let (messages, rows, money) =
        (db.count("pgonce.keys").await, db.count("ledger").await, db.balance("bob").await);
    assert_eq!((rows, money), (messages, messages), "torn");
}
