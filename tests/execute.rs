//! The main job: once, and the first result for every retry.

mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use pgonce::{Error, ErrorKind, Idempotency, IdempotencyKey, Operation, Outcome, Scope, State};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor};
use support::{Database, charge, key, must_not_run, operation, scope};

#[tokio::test]
async fn executes_once_and_replays_the_first_result() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let first = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let Outcome::Executed(id) = first else { panic!("the first call must execute: {first:?}") };
    for _ in 0..3 {
        let again = idempotency.execute(&operation(), must_not_run::<i64>).await.unwrap();
        assert_eq!(again, Outcome::Replayed(id));
    }
    db.assert_charged_once().await;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    text: String,
    none: Option<u8>,
    map: HashMap<String, i128>,
    float: f64,
    unit: (),
    bytes: Vec<u8>,
}

#[tokio::test]
async fn a_replayed_result_is_equal_and_stored_byte_for_byte() {
    let db = Database::new().await;
    let value = Everything {
        text: "NUL \0, umlaut ü, emoji 🦀, quote \", escape \\u0000".into(),
        none: None,
        map: HashMap::from([("z".into(), i128::from(i64::MAX)), ("a".into(), -1)]),
        float: 0.1 + 0.2,
        unit: (),
        bytes: vec![0, 255],
    };
    let executed =
        db.idempotency().execute(&operation(), async |_| Ok::<_, Error>(value.clone())).await.unwrap();
    assert_eq!(executed, Outcome::Executed(value.clone()));
    let replayed = db.idempotency().execute(&operation(), must_not_run::<Everything>).await.unwrap();
    assert_eq!(replayed, Outcome::Replayed(value.clone()));

    let record = db.idempotency().find(&scope(), &key("order-1")).await.unwrap().unwrap();
    // The order of a HashMap is the one of this run: the stored text must be one that parses to the same, twice.
    assert_eq!(serde_json::from_slice::<Everything>(record.result_bytes().unwrap()).unwrap(), value);
    assert_eq!(record.result::<Everything>().unwrap(), value);
}

#[tokio::test]
async fn floats_are_replayed_to_the_last_bit() {
    let db = Database::new().await;
    // Every 2^54th bit pattern, and a few that are known to be hard to read.
    let hard = [5e-324, 2.225073858507201e-308, 1.7976931348623157e308, 9007199254740992.0, 0.1 + 0.2, -0.0];
    let patterns = (0..1024_u64).map(|n| f64::from_bits((n << 54) | 0x000f_edcb_a987_6543));
    let floats: Vec<f64> = patterns.chain(hard).filter(|float| float.is_finite()).collect();
    let first =
        db.idempotency().execute(&operation(), async |_| Ok::<_, Error>(floats.clone())).await.unwrap();
    let again = db.idempotency().execute(&operation(), async |_| Ok::<_, Error>(vec![])).await.unwrap();
    assert!(!first.is_replayed() && again.is_replayed());
    let bits = |floats: &[f64]| floats.iter().map(|float| float.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&again.into_inner()), bits(&floats));
}

#[tokio::test]
async fn an_operation_without_a_result_replays_too() {
    let db = Database::new().await;
    for replayed in [false, true] {
        let outcome = db
            .idempotency()
            .execute(&operation(), async |conn| charge(conn, 42).await.map(drop))
            .await
            .unwrap();
        assert_eq!(outcome.is_replayed(), replayed);
    }
    db.assert_charged_once().await;
}

#[tokio::test]
async fn the_closures_error_rolls_back_and_frees_the_key() {
    let db = Database::new().await;
    let error = db
        .idempotency()
        .execute(&operation(), async |conn| {
            charge(conn, 42).await?;
            anyhow::bail!("the card processor is down");
            #[allow(unreachable_code, reason = "gives the closure its type")]
            Ok(0_i64)
        })
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "the card processor is down");
    db.assert_untouched().await;

    let retry = db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!retry.is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_database_error_of_the_closure_comes_back_as_it_is() {
    let db = Database::new().await;
    let error =
        db.idempotency().execute(&operation(), async |conn| charge(conn, 5000).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.to_string().contains("accounts_balance_check"), "{error}");
    assert!(!error.is_retryable());
    db.assert_untouched().await;
}

#[tokio::test]
async fn other_parameters_under_the_same_key_are_refused() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();
    let error = idempotency.execute(&other, must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
    assert!(!error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("order-1") && text.contains("acct_42/charges"), "{text}");
    db.assert_charged_once().await;
}

#[tokio::test]
async fn other_parameters_are_refused_after_a_recorded_failure_and_free_after_a_released_one() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();

    let released = idempotency
        .execute(&operation(), async |_| -> Result<i64, anyhow::Error> { anyhow::bail!("released") })
        .await;
    released.unwrap_err();
    let executed = idempotency
        .execute_recording(&other, async |_| Ok::<Result<i64, String>, Error>(Err("declined".into())))
        .await
        .unwrap();
    assert_eq!(executed, Outcome::Executed(Err("declined".into())));

    let error = idempotency.execute(&operation(), must_not_run::<i64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
}

#[tokio::test]
async fn the_same_key_in_another_scope_is_another_operation() {
    let db = Database::new().await;
    for scope in ["acct_42/charges", "acct_43/charges", "acct_42/refunds"] {
        let operation = Operation::new(Scope::new(scope).unwrap(), key("order-1"));
        let outcome = db.idempotency().execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
        assert!(!outcome.is_replayed(), "{scope}");
    }
    assert_eq!(db.count("ledger").await, 3);
}

#[tokio::test]
async fn scope_and_key_do_not_run_into_each_other() {
    let db = Database::new().await;
    for (scope, key_) in [("a/b", "c"), ("a", "b/c"), ("a/bc", "c"), ("a", "bc")] {
        let operation = Operation::new(Scope::new(scope).unwrap(), key(key_));
        let outcome = db.idempotency().execute(&operation, async |_| Ok::<_, Error>(())).await.unwrap();
        assert!(!outcome.is_replayed(), "{scope} {key_}");
    }
}

#[tokio::test]
async fn a_nested_begin_is_a_savepoint_that_can_fail_alone() {
    let db = Database::new().await;
    db.idempotency()
        .execute(&operation(), async |conn| {
            let id = charge(conn, 42).await?;
            let mut savepoint = conn.begin().await?;
            savepoint.execute("SELECT 1 / 0").await.unwrap_err();
            savepoint.rollback().await?;
            let mut dropped = conn.begin().await?;
            charge(&mut dropped, 7).await?;
            drop(dropped);
            let kept = conn.begin().await?;
            kept.commit().await?;
            Ok::<_, Error>(id)
        })
        .await
        .unwrap();
    db.assert_charged_once().await;
}

#[tokio::test]
async fn execute_once_takes_a_closure_that_cannot_be_cloned() {
    let db = Database::new().await;
    let mut seen = Vec::new();
    struct NotClone(i64);
    let amount = NotClone(42);
    let outcome = db
        .idempotency()
        .execute_once(&operation(), async |conn| {
            seen.push("ran");
            let NotClone(amount) = amount;
            charge(conn, amount).await
        })
        .await
        .unwrap();
    assert!(!outcome.is_replayed());
    assert_eq!(seen, ["ran"]);
    let again =
        db.idempotency().execute_once(&operation(), async |_| Err::<i64, Error>(unexpected())).await.unwrap();
    assert_eq!(again, Outcome::Replayed(outcome.into_inner()));
    db.assert_charged_once().await;
}

fn unexpected() -> Error {
    Scope::new("").unwrap_err()
}

#[tokio::test]
async fn the_result_may_be_up_to_the_limit_and_not_one_byte_more() {
    let db = Database::new().await;
    let limit = 256 * 1024;
    // The JSON of a string is two quotes longer.
    let fits = "x".repeat(limit - 2);
    let outcome =
        db.idempotency().execute(&operation(), async |_| Ok::<_, Error>(fits.clone())).await.unwrap();
    assert!(!outcome.is_replayed());

    let too_large = Operation::new(scope(), key("order-2"));
    for size in [limit - 1, 300 * 1024] {
        let error = db
            .idempotency()
            .execute(&too_large, async |conn| {
                charge(conn, 42).await?;
                Ok::<_, Error>("x".repeat(size))
            })
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::ResultTooLarge { size: s, limit: l, .. } if *s == size + 2 && *l == limit)
        );
        assert!(error.to_string().contains("with_max_result_size"), "{error}");
    }
    assert_eq!(db.count("ledger").await, 0);
    assert_eq!(db.count("pgonce.keys").await, 1);

    let raised = db.idempotency().with_max_result_size(400 * 1024);
    raised.execute(&too_large, async |_| Ok::<_, Error>("x".repeat(300 * 1024))).await.unwrap();
}

#[tokio::test]
async fn a_result_that_could_not_be_replayed_is_refused_before_the_commit() {
    #[derive(Serialize, Deserialize)]
    struct Rate(f64);
    #[derive(Serialize, Deserialize)]
    struct Deep(Option<Box<[Deep]>>);
    #[derive(Serialize, Deserialize, Debug)]
    struct OneWay {
        #[serde(skip_serializing)]
        _needed: u8,
    }

    let db = Database::new().await;
    let mut deep = Deep(None);
    for _ in 0..200 {
        deep = Deep(Some(Box::new([deep])));
    }
    let deep = std::sync::Arc::new(std::sync::Mutex::new(Some(deep)));

    let (idempotency, operation) = (db.idempotency(), operation());
    let nan = idempotency.execute(&operation, async |conn| {
        charge(conn, 42).await?;
        Ok::<_, Error>(Rate(f64::NAN))
    });
    let deep = idempotency.execute(&operation, async |conn| {
        charge(conn, 42).await?;
        Ok::<_, Error>(deep.lock().unwrap().take().unwrap())
    });
    let one_way = idempotency.execute(&operation, async |conn| {
        charge(conn, 42).await?;
        Ok::<_, Error>(OneWay { _needed: 1 })
    });
    for error in [nan.await.map(drop), deep.await.map(drop), one_way.await.map(drop)].map(Result::unwrap_err)
    {
        assert_eq!(error.kind(), ErrorKind::Encode);
        assert!(error.to_string().contains("would not decode again"), "{error}");
    }
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_stored_result_that_no_longer_decodes_runs_nothing_and_changes_nothing() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |_| Ok::<_, Error>("4242 4242".to_string())).await.unwrap();
    let before: String = row(&db).await;
    let error = db.idempotency().execute(&operation(), must_not_run::<u64>).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert!(!error.is_retryable());
    let text = format!("{error} {error:?}");
    assert!(text.contains("u64") && text.contains("order-1"), "{text}");
    assert!(!text.contains("4242"), "the result must not leak into an error: {text}");
    assert_eq!(row(&db).await, before);
}

#[tokio::test]
async fn execute_does_not_replay_a_recorded_failure_as_a_value() {
    let db = Database::new().await;
    let _ = db
        .idempotency()
        .execute_recording(&operation(), async |_| Ok::<Result<i64, i64>, Error>(Err(7)))
        .await
        .unwrap();
    let error = db.idempotency().execute(&operation(), async |_| Ok::<_, Error>(1_i64)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Decode);
    assert!(error.to_string().contains("execute_recording"), "{error}");
}

#[tokio::test]
async fn find_shows_what_is_stored() {
    let db = Database::new().await;
    assert!(db.idempotency().find(&scope(), &key("order-1")).await.unwrap().is_none());
    db.idempotency().execute(&operation(), async |_| Ok::<_, Error>("paid".to_string())).await.unwrap();
    let record = db.idempotency().find(&scope(), &key("order-1")).await.unwrap().unwrap();
    assert_eq!(record.state(), State::Completed);
    assert_eq!(record.scope(), &scope());
    assert_eq!(record.key(), &key("order-1"));
    assert_eq!(record.fingerprint(), operation().fingerprint());
    assert_eq!(record.result_bytes(), Some(br#""paid""#.as_slice()));
    assert_eq!(record.result::<String>().unwrap(), "paid");
    assert!(record.failure::<String>().is_err());
    assert!(record.created_at() <= record.completed_at().unwrap());
    assert_eq!(record.expires_at() - record.created_at(), chrono::TimeDelta::hours(24));
    assert!(!format!("{record:?}").contains("paid"), "Debug must not show the result");
}

#[tokio::test]
async fn keys_of_every_allowed_shape_work() {
    let db = Database::new().await;
    let all: String = ('!'..='~').collect();
    for text in
        [all.as_str(), &"k".repeat(255), "!", "'; DROP TABLE pgonce.keys; --".replace(' ', "_").as_str()]
    {
        let operation = Operation::new(Scope::new(text).unwrap(), IdempotencyKey::try_from(text).unwrap());
        for replayed in [false, true] {
            let outcome = db.idempotency().execute(&operation, async |_| Ok::<_, Error>(1)).await.unwrap();
            assert_eq!(outcome.is_replayed(), replayed, "{text}");
        }
    }
}

#[tokio::test]
async fn the_closure_runs_again_only_when_it_must() {
    let db = Database::new().await;
    let runs = AtomicU32::new(0);
    let runs = &runs;
    let error = db
        .idempotency()
        .execute(&operation(), async |conn| {
            runs.fetch_add(1, Ordering::SeqCst);
            charge(conn, 5000).await
        })
        .await;
    error.unwrap_err();
    assert_eq!(runs.load(Ordering::SeqCst), 1, "a constraint violation is not retried");
}

#[tokio::test]
async fn idempotency_is_cheap_to_share() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<Idempotency>();
    shared::<Operation>();
}

async fn row(db: &Database) -> String {
    sqlx::query_scalar("SELECT keys::text || xmin::text FROM pgonce.keys").fetch_one(&db.pool).await.unwrap()
}
