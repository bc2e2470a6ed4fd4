//! Texts: two are the same parameters exactly when they say the same, however they are written.

use fastrand::Rng;
use pgonce::Fingerprint;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::Value;

use crate::model::{self, Decimal, Json};

fn of_text(text: &str) -> Fingerprint {
    Fingerprint::of_json(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_order_of_keys_white_space_escapes_and_the_spelling_of_numbers_do_not_matter(
        json in model::anything(), seed: u64, other: u64,
    ) {
        let (one, two) = (Writer::new(seed).text(&json), Writer::new(other).text(&json));
        prop_assert_eq!(of_text(&one), of_text(&two), "{} and {}", one, two);
    }

    #[test]
    fn texts_that_say_different_things_are_told_apart((one, other) in model::pair(), seed: u64) {
        let mut writer = Writer::new(seed);
        let texts = (writer.text(&one), writer.text(&other));
        prop_assert_eq!(of_text(&texts.0) == of_text(&texts.1), one == other, "{} and {}", texts.0, texts.1);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..64)) {
        let _ = Fingerprint::of_json(&bytes);
    }

    #[test]
    fn what_looks_like_json_is_taken_exactly_when_it_is(text in "[\\[\\]{}\",:\\\\ue0123D8.+\\- \ntrufalsn]{0,24}") {
        check_against_serde_json(text.as_bytes())?;
    }

    #[test]
    fn a_text_with_a_byte_changed_is_taken_exactly_when_it_is_json(
        json in model::anything(), seed: u64, at: proptest::sample::Index, byte: u8,
    ) {
        let mut text = Writer::new(seed).text(&json).into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        check_against_serde_json(&text)?;
    }

    #[test]
    fn a_text_may_be_128_levels_deep(kinds in vec(any::<bool>(), 125..=131)) {
        let open = kinds.iter().map(|array| if *array { "[" } else { "{\"\":" });
        let close = kinds.iter().rev().map(|array| if *array { "]" } else { "}" });
        let text: String = open.chain(["0"]).chain(close).collect();
        prop_assert_eq!(Fingerprint::of_json(text.as_bytes()).is_ok(), kinds.len() <= 128);
    }
}

#[test]
fn a_text_may_be_much_wider_than_it_may_be_deep() {
    for sibling in ["[],", "{},", "[[]],", "{\"a\":[]},"] {
        of_text(&format!("[{}0]", sibling.repeat(1000)));
    }
}

/// What serde_json can hold has a fingerprint, and what is no JSON has none.
fn check_against_serde_json(text: &[u8]) -> Result<(), TestCaseError> {
    let fingerprint = Fingerprint::of_json(text);
    match serde_json::from_slice::<Value>(text) {
        Ok(_) => prop_assert!(fingerprint.is_ok()),
        // A number is beyond an f64: pgonce takes it, digit by digit. (Or a string is none, which neither takes.)
        Err(_) if serde_json::from_slice::<&serde_json::value::RawValue>(text).is_ok() => {}
        Err(_) => prop_assert!(fingerprint.is_err()),
    }
    Ok(())
}

/// Writes a model in one of its many forms.
struct Writer(Rng);

impl Writer {
    fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    fn text(&mut self, json: &Json) -> String {
        let value = match json {
            Json::Null => "null".into(),
            Json::Bool(value) => value.to_string(),
            Json::Integer(value) => value.to_string(),
            Json::Decimal(decimal) => self.decimal(decimal),
            Json::String(text) => self.string(text),
            Json::Array(elements) => {
                let elements: Vec<_> = elements.iter().map(|element| self.text(element)).collect();
                format!("[{}{}]", self.space(), elements.join(","))
            }
            Json::Object(entries) => {
                let entries: Vec<_> =
                    self.shuffled(entries).into_iter().map(|entry| self.entry(entry)).collect();
                format!("{{{}{}}}", self.space(), entries.join(","))
            }
        };
        format!("{}{value}{}", self.space(), self.space())
    }

    fn entry(&mut self, (key, value): &(String, Json)) -> String {
        format!("{}{}{}:{}", self.space(), self.string(key), self.space(), self.text(value))
    }

    /// In any order, but equal keys in theirs.
    fn shuffled<'a>(&mut self, entries: &'a [(String, Json)]) -> Vec<&'a (String, Json)> {
        let mut groups: Vec<&[_]> = entries.chunk_by(|(a, _), (b, _)| a == b).collect();
        let mut shuffled = Vec::new();
        while !groups.is_empty() {
            let group = self.0.usize(..groups.len());
            shuffled.push(&groups[group][0]);
            groups[group] = &groups[group][1..];
            groups.retain(|group| !group.is_empty());
        }
        shuffled
    }

    fn string(&mut self, text: &str) -> String {
        let mut out = String::from("\"");
        for c in text.chars() {
            match (c, self.0.u8(..4)) {
                ('"' | '\\' | '\0'..'\u{20}', _) | (_, 0) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out +=
                            &if self.0.bool() { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") };
                    }
                }
                ('/', 1) => out += "\\/",
                _ => out.push(c),
            }
        }
        out + "\""
    }

    /// Never with digits alone where that would be an integer.
    fn decimal(&mut self, Decimal { negative, digits, exponent }: &Decimal) -> String {
        if *negative && digits.is_empty() && self.0.bool() {
            return "-0".into();
        }
        let sign = if *negative { "-" } else { "" };
        let digits = if digits.is_empty() { "0" } else { digits };
        // Zeros behind, and then a point anywhere.
        let zeros = self.0.usize(..4);
        let digits = format!("{digits}{}", "0".repeat(zeros));
        let point = self.0.usize(..=digits.len());
        let exponent = exponent - zeros as i64 + (digits.len() - point) as i64;
        let (whole, fraction) = digits.split_at(point);
        let whole = match whole.trim_start_matches('0') {
            "" => "0",
            whole => whole,
        };
        let mantissa = if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") };
        match exponent {
            0 if !fraction.is_empty() || whole.len() > 20 => format!("{sign}{mantissa}"),
            0.. => format!("{sign}{mantissa}{}{exponent}", self.one_of(&["e", "E", "e+", "E+0"])),
            _ => format!("{sign}{mantissa}{}{exponent}", self.one_of(&["e", "E"])),
        }
    }

    fn space(&mut self) -> &'static str {
        self.one_of(&["", "", "", " ", "\n", "\t", "\r\n  "])
    }

    fn one_of(&mut self, all: &[&'static str]) -> &'static str {
        all[self.0.usize(..all.len())]
    }
}
