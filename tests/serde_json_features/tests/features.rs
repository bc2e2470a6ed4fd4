//! The same tests with `preserve_order`, `arbitrary_precision` and `raw_value`, and what only these make possible.

use pgonce::Fingerprint;
use serde_json::Value;
use serde_json::value::RawValue;

#[path = "../../fingerprint.rs"]
mod fingerprint;

#[test]
fn the_features_are_on() {
    let value: Value = serde_json::from_str(r#"{"b":1.10,"a":1}"#).unwrap();
    assert_eq!(value.to_string(), r#"{"b":1.10,"a":1}"#);
}

#[test]
fn a_number_too_exact_for_a_float_keeps_its_digits() {
    // An amount in the smallest unit of a token: 21 digits more than an f64 can tell apart.
    let of = |text: &str| Fingerprint::of(&serde_json::from_str::<Value>(text).unwrap()).unwrap().to_string();
    let amount = of("123456789012345678901");
    assert_eq!(amount, "01c65a1698d52e4e3515086241672c855f9b7a8e288ca7f9e0c534c7b36b8b4290");
    assert_ne!(amount, of("123456789012345678902"));
    assert_ne!(amount, of("-123456789012345678901"));
    assert_ne!(amount, of("123456789012345678901e1"));
    // The same value, written otherwise.
    assert_eq!(amount, of("123456789012345678901.0"));
    assert_eq!(amount, of("12345678901234567890.1e1"));
    assert_ne!(of("1e400"), of("1e401"), "beyond what a float can hold");
    assert_ne!(of("1e-400"), of("0.0"));
}

#[test]
fn a_raw_text_is_compared_as_text() {
    let of = |text: &str| Fingerprint::of(&RawValue::from_string(text.to_owned()).unwrap()).unwrap();
    assert_eq!(of(r#"{"a":1}"#), of(r#"{"a":1}"#));
    let all = [of(r#"{"a":1}"#), of(r#"{ "a":1}"#), of(r#"{"a":1,"a":1}"#), of("1"), of("1.0"), of(r#""1""#)];
    for (n, one) in all.iter().enumerate() {
        assert!(all.iter().skip(n + 1).all(|other| one != other));
    }
    assert_ne!(of(r#""x""#), Fingerprint::of("x").unwrap());
}
