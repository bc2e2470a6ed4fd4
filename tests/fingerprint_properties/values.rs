//! Values: the fingerprint of a value is that of its text, and any change shows.

use pgonce::Fingerprint;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Number, Value, json};

fn value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        // Every float there is: also -0.0, denormal ones and the largest.
        any::<u64>()
            .prop_filter_map("no number", |bits| Number::from_f64(f64::from_bits(bits)))
            .prop_map(Value::Number),
        // Halfway between two spellings that are both the shortest.
        (0_i64..1 << 53, 0..8).prop_map(|(n, halvings)| Value::from(n as f64 / f64::from(1 << halvings))),
        (-1000_i32..1000).prop_map(|n| Value::from(f64::from(n) / 100.0)),
    ];
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::Bool),
        4 => number,
        3 => "(?s:.{0,12})".prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::Array),
            vec(("(?s:.{0,4})", inner), 0..6).prop_map(|entries| Value::Object(Map::from_iter(entries))),
        ]
    })
}

proptest! {
    #[test]
    fn a_value_and_its_text_have_one_fingerprint(value in value(), levels in 0_usize..123) {
        let value = (0..levels).fold(value, |value, n| if n % 2 == 0 { json!([value]) } else { json!({"": value}) });
        let expected = Fingerprint::of(&value).unwrap();
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            prop_assert_eq!(Fingerprint::of_json(text.as_bytes()).unwrap(), expected, "{}", text);
        }
    }

    #[test]
    fn a_change_anywhere_changes_the_fingerprint(original in value(), at: Index, how: Index) {
        let mut changed = original.clone();
        let mut places = Vec::new();
        each_place(&mut changed, &mut Vec::new(), &mut places);
        change(place(&mut changed, &places[at.index(places.len())]), how);
        prop_assert_ne!(Fingerprint::of(&original).unwrap(), Fingerprint::of(&changed).unwrap(), "{} and {}", original, changed);
    }
}

/// The ways to every value in it, as positions.
fn each_place(value: &mut Value, way: &mut Vec<usize>, found: &mut Vec<Vec<usize>>) {
    found.push(way.clone());
    for n in 0..children(value).len() {
        way.push(n);
        each_place(children(value)[n], way, found);
        way.pop();
    }
}

fn place<'a>(value: &'a mut Value, way: &[usize]) -> &'a mut Value {
    way.iter().fold(value, |value, n| children(value).swap_remove(*n))
}

fn children(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Array(elements) => elements.iter_mut().collect(),
        Value::Object(entries) => entries.values_mut().collect(),
        _ => Vec::new(),
    }
}

/// Makes another value of it, in a small way.
fn change(value: &mut Value, how: Index) {
    match value {
        Value::Null => {
            *value = [json!(false), json!(0), json!(""), json!([]), json!({})][how.index(5)].clone()
        }
        Value::Bool(flag) => *flag = !*flag,
        Value::Number(number) => {
            let (integer, float) = (number.as_u64(), number.as_f64());
            *value = match (how.index(3), integer, float) {
                (0, ..) => Value::String(number.to_string()),
                (1, Some(integer), _) => json!(integer ^ 1),
                (2, Some(integer), _) => json!(integer as f64),
                (_, _, Some(float)) => json!(f64::from_bits(float.to_bits() ^ 1)),
                _ => Value::Null,
            };
        }
        Value::String(text) => match (how.index(3), text.pop()) {
            (0, Some(last)) if last != 'x' => text.push('x'),
            (1, Some(last)) => text.extend([last, '\0']),
            (2, Some(last)) => *value = json!([format!("{text}{last}")]),
            (_, Some(_)) => {}
            (_, None) => text.push(' '),
        },
        Value::Array(elements) => match (how.index(3), elements.len()) {
            (0, 1..) => drop(elements.pop()),
            (1, 2..) if elements[0] != elements[1] => elements.swap(0, 1),
            (2, _) => *value = json!([value]),
            _ => elements.push(Value::Null),
        },
        Value::Object(entries) => match (how.index(3), entries.keys().next().cloned()) {
            (0, Some(key)) => drop(entries.remove(&key)),
            (1, Some(key)) => {
                let moved = entries.remove(&key).expect("it is there");
                entries.insert(format!("{key}{}", "x".repeat(9)), moved);
            }
            (2, _) => *value = json!([value]),
            _ => drop(entries.insert("a key that none has".into(), Value::Null)),
        },
    }
}
