//! Keys, scopes, operations, outcomes, errors: what is accepted, what is refused, and in which words.

use pgonce::{Error, ErrorKind, Fingerprint, IdempotencyKey, Operation, Outcome, Scope};

#[test]
fn keys_and_scopes_are_1_to_255_visible_ascii_characters() {
    let longest = "k".repeat(255);
    for good in ["1", "!", "~", "8e03978e-40d5-43dd-bc93-6894a57f9324", longest.as_str()] {
        assert_eq!(IdempotencyKey::try_from(good).unwrap().as_str(), good);
        assert_eq!(IdempotencyKey::try_from(good.to_owned()).unwrap().to_string(), good);
        assert_eq!(good.parse::<IdempotencyKey>().unwrap().as_ref(), good);
        assert_eq!(Scope::new(good).unwrap().as_str(), good);
        assert_eq!(String::from(Scope::try_from(good).unwrap()), good);
    }
    let too_long = "k".repeat(256);
    for (bad, why) in [
        ("", "empty"),
        (too_long.as_str(), "256 characters"),
        ("two words", "at byte 3"),
        (" ", "u{20}"),
        ("tab\t", "u{9}"),
        ("new\nline", "u{a}"),
        ("nul\0", "u{0}"),
        ("del\u{7f}", "u{7f}"),
        ("schlüssel", "u{fc}"),
        ("🦀", "u{1f980}"),
    ] {
        let error = IdempotencyKey::try_from(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{bad:?}");
        assert!(error.to_string().contains(why) && error.to_string().contains("1 to 255"), "{error}");
        assert!(!error.is_retryable());
        let error = Scope::new(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidScope, "{bad:?}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_bad_key_is_not_repeated_in_the_error() {
    let error = IdempotencyKey::try_from("4242 4242 4242 4242").unwrap_err();
    assert!(!format!("{error} {error:?}").contains("4242"), "{error}");
}

#[test]
fn serde_checks_as_well() {
    let key: IdempotencyKey = serde_json::from_str(r#""order-1""#).unwrap();
    assert_eq!(serde_json::to_string(&key).unwrap(), r#""order-1""#);
    assert!(serde_json::from_str::<IdempotencyKey>(r#""two words""#).is_err());
    assert!(serde_json::from_str::<Scope>(r#""""#).is_err());
}

#[test]
fn made_keys_are_unique_and_valid() {
    let keys: std::collections::HashSet<_> =
        (0..100).flat_map(|_| [IdempotencyKey::new_v4(), IdempotencyKey::new_v7()]).collect();
    assert_eq!(keys.len(), 200);
    assert!(
        keys.iter().all(|key| IdempotencyKey::try_from(key.as_str()).is_ok() && key.as_str().len() == 36)
    );
}

#[test]
fn a_derived_key_depends_on_scope_key_and_label_alone() {
    let operation = |scope: &str, key: &str| Operation::new(Scope::new(scope).unwrap(), key.parse().unwrap());
    let one = operation("acct_42/charges", "order-1");
    // Computed by a program of its own. It must never change: the processor has seen it.
    assert_eq!(one.derived_key("capture").as_str(), "7d83ba3e-f468-812c-a5fd-bf7d616005f2");
    assert_eq!(one.clone().with_params(&1).unwrap().derived_key("capture"), one.derived_key("capture"));
    let all = [
        one.derived_key("capture"),
        one.derived_key("refund"),
        one.derived_key(""),
        operation("acct_42/charges", "order-2").derived_key("capture"),
        operation("acct_43/charges", "order-1").derived_key("capture"),
        // The parts do not run into each other.
        operation("acct_42/chargeso", "rder-1").derived_key("capture"),
        operation("acct_42/charges", "order-1c").derived_key("apture"),
    ];
    assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    assert!(all.iter().all(|key| key.as_str().len() == 36), "it fits where processors allow few characters");
}

#[test]
fn an_operation_says_what_it_is() {
    let operation = Operation::new(Scope::new("s").unwrap(), "k".parse().unwrap());
    assert_eq!((operation.scope().as_str(), operation.key().as_str()), ("s", "k"));
    assert_eq!(operation.fingerprint(), &Fingerprint::of(&()).unwrap());
    let with = operation.clone().with_params(&("EUR", 42)).unwrap();
    assert_eq!(with.fingerprint(), &Fingerprint::of(&("EUR", 42)).unwrap());
    assert_eq!(operation.with_fingerprint(*with.fingerprint()), with);
    let error = with.with_params(&f64::NAN).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
}

#[test]
fn an_outcome_is_handled_like_an_option() {
    let executed = Outcome::Executed(20);
    let replayed = executed.map(|n| n + 1);
    assert_eq!(replayed, Outcome::Executed(21));
    assert!(!executed.is_replayed() && Outcome::Replayed(1).is_replayed());
    assert_eq!(Outcome::Replayed("x".to_string()).as_ref().into_inner(), "x");
}

#[test]
fn errors_are_ordinary_errors() {
    fn check<T: std::error::Error + Send + Sync + 'static>(_: &T) {}
    let error = Error::from(sqlx::Error::PoolTimedOut);
    check(&error);
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.is_retryable());
    assert!(std::error::Error::source(&error).unwrap().is::<sqlx::Error>());
    assert!(!Error::from(sqlx::Error::RowNotFound).is_retryable());
    assert!(Error::from(sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into())).is_retryable());
}
