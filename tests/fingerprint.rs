//! Which parameters are the same and which are not; and that the bytes never change.

use std::collections::{BTreeMap, HashMap};

use pgonce::{ErrorKind, Fingerprint};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

/// Computed from the table in `src/canonical.rs` by a program of its own, not by this crate. Never edit one: stored
/// fingerprints must stay readable. A new encoding gets a new version byte and vectors of its own.
const GOLDEN: &[(&str, &str)] = &[
    (r#"null"#, "011b16b1df538ba12dc3f97edbb85caa7050d46c148134290feba80f8236c83db9"),
    (r#"true"#, "01e3b98a4da31a127d4bde6e43033f66ba274cab0eb7eb1c70ec41402bf6273dd8"),
    (r#"false"#, "01252f10c83610ebca1a059c0bae8255eba2f95be4d1d7bcfa89d7248a82d9f111"),
    (r#"0"#, "0141d0079d17539c0209e0314a73e7d3d2ae44bd0cfccfeeec5a274463f7a1f47e"),
    (r#"-1"#, "01aed0645ba34fc9538e6623c5c6f29871bb720e48c3d8cd8ff14032344f8186df"),
    (r#"9007199254740992"#, "01db52bce8fc3e1ddcbc0c9b1a4d903854bc605acf4a4e7b2c4e5a8ac5ee3a15c7"),
    (r#"9007199254740993"#, "01fcf96434c23ac5009fca3c6c13d6eba14170517629695182cb33b5d783537cb4"),
    (r#"18446744073709551615"#, "0150b7c11d94aa81b21e43c8b2572d2408684b055e7df3870803b5cad926d4512b"),
    (r#"-9223372036854775808"#, "01c2ed47236f857d53161b44dd3a0c49af777c3c4c93afead15d45a403d0baeabc"),
    (r#"1.0"#, "018384008b5f4ebe1cc9c6c71a11800bc002129fae5b623f6310a6c5207d3c8202"),
    (r#"0.1"#, "016c94b385197a648952006951ad2b7e81296347ccc422e0ec89dcc61d25e1a5df"),
    (r#"0.0"#, "01019f76127757f5d29dd33fbdca211fdc0ece9b093995fdb2706a5a8805c0e2b9"),
    (r#"-0.0"#, "01c12f5201a213e59beeca38c52fafd1cd5e7a7012be7acbdc5aecbd93f4d0949a"),
    (r#"-0"#, "01c12f5201a213e59beeca38c52fafd1cd5e7a7012be7acbdc5aecbd93f4d0949a"),
    (r#"1e2"#, "01999d27875bc00c0d265a66cce409c6c179d616d375f159eb018e3c042f65691e"),
    (r#"1.10"#, "01a22310d6b07261fafb730e0cdb5bbb432fa24f425402f64b813673849f5af18a"),
    (r#"5e-324"#, "014ecd2d6ea6fac4b3e31a7b41fbf74c05a552da9388f7c1e5c3d1cebd4625b29b"),
    (r#"1.7976931348623157e308"#, "014bb86884006c925e3212956bde24c89283bdad28bc0d16c0616979977f6fb3e6"),
    (r#"123456789012345680000"#, "01212d5e9d5682971eaf345abe87cee457e5ed4a83b1e596f022d4bfa7f013793e"),
    (r#""""#, "0176ca65fa532efea2d73e4cb2775f96cfb650d5c8c9dbb78594a01f4cf8bb3bfe"),
    (r#""1""#, "01393d93d857e3fe04dcf387f143da964eddb029ec0ced66e9cf1ea248327e7fb6"),
    (r#""a\u0000b""#, "01272631c15a5453a4b2ca2cbb70cf11cf4f15551bed677ec255ad025413295b6a"),
    (r#""ü🦀""#, "013bcd7fa7938fe6ef2fd0779e251048c350e4f8f58905a2217d964bdc4b35bd3c"),
    (r#"[]"#, "015ab640fad553cbf927dc96b8e7878a9844b2fa79b7a4f5c515e186970ec53027"),
    (r#"[[]]"#, "01680f4a9ab7ab2d2a894aa10635e7cc050a4806176d131daa382ee57055cb8d78"),
    (r#"[null]"#, "0154a1639ca924f00008d3010144871cdf313ed9a2a5ce183ebcec74d5f503ad85"),
    (r#"{}"#, "01e28f287437f2222f4b78e43071170b14c92f4c193ae313ac56afd028974c277c"),
    (r#"{"":null}"#, "012a63569cb498b972ea5505e296b2e49db5472d8b69e308cb85d90455119691c1"),
    (
        r#"{"b":1,"a":[true,false,null]}"#,
        "0120c976a980b9806d8db9633d54fbb27f3ecd366afb0f42ae996b1c9c21851fb4",
    ),
    (
        r#"{"amount":4200,"currency":"EUR","card":{"number":"4242","exp":[12,2030]},"note":null}"#,
        "013bdfb523a228ba638f1d613acd25764f17a21636d9a21995225e4b8d8b890df9",
    ),
];

fn of<T: Serialize + ?Sized>(value: &T) -> Fingerprint {
    Fingerprint::of(value).unwrap()
}

#[test]
fn golden_vectors() {
    for (text, expected) in GOLDEN {
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(of(&value).to_string(), *expected, "{text}");
    }
}

#[test]
fn a_golden_value_has_the_fingerprint_of_its_text() {
    for (text, expected) in GOLDEN {
        assert_eq!(Fingerprint::of_json(text.as_bytes()).unwrap().to_string(), *expected, "{text}");
    }
}

#[test]
fn a_float_with_two_shortest_spellings_has_the_fingerprint_of_the_one_that_is_written() {
    // Exactly .625; serde_json writes .62, and Rust .63.
    let value = 231_532_908_877_981.62_f64;
    let text = serde_json::to_string(&value).unwrap();
    assert_eq!(text, "231532908877981.62");
    assert_eq!(of(&serde_json::from_str::<Value>(&text).unwrap()), of(&value));
    assert_eq!(Fingerprint::of_json(text.as_bytes()).unwrap(), of(&value));
}

/// Computed by a program of its own, too: `b`, the length, the bytes.
#[test]
fn bytes_have_golden_fingerprints_and_every_byte_counts() {
    let golden: [(&[u8], &str); 3] = [
        (b"", "01899b80c8dc11d5c2a65d67a4c3b6f3bebd2a1e990a9f79ac3d3c380533bb7c08"),
        (b"42 EUR", "01d13c1ae0517ad45ffadbb210b1e1a37d1f584b00abfa5332f6495371cd132f84"),
        (b"\x00\xff", "01fbc3f7aff29fa2899d772c7405432058630ff59650d4eeeda67e2b6192f4201a"),
    ];
    for (bytes, expected) in golden {
        assert_eq!(Fingerprint::of_bytes(bytes).to_string(), expected, "{bytes:?}");
        assert_eq!(of(&serde_bytes::Bytes::new(bytes)), Fingerprint::of_bytes(bytes));
    }
    for other in [&b"42 EUR "[..], b"42 eur", b"42\0EUR", b"\"42 EUR\""] {
        assert_ne!(Fingerprint::of_bytes(other), Fingerprint::of_bytes(b"42 EUR"));
    }
    assert_ne!(of("42 EUR"), Fingerprint::of_bytes(b"42 EUR"), "a text is no bytes");
}

#[test]
fn the_golden_values_are_all_different() {
    let mut seen = HashMap::new();
    for (text, fingerprint) in GOLDEN {
        if let Some(other) = seen.insert(fingerprint, text) {
            assert_eq!((*other, *text), ("-0.0", "-0"));
        }
    }
}

#[derive(Serialize)]
struct Card {
    number: &'static str,
    exp: (u8, u16),
}

#[derive(Serialize)]
struct Charge {
    note: Option<String>,
    card: Card,
    currency: &'static str,
    amount: u32,
}

#[test]
fn a_struct_is_the_map_that_it_looks_like() {
    let charge =
        Charge { note: None, card: Card { number: "4242", exp: (12, 2030) }, currency: "EUR", amount: 4200 };
    assert_eq!(of(&charge).to_string(), GOLDEN.last().unwrap().1);
    assert_eq!(of(&charge), of(&serde_json::to_value(&charge).unwrap()));
}

#[test]
fn the_order_of_a_map_does_not_matter() {
    let forward: Vec<(String, u32)> = (0..1000).map(|n| (format!("key {n}"), n)).collect();
    let sorted: BTreeMap<_, _> = forward.iter().cloned().collect();
    let expected = of(&sorted);
    for _ in 0..10 {
        // Each HashMap has an order of its own.
        let map: HashMap<_, _> = forward.iter().rev().cloned().collect();
        assert_eq!(of(&map), expected);
    }
    let value = |text| of(&serde_json::from_str::<Value>(text).unwrap());
    assert_eq!(value(r#"{"a":{"x":1,"y":2},"b":3}"#), value(r#"{ "b": 3, "a": {"y":2,"x":1} }"#));
    // That of an array does.
    assert_ne!(of(&[1, 2]), of(&[2, 1]));
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Method {
    Card,
    Bank(u32),
    Pair(u8, u8),
    Wallet { name: &'static str, id: u8 },
}

#[test]
fn every_shape_of_serde_is_what_json_makes_of_it() {
    #[derive(Serialize)]
    struct Unit;
    #[derive(Serialize)]
    struct Newtype(u8);
    #[derive(Serialize)]
    struct Tuple(u8, &'static str);
    let same: [(Fingerprint, Value); 14] = [
        (of(&Method::Card), json!("card")),
        (of(&Method::Bank(7)), json!({"bank": 7})),
        (of(&Method::Pair(1, 2)), json!({"pair": [1, 2]})),
        (of(&Method::Wallet { name: "n", id: 1 }), json!({"wallet": {"id": 1, "name": "n"}})),
        (of(&Unit), json!(null)),
        (of(&()), json!(null)),
        (of(&Newtype(3)), json!(3)),
        (of(&Tuple(3, "x")), json!([3, "x"])),
        (of(&Some(3)), json!(3)),
        (of(&None::<u8>), json!(null)),
        (of(&'c'), json!("c")),
        (of(&1.5_f32), json!(1.5)),
        (of(&-3_i8), json!(-3)),
        (of(&[1_u64, 2]), json!([1, 2])),
    ];
    for (fingerprint, value) in same {
        assert_eq!(fingerprint, of(&value), "{value}");
    }
}

#[test]
fn different_values_do_not_meet() {
    #[derive(Serialize)]
    struct Optional {
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<Option<u8>>,
    }
    let all = [
        of(&1),
        of("1"),
        of(&1.0),
        of(&true),
        of(&[1]),
        of(&(1, 1)),
        of(&0.0),
        of(&-0.0),
        of(&0),
        of(&(1_u64 << 53)),
        of(&((1_u64 << 53) + 1)),
        of(&((1_u64 << 53) as f64)),
        of(&u64::MAX),
        of(&i128::MIN),
        of(&i128::MAX),
        of(&(i128::MAX as u128 + 1)),
        of(&u128::MAX),
        of(&Optional { note: None }),
        of(&Optional { note: Some(None) }),
        of(&Optional { note: Some(Some(0)) }),
        of(&["ab", "c"]),
        of(&["a", "bc"]),
        of(&["abc"]),
        of(&[["a"], ["b"]]),
        of(&[["a", "b"]]),
        of(&serde_bytes::Bytes::new(b"abc")),
        of(b"abc"),
        of("abc"),
        of(&BTreeMap::from([(1, "a")])),
        of(&BTreeMap::from([("1", "a")])),
        of(&0.1_f32),
        of(&0.1_f64),
        of("."),
        of("n"),
    ];
    for (n, one) in all.iter().enumerate() {
        for (m, other) in all.iter().enumerate().skip(n + 1) {
            assert_ne!(one, other, "values {n} and {m} have the same fingerprint");
        }
    }
}

#[test]
fn a_key_that_stands_twice_is_not_a_key_that_stands_once() {
    struct Pairs(&'static [(&'static str, u8)]);
    impl Serialize for Pairs {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            for (key, value) in self.0 {
                map.serialize_entry(key, value)?;
            }
            map.end()
        }
    }
    let once = of(&Pairs(&[("a", 2)]));
    let twice = of(&Pairs(&[("a", 1), ("a", 2)]));
    let swapped = of(&Pairs(&[("a", 2), ("a", 1)]));
    assert!(once != twice && twice != swapped && once != swapped);
    assert_eq!(twice.to_string(), "011c42075264e8217f3fada78cef21f7be0319a38f18af865f800a193e46c7767d");
    let between = of(&Pairs(&[("a", 1), ("b", 0), ("a", 2)]));
    assert_eq!(
        between,
        of(&Pairs(&[("b", 0), ("a", 1), ("a", 2)])),
        "the order among others does not matter"
    );
}

#[test]
fn what_json_cannot_hold_is_refused() {
    #[derive(Serialize)]
    struct Rate {
        rate: f64,
    }
    for rate in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let error = Fingerprint::of(&Rate { rate }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Encode);
        assert!(error.to_string().contains("parameters"), "{error}");
    }
    assert_eq!(Fingerprint::of(&f32::NAN).unwrap_err().kind(), ErrorKind::Encode);
}

#[test]
fn nesting_is_bounded() {
    let value = |levels: usize| (1..levels).fold(json!([]), |value, _| json!([value]));
    assert_ne!(of(&value(100)), of(&value(101)));
    assert_ne!(of(&value(127)), of(&value(128)));
    for levels in [129, 200, 1000] {
        let error = Fingerprint::of(&value(levels)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Encode);
        assert!(error.to_string().contains("128 levels"), "{error}");
    }
}

#[test]
fn a_lone_surrogate_is_refused_or_kept_but_never_replaced() {
    // No string and no JSON value can hold one, so serde_json refuses it before pgonce sees it; bytes can.
    serde_json::from_str::<Value>(r#"{"name":"\ud800"}"#).unwrap_err();
    let bytes: serde_bytes::ByteBuf = serde_json::from_str(r#""\ud800""#).unwrap();
    assert_ne!(of(&bytes), of(&serde_bytes::ByteBuf::from("\u{fffd}")));
    assert_ne!(of(&bytes), of("\u{fffd}"));
}

#[test]
fn a_megabyte_is_no_problem() {
    let one = "x".repeat(1024 * 1024);
    let mut other = one.clone();
    other.pop();
    other.push('y');
    assert_ne!(of(&one), of(&other));
    let list: Vec<u32> = (0..200_000).collect();
    assert_eq!(of(&list), of(&serde_json::to_value(&list).unwrap()));
}

#[test]
fn a_serialize_that_fails_is_an_error() {
    struct Broken;
    impl Serialize for Broken {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("the file is gone"))
        }
    }
    let error = Fingerprint::of(&Broken).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Encode);
    assert!(error.to_string().contains("the file is gone"), "{error}");
}

#[test]
fn the_bytes_are_a_version_and_a_digest() {
    let fingerprint = of(&1);
    assert_eq!(fingerprint.as_bytes().len(), Fingerprint::LEN);
    assert_eq!(fingerprint.as_bytes()[0], 1);
    assert_eq!(format!("{fingerprint:?}"), format!("Fingerprint({fingerprint})"));
}
