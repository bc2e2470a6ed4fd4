//! The calls that are measured: what pgonce does without the database.

use std::hint::black_box;
use std::rc::Rc;

use pgonce::{Fingerprint, IdempotencyKey, Operation, Scope};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::payload::{self, Receipt};

pub struct Group {
    pub name: String,
    /// The other cases are compared with the first one, where that says something.
    pub is_compared: bool,
    pub cases: Vec<Case>,
}

pub struct Case {
    pub name: &'static str,
    pub call: Box<dyn Fn()>,
}

fn case<T>(name: &'static str, call: impl Fn() -> T + 'static) -> Case {
    Case { name, call: Box::new(move || drop(black_box(call()))) }
}

pub fn all() -> Vec<Group> {
    vec![
        fingerprint("a charge", payload::charge()),
        fingerprint("a letter", payload::letter()),
        fingerprint("a bank transfer", payload::transfer()),
        fingerprint("an order of 6 lines", payload::order(6)),
        fingerprint("an order of 187 lines", payload::order(187)),
        fingerprint("200 numbers", (1_000..1_200).collect::<Vec<u64>>()),
        keys(),
        operation(),
        result(),
    ]
}

fn fingerprint<T: Serialize + 'static>(of: &str, value: T) -> Group {
    let json = serde_json::to_vec(&value).expect("it is JSON");
    let name = format!("fingerprint of {of}, {} bytes as JSON", json.len());
    let [hashed, text, bytes] = [json.clone(), json.clone(), json];
    let value = Rc::new(value);
    let written = value.clone();
    let cases = vec![
        case("SHA-256 of its JSON", move || Sha256::digest(black_box(&hashed))),
        case("serde_json::to_vec, and SHA-256 of that", move || {
            Sha256::digest(serde_json::to_vec(black_box(&*written)).expect("it is JSON"))
        }),
        case("Fingerprint::of", move || Fingerprint::of(black_box(&*value))),
        case("Fingerprint::of_json, of its JSON", move || Fingerprint::of_json(black_box(&text))),
        case("Fingerprint::of_bytes, of its JSON", move || Fingerprint::of_bytes(black_box(&bytes))),
    ];
    Group { name, is_compared: true, cases }
}

const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";
const SCOPE: &str = "acct_42/charges";

fn keys() -> Group {
    let operation = Operation::new(scope(), key());
    let cases = vec![
        case("IdempotencyKey::try_from(&str)", || IdempotencyKey::try_from(black_box(KEY))),
        case("IdempotencyKey::try_from, refused", || IdempotencyKey::try_from(black_box("two words"))),
        case("Scope::new(&str)", || Scope::new(black_box(SCOPE))),
        case("IdempotencyKey::new_v4", IdempotencyKey::new_v4),
        case("IdempotencyKey::new_v7", IdempotencyKey::new_v7),
        case("Operation::derived_key", move || operation.derived_key(black_box("capture"))),
    ];
    Group { name: "keys and scopes".into(), is_compared: false, cases }
}

fn scope() -> Scope {
    Scope::new(black_box(SCOPE)).expect("a scope")
}

fn key() -> IdempotencyKey {
    IdempotencyKey::try_from(black_box(KEY)).expect("a key")
}

fn operation() -> Group {
    let charge = payload::charge();
    let order = payload::order(6);
    let cases = vec![
        case("Operation::new, its scope and its key", || Operation::new(scope(), key())),
        case("the same, with_params of 1 KiB", move || {
            Operation::new(scope(), key()).with_params(black_box(&order))
        }),
        case("the same, with_params of 100 bytes", move || {
            Operation::new(scope(), key()).with_params(black_box(&charge))
        }),
    ];
    Group { name: "operation".into(), is_compared: false, cases }
}

/// What `execute` does with a closure's result is not public by itself: it writes it, and reads it once to see that a
/// retry can. A replay reads it.
fn result() -> Group {
    let receipt = payload::receipt();
    let stored = serde_json::to_vec(&receipt).expect("it is JSON");
    let name = format!("result of {} bytes", stored.len());
    let read = |stored: &[u8]| serde_json::from_slice::<Receipt>(black_box(stored)).expect("a receipt");
    let cases = vec![
        case("written and read, as a fresh call does", move || {
            read(&serde_json::to_vec(black_box(&receipt)).expect("it is JSON"))
        }),
        case("read, as a replay does", move || read(&stored)),
    ];
    Group { name, is_compared: false, cases }
}
