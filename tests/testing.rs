//! The test kit: it passes what is right, and finds each planted bug, in words that help.

mod support;

#[allow(dead_code, reason = "only the handler is tested here")]
#[path = "../examples/payment/bank.rs"]
mod bank;
#[allow(dead_code, reason = "only the handler is tested here")]
#[path = "../examples/payment/card.rs"]
mod card;
#[allow(dead_code, reason = "only the handler is tested here")]
#[path = "../examples/payment/service.rs"]
mod service;

use std::future::IntoFuture;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use futures_util::FutureExt;
use pgonce::testing::{self, Edge, Fault, Proxy, Report, Side};
use pgonce::{ErrorKind, Isolation, Outcome};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection};
use support::{Database, charge, operation};

// guide begins
use pgonce::{Error, Idempotency, IdempotencyKey, Operation, Scope};
use sqlx::PgPool;

/// Takes money from Alice, once per key, and returns the number of the payment.
async fn pay(idempotency: Idempotency, key: IdempotencyKey, cents: i64) -> Result<i64, Error> {
    let operation = Operation::new(Scope::new("alice/payments")?, key).with_params(&cents)?;
    let outcome = idempotency
        .execute(&operation, async |conn| {
            sqlx::query("UPDATE accounts SET balance = balance - $1 WHERE id = 'alice'")
                .bind(cents)
                .execute(&mut *conn)
                .await?;
            let insert = "INSERT INTO ledger (amount) VALUES ($1) RETURNING id";
            Ok::<i64, Error>(sqlx::query_scalar(insert).bind(cents).fetch_one(conn).await?)
        })
        .await?;
    Ok(outcome.into_inner())
}

async fn a_payment_happens_once(pool: PgPool) {
    pgonce::testing::once_per_key(&pool, async |idempotency, key| pay(idempotency, key, 10).await)
        .effect("SELECT balance FROM accounts WHERE id = 'alice'")
        .effect("SELECT count(*) FROM ledger")
        .await;
}
// guide ends

/// As in the guide, but for one line.
async fn pay_carelessly(idempotency: Idempotency, key: IdempotencyKey, cents: i64) -> Result<i64, Error> {
    let operation = Operation::new(Scope::new("alice/payments")?, key).with_params(&cents)?;
    let outcome = idempotency
        .execute(&operation, async |conn| {
            sqlx::query("UPDATE accounts SET balance = balance - $1 WHERE id = 'alice'")
                .bind(cents)
                .execute(idempotency.pool())
                .await?;
            let insert = "INSERT INTO ledger (amount) VALUES ($1) RETURNING id";
            Ok::<i64, Error>(sqlx::query_scalar(insert).bind(cents).fetch_one(conn).await?)
        })
        .await?;
    Ok(outcome.into_inner())
}

const LEDGER: &str = "SELECT count(*) FROM ledger";

/// What the sweep panics with.
async fn report(sweep: impl IntoFuture<Output = Report>) -> String {
    let panic = AssertUnwindSafe(sweep.into_future()).catch_unwind().await.expect_err("nothing was found");
    *panic.downcast::<String>().expect("a text")
}

#[track_caller]
fn assert_says(report: &str, parts: &[&str]) {
    let unwrapped = report.replace('\n', " ");
    for part in parts {
        assert!(unwrapped.contains(part), "it does not say {part:?}:\n{report}");
    }
}

/// No session is left at work or of the sweep's own, and no key.
async fn assert_at_peace(db: &Database) {
    db.wait_until_idle().await;
    let sessions = db
        .count(
            "pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pgonce-testing%'",
        )
        .await;
    assert_eq!((sessions, db.count("pgonce.keys").await), (0, 0));
}

// What is right passes.

#[tokio::test]
async fn a_right_closure_passes_and_leaves_only_its_effects() {
    let db = Database::new().await;
    let report = testing::once(&db.pool, async |conn| charge(conn, 1).await)
        .effect(LEDGER)
        .effect("SELECT sum(amount) FROM ledger")
        .effect("SELECT balance / 100.0 FROM accounts WHERE id = 'bob'")
        .await;
    assert_at_peace(&db).await;
    // One undisturbed execution to compare with, and one for each case.
    assert_eq!(db.count("ledger").await as usize, 1 + report.cases());
    let text = report.to_string();
    assert_says(
        &text,
        &["1 undisturbed", "12 with the connection cut", "8 with the COMMIT or its answer lost"],
    );
    assert_says(&text, &["12 with a statement refused", "7 with duplicates", "dropped mid-way"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_handler_passes_on_many_threads() {
    let db = Database::new().await;
    a_payment_happens_once(db.pool.clone()).await;
    assert_at_peace(&db).await;
}

#[tokio::test]
async fn a_right_handler_may_nest_transactions_and_panic_and_choose_its_settings() {
    let db = Database::new().await;
    testing::once_per_key(&db.pool, async |idempotency, key| {
        let idempotency = idempotency.with_isolation(Isolation::Serializable).with_max_attempts(50);
        let outcome = idempotency
            .execute(&Operation::new(support::scope(), key), async |conn| {
                let mut nested = conn.begin().await?;
                let id = charge(&mut nested, 1).await.expect("a charge");
                nested.commit().await?;
                Ok::<_, anyhow::Error>(id)
            })
            .await?;
        Ok::<_, anyhow::Error>(outcome.into_inner())
    })
    .effect(LEDGER)
    .await;
    assert_at_peace(&db).await;
}

#[tokio::test]
async fn a_long_closure_is_disturbed_at_some_of_its_places() {
    let db = Database::new().await;
    let sweep = testing::once(&db.pool, async |conn| charge(conn, 1).await).effect(LEDGER);
    let report = sweep.at_most(2).await;
    assert!(report.cases() < 30, "{report}");
    let all = "2 with the connection cut, 8 with the COMMIT or its answer lost, 4 with a statement refused";
    assert_says(&report.to_string(), &[all, "dropped mid-way"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_payment_example_passes() {
    let db = Database::empty().await;
    pgonce::migrate(&db.pool).await.unwrap();
    bank::open(&db.pool).await.unwrap();
    let processor = &card::CardProcessor::new(db.pool_of(2));
    processor.open().await.unwrap();
    let request = &service::ChargeRequest { payer: "alice".into(), payee: "shop".into(), cents: 5 };
    testing::once_per_key(&db.pool, async |idempotency, key| {
        let service = service::PaymentService { idempotency, processor: processor.clone() };
        service.post_charge(key.as_str(), request).await.map(Outcome::into_inner)
    })
    .effect("SELECT count(*) FROM ledger")
    .effect("SELECT balance FROM accounts WHERE name = 'shop'")
    .effect_of("authorisations", async || processor.books().await.unwrap().authorisations)
    .await;
}

#[tokio::test]
async fn before_each_puts_back_what_an_execution_uses_up() {
    let db = Database::new().await;
    // Alice has 1000.
    let empties = async |conn: &mut PgConnection| charge(conn, 700).await;
    let text = report(testing::once(&db.pool, empties).effect(LEDGER)).await;
    assert_says(&text, &["fails though nothing disturbs it", "accounts_balance_check", "`before_each`"]);
    testing::once(&db.pool, empties)
        .effect(LEDGER)
        .before_each("UPDATE accounts SET balance = 1000; TRUNCATE ledger")
        .at_most(1)
        .await;
}

// What is wrong is found.

#[tokio::test]
async fn the_guide_shows_this_code_and_what_is_found_when_one_line_of_it_is_wrong() {
    let code = between("// guide begins\n", "// guide ends\n");
    support::assert_in_document("docs/testing.md", "code", &format!("```rust,no_run\n{code}```\n"));
    let (right, careless) = (between("async fn pay(", "\n}\n"), between("async fn pay_carelessly(", "\n}\n"));
    let lines = right.lines().zip(careless.lines()).filter(|(right, careless)| right != careless);
    let diff: String = lines.map(|(right, careless)| format!("-{right}\n+{careless}\n")).collect();
    support::assert_in_document("docs/testing.md", "diff", &format!("```diff\n{diff}```\n"));

    let db = Database::new().await;
    let sweep =
        testing::once_per_key(&db.pool, async |idempotency, key| pay_carelessly(idempotency, key, 10).await)
            .effect("SELECT balance FROM accounts WHERE id = 'alice'")
            .effect("SELECT count(*) FROM ledger");
    let text = report(sweep).await;
    // Its end is different each time.
    let (text, end) = text.rsplit_once("\n\n").unwrap();
    assert_says(end, &["(The sweep of tests/testing.rs:", "; right cases before this one: 6; its key: "]);
    support::assert_in_document("docs/testing.md", "report", &format!("```text\n{text}\n\n(…)\n```\n"));
}

/// A part of this file.
fn between(start: &str, end: &str) -> &'static str {
    let here = include_str!("testing.rs");
    here.split_once(start).and_then(|(_, rest)| rest.split_once(end)).expect("both").0
}

#[tokio::test]
async fn a_write_through_another_connection_is_found() {
    let db = Database::new().await;
    let other = &db.pool_of(1);
    let sweep =
        testing::once(&db.pool, async |_| charge(&mut *other.acquire().await?, 1).await).effect(LEDGER);
    let text = report(sweep).await;
    assert_says(&text, &["the effect happened 2 times, and not once: `SELECT count(*) FROM ledger`"]);
    assert_says(
        &text,
        &["What was done: the connection was cut just before the client's `UPDATE pgonce.keys"],
    );
    assert_says(&text, &["the error \"error communicating with database", "outside of the transaction"]);
}

#[tokio::test]
async fn a_closure_that_ends_its_transaction_is_found() {
    for (end, advice) in
        [("COMMIT", "leave COMMIT to pgonce"), ("ROLLBACK", "Leave BEGIN, COMMIT and ROLLBACK")]
    {
        let db = Database::new().await;
        let sweep = testing::once(&db.pool, async |conn| {
            let id = charge(conn, 1).await?;
            conn.execute(end).await?;
            drop(conn.execute("INSERT INTO ledger (amount) VALUES (2)").await);
            Ok::<_, Error>(id)
        });
        let text = report(sweep.effect(LEDGER)).await;
        assert_says(
            &text,
            &["the closure does not keep to its transaction", "the call was made, undisturbed"],
        );
        assert_says(&text, &["the error \"atomicity violation: ", advice]);
    }
}

#[tokio::test]
async fn an_error_that_is_swallowed_only_when_it_happens_is_found() {
    async fn audit(conn: &mut PgConnection) {
        let _ = conn.execute(sqlx::query("UPDATE accounts SET balance = balance + 1")).await;
    }
    let db = Database::new().await;
    for (audit_last, error) in [(true, "was used further"), (false, "current transaction is aborted")] {
        let sweep = testing::once(&db.pool, async |conn| {
            if !audit_last {
                audit(conn).await;
            }
            let id = charge(conn, 1).await?;
            if audit_last {
                audit(conn).await;
            }
            Ok::<_, Error>(id)
        });
        let text = report(sweep.effect(LEDGER)).await;
        let case = "the server refused the statement `UPDATE accounts SET balance = balance + 1` with SQLSTATE 40001";
        assert_says(&text, &["the closure does not keep to its transaction", case, error]);
    }
}

#[tokio::test]
async fn an_effect_that_is_lost_with_a_swallowed_error_is_found() {
    let db = Database::new().await;
    let sweep = testing::once(&db.pool, async |conn| {
        // It keeps to the transaction, and answers as if nothing had been.
        let mut nested = conn.begin().await?;
        if charge(&mut nested, 1).await.is_ok() {
            nested.commit().await?;
        } else {
            nested.rollback().await?;
        }
        Ok::<_, Error>(())
    });
    let text = report(sweep.effect(LEDGER)).await;
    assert_says(&text, &["the effect happened not at all: `SELECT count(*) FROM ledger`"]);
    assert_says(&text, &["the server refused the statement `UPDATE accounts", "An error was swallowed"]);
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Receipt {
    id: i64,
    #[serde(skip)]
    secret: String,
}

#[tokio::test]
async fn a_result_that_serde_does_not_keep_whole_is_found() {
    let db = Database::new().await;
    let sweep = testing::once(&db.pool, async |conn| {
        let id = charge(conn, 1).await?;
        Ok::<_, Error>(Receipt { id, secret: "s3cret".into() })
    });
    let text = report(sweep.effect(LEDGER)).await;
    assert_says(
        &text,
        &["not every call got the same answer", "What was done: the call was made, undisturbed"],
    );
    assert_says(
        &text,
        &["the answer Receipt { id: 1, secret: \"s3cret\" }; the answer Receipt { id: 1, secret: \"\" }"],
    );
}

#[tokio::test]
async fn a_count_in_memory_is_found() {
    let db = Database::new().await;
    let charged = &AtomicI64::new(0);
    let sweep = testing::once(&db.pool, async |conn| {
        charged.fetch_add(1, SeqCst);
        charge(conn, 1).await
    });
    let sweep = sweep.effect(LEDGER).effect_of("charged", async || charged.load(SeqCst));
    assert_says(&report(sweep).await, &["the effect happened 2 times, and not once: `charged`"]);
}

/// A card processor that recognises a key.
#[derive(Default)]
struct Processor(Mutex<Vec<IdempotencyKey>>);

impl Processor {
    fn charge(&self, key: IdempotencyKey) {
        let mut charges = self.0.lock().unwrap();
        if !charges.contains(&key) {
            charges.push(key);
        }
    }

    fn charges(&self) -> i64 {
        self.0.lock().unwrap().len() as i64
    }
}

#[tokio::test]
async fn a_call_to_a_processor_without_a_derived_key_is_found() {
    let db = Database::new().await;
    let processor = &Processor::default();
    let sweep = testing::once_per_key(&db.pool, async |idempotency, key| {
        let operation = Operation::new(support::scope(), key);
        let outcome = idempotency.execute(&operation, async |conn| {
            // Right would be `operation.derived_key("card")`, as in the payment example.
            processor.charge(IdempotencyKey::new_v4());
            charge(conn, 1).await
        });
        Ok::<_, Error>(outcome.await?.into_inner())
    });
    let text =
        report(sweep.effect(LEDGER).effect_of("charges of the card", async || processor.charges())).await;
    assert_says(&text, &["happened 2 times, and not once: `charges of the card`", "`operation.derived_key"]);
}

#[tokio::test]
async fn a_handler_that_makes_its_own_key_is_found() {
    let db = Database::new().await;
    let sweep = testing::once_per_key(&db.pool, async |idempotency, _| {
        let operation = Operation::new(support::scope(), IdempotencyKey::new_v4());
        let outcome = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await;
        outcome.map(Outcome::into_inner)
    });
    let text = report(sweep.effect(LEDGER)).await;
    assert_says(
        &text,
        &[
            "happened 2 times",
            "the call was made, undisturbed",
            "`execute` with the key that the handler is given",
        ],
    );
}

#[tokio::test]
async fn parameters_that_differ_at_each_call_are_found() {
    let db = Database::new().await;
    let clock = &AtomicI64::new(0);
    let sweep = testing::once_per_key(&db.pool, async |idempotency, key| {
        let operation = Operation::new(support::scope(), key).with_params(&clock.fetch_add(1, SeqCst))?;
        let outcome = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await;
        outcome.map(Outcome::into_inner)
    });
    let text = report(sweep.effect(LEDGER)).await;
    assert_says(
        &text,
        &["fails though nothing disturbs it", "used before with other parameters", "the same request"],
    );
}

#[tokio::test]
async fn what_is_done_after_the_commit_is_found_missing() {
    let db = Database::new().await;
    let emails = &AtomicI64::new(0);
    let sweep = testing::once_per_key(&db.pool, async |idempotency, key| {
        let operation = Operation::new(support::scope(), key);
        let outcome = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await?;
        if !outcome.is_replayed() {
            tokio::task::yield_now().await;
            emails.fetch_add(1, SeqCst);
        }
        Ok::<_, Error>(outcome.into_inner())
    });
    let text = report(sweep.effect_of("emails", async || emails.load(SeqCst))).await;
    assert_says(&text, &["happened not at all: `emails`", "it is done after the COMMIT"]);
}

#[tokio::test]
async fn what_a_dropped_call_leaves_in_the_way_of_the_next_one_is_found() {
    let db = Database::new().await;
    let busy = &AtomicBool::new(false);
    let sweep = testing::once(&db.pool, async |conn| {
        anyhow::ensure!(!busy.swap(true, SeqCst), "somebody is at it");
        let charged = charge(conn, 1).await;
        // Also when it has failed, but not when it was dropped.
        busy.store(false, SeqCst);
        Ok(charged?)
    });
    let text = report(sweep.effect(LEDGER).at_most(8)).await;
    assert_says(
        &text,
        &["is not answered", "the call's future was dropped after", "to `", "a flag in memory"],
    );
    assert_says(&text, &["nothing, since it was dropped; the error \"somebody is at it\""]);
}

#[tokio::test]
async fn what_goes_on_after_a_failed_call_is_counted_with_it() {
    let db = Database::new().await;
    let other = &db.pool_of(1);
    other.acquire().await.unwrap();
    let sweep = testing::once_per_key(&db.pool, async |idempotency, key| {
        let operation = Operation::new(support::scope(), key);
        let outcome = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await;
        if outcome.is_err() {
            let other = other.clone();
            let late = "INSERT INTO ledger (amount) SELECT 1 FROM pg_sleep(0.5)";
            tokio::spawn(async move { sqlx::query(late).execute(&other).await.map(drop) });
        }
        outcome.map(Outcome::into_inner)
    });
    let text = report(sweep.effect(LEDGER)).await;
    assert_says(
        &text,
        &[
            "happened 2 times",
            "the connection was cut just before the client's `BEGIN",
            "before this one: 1;",
        ],
    );
}

#[tokio::test]
async fn a_call_that_panics_undisturbed_is_found() {
    let db = Database::new().await;
    let sweep = testing::once(&db.pool, async |_| -> Result<(), Error> { panic!("planted") });
    let text = report(sweep.effect(LEDGER)).await;
    assert_says(&text, &["fails though nothing disturbs it", "the error \"a panic: planted\""]);
}

/// What people write by hand: look for the key, and if it is not there, do it. Right for one call after the other.
async fn by_hand(idempotency: Idempotency, key: IdempotencyKey, insists: bool) -> Result<i64, Error> {
    let id = "SELECT id FROM by_hand WHERE key = $1";
    if let Some(id) = sqlx::query_scalar(id).bind(key.as_str()).fetch_optional(idempotency.pool()).await? {
        return Ok(id);
    }
    loop {
        let mut transaction = idempotency.pool().begin().await?;
        let insert = "INSERT INTO by_hand (key) VALUES ($1) RETURNING id";
        let id = sqlx::query_scalar(insert).bind(key.as_str()).fetch_one(&mut *transaction).await?;
        match transaction.commit().await {
            Err(_) if insists => {}
            committed => return committed.map(|()| id).map_err(Error::from),
        }
    }
}

#[tokio::test]
async fn a_handler_without_pgonce_is_found_by_duplicates_and_by_a_lost_answer() {
    // A retry that comes before the server has committed what it was sent is a duplicate, too.
    let duplicates = ["the call was made 8 times at the same moment", "just after the client's `COMMIT`"];
    let lost = ["the connection was cut just after the client's `COMMIT`"];
    for (insists, cases) in [(false, &duplicates[..]), (true, &lost)] {
        let db = Database::new().await;
        let table = "CREATE TABLE by_hand (id bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL)";
        sqlx::raw_sql(table).execute(&db.pool).await.unwrap();
        let sweep = testing::once_per_key(&db.pool, async |idempotency, key| {
            by_hand(idempotency, key, insists).await
        });
        let text = report(sweep.effect("SELECT count(*) FROM by_hand")).await;
        assert_says(&text, &["the effect happened ", " times, and not once"]);
        assert!(cases.iter().any(|case| text.replace('\n', " ").contains(case)), "{text}");
    }
}

// What cannot be tested is said.

#[tokio::test]
async fn a_sweep_that_would_prove_nothing_is_refused() {
    let db = Database::new().await;
    let right = async |conn: &mut PgConnection| charge(conn, 1).await;
    let text = report(testing::once(&db.pool, right)).await;
    assert_says(
        &text,
        &["the sweep cannot be made: say what is to happen once, with `effect`", "tests/testing.rs:"],
    );
    let text = report(testing::once(&db.pool, right).effect("SELECT count(*) FROM accounts")).await;
    assert_says(&text, &["an undisturbed call does not change `SELECT count(*) FROM accounts`"]);
    let text = report(testing::once(&db.pool, right).effect("SELECT no FROM ledger")).await;
    assert_says(
        &text,
        &["the sweep cannot be made: `SELECT no FROM ledger`: ", "column \"no\" does not exist"],
    );
    let elsewhere = testing::once_per_key(&db.pool, async |_, key| {
        let operation = Operation::new(support::scope(), key);
        db.idempotency().execute(&operation, right).await.map(Outcome::into_inner)
    });
    assert_says(
        &report(elsewhere.effect(LEDGER)).await,
        &["does not use the `Idempotency` that it is given"],
    );
    let socket = PgPoolOptions::new().connect_lazy_with(db.options().socket("/tmp"));
    assert_says(
        &report(testing::once(&socket, right).effect(LEDGER)).await,
        &["listens on TCP, not on a socket file"],
    );
}

// The fault that is made for it.

#[tokio::test]
async fn a_refused_statement_fails_as_the_server_says_it() {
    let db = Database::new().await;
    for (sqlstate, runs) in [("40001", 2), ("57014", 1)] {
        let proxy = Proxy::start(&db.options()).await.unwrap();
        // After the claim, which binds too.
        let mut executes = 0;
        let nth = Mutex::new(move || {
            executes += 1;
            executes == 2
        });
        proxy.arm(Fault::Refuse(sqlstate), Edge::Before, move |message| {
            message.side == Side::Client && message.label == "Execute" && nth.lock().unwrap()()
        });
        let ran = &AtomicI64::new(0);
        let idempotency = Idempotency::new(PgPoolOptions::new().connect_lazy_with(proxy.options()));
        let operation = operation();
        let executed = idempotency.execute(&operation, async |conn| {
            ran.fetch_add(1, SeqCst);
            charge(conn, 42).await
        });
        match executed.await {
            Ok(outcome) => assert!(!outcome.is_replayed() && sqlstate == "40001"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Database);
                assert_says(&error.to_string(), &[sqlstate]);
            }
        }
        assert_eq!((proxy.hits(), ran.load(SeqCst)), (1, runs), "{sqlstate}");
        sqlx::raw_sql("DELETE FROM pgonce.keys").execute(&db.pool).await.unwrap();
    }
    assert_eq!(db.count("ledger").await, 1);
}

// Where it must compile.

#[allow(dead_code, reason = "compiling is the test")]
fn in_a_task(pool: PgPool) {
    tokio::spawn(async move {
        let amount = 1;
        testing::once(&pool, async |conn| charge(conn, amount).await).effect(LEDGER).await;
        testing::once(&pool, async move |conn: &mut PgConnection| charge(conn, amount).await)
            .effect(LEDGER)
            .await;
        testing::once_per_key(&pool, pay_ten).effect(LEDGER).await;
        testing::once_per_key(&pool, |idempotency, key| pay(idempotency, key, amount)).effect(LEDGER).await
    });
}

async fn pay_ten(idempotency: Idempotency, key: IdempotencyKey) -> Result<i64, Error> {
    pay(idempotency, key, 10).await
}
