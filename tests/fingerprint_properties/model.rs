//! JSON as it is compared, in the plainest form: two texts are the same parameters when their models are equal. Independent of
//! pgonce and of serde_json.

use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// Written with digits alone, and no more than 64 bits.
    Integer(i128),
    Decimal(Decimal),
    String(String),
    Array(Vec<Json>),
    /// Sorted by key; equal keys in their order.
    Object(Vec<(String, Json)>),
}

/// `±digits × 10^exponent`; the digits neither begin nor end with a zero, and zero has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Decimal {
    pub negative: bool,
    pub digits: String,
    pub exponent: i64,
}

impl Decimal {
    pub fn new(negative: bool, digits: &str, exponent: i64) -> Self {
        let digits = digits.trim_start_matches('0');
        let significant = digits.trim_end_matches('0');
        let exponent = match significant {
            "" => 0,
            _ => exponent + (digits.len() - significant.len()) as i64,
        };
        Self { negative, digits: significant.into(), exponent }
    }
}

impl Json {
    pub fn object(mut entries: Vec<(String, Json)>) -> Self {
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self::Object(entries)
    }
}

/// Two from so few parts that equal ones, and ones that nearly are, come often.
pub fn pair() -> impl Strategy<Value = (Json, Json)> {
    let number = similar_number().boxed();
    let text = similar_text().prop_map(Json::String).boxed();
    let entry = ("[ab]", (0_i128..2).prop_map(Json::Integer));
    let object = vec(entry, 0..4).prop_map(Json::object).boxed();
    let mixed = json(number.clone(), similar_text().boxed(), 2).boxed();
    let nested = Just(Json::Null).prop_recursive(3, 8, 2, |inner| vec(inner, 0..=2).prop_map(Json::Array));
    let two = |one: BoxedStrategy<Json>| (one.clone(), one);
    prop_oneof![two(number), two(text), two(object), two(nested.boxed()), two(mixed)]
}

/// Anything.
pub fn anything() -> impl Strategy<Value = Json> {
    let integer = any_integer().prop_map(Json::Integer);
    let decimal = (any::<bool>(), "[0-9]{1,40}", -400_i64..400)
        .prop_map(|(negative, digits, exponent)| Json::Decimal(Decimal::new(negative, &digits, exponent)));
    json(prop_oneof![integer, decimal].boxed(), "\\PC{0,12}|(?s:.{0,6})".boxed(), 6)
}

fn json(
    number: BoxedStrategy<Json>,
    text: BoxedStrategy<String>,
    width: usize,
) -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        1 => Just(Json::Null),
        1 => any::<bool>().prop_map(Json::Bool),
        3 => number,
        2 => text.clone().prop_map(Json::String),
    ];
    leaf.prop_recursive(4, 24, width as u32, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..=width).prop_map(Json::Array),
            vec((text.clone(), inner), 0..=width).prop_map(Json::object),
        ]
    })
}

fn any_integer() -> impl Strategy<Value = i128> {
    prop_oneof![any::<i64>().prop_map(i128::from), any::<u64>().prop_map(i128::from), -2_i128..3]
}

fn similar_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a1\"\\\\/]{0,2}", "[\u{0}\n\u{fffd}\u{10000}]{0,1}"]
}

/// Around what an integer of 64 bits and an `f64` can hold.
fn similar_number() -> impl Strategy<Value = Json> {
    let edges = [0, 1, -1, 10, 1 << 53, (1 << 53) + 1, i64::MIN.into(), u64::MAX.into()];
    let decimals = [
        ("0", 0),
        ("1", 0),
        ("1", 1),
        ("1", -1),
        // 0.1, its neighbour as an f64, and one between them.
        ("10000000000000002", -17),
        ("10000000000000001", -17),
        ("9007199254740992", 0),
        ("9007199254740993", 0),
        ("18446744073709551615", 0),
        ("18446744073709551616", 0),
        ("1", 400),
        ("1", 401),
        ("1", -400),
        ("5", -324),
        ("49406564584124654", -340),
    ];
    prop_oneof![
        proptest::sample::select(edges.to_vec()).prop_map(Json::Integer),
        (any::<bool>(), proptest::sample::select(decimals.to_vec())).prop_map(
            |(negative, (digits, exponent))| Json::Decimal(Decimal::new(negative, digits, exponent))
        ),
    ]
}
