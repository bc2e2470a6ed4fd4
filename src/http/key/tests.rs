use axum::http::HeaderValue;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What the reader makes of one header with this value. None: refused.
fn read_one(value: &[u8], strict: bool) -> Option<String> {
    let mut headers = HeaderMap::new();
    headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(value).unwrap());
    match read(&headers, strict) {
        Ok(key) => Some(key.expect("there is a header").into()),
        Err(problem) => {
            assert_eq!(problem.kind(), ProblemKind::KeyInvalid);
            None
        }
    }
}

/// RFC 8941, 3.3.3, and the escapes of 4.1.6.
fn quoted(key: &str) -> String {
    format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
}

/// RFC 8941, 4.2 and 4.2.5, step by step: the String that the value begins with, and what is behind it.
fn reference(value: &[u8]) -> Option<(String, &[u8])> {
    let mut input = value;
    while let [b' ', rest @ ..] = input {
        input = rest;
    }
    let [b'"', rest @ ..] = input else { return None };
    input = rest;
    let mut output = String::new();
    loop {
        match input {
            [b'\\', escaped @ (b'"' | b'\\'), rest @ ..] => {
                output.push(char::from(*escaped));
                input = rest;
            }
            [b'"', rest @ ..] => return Some((output, rest)),
            [b'\\', ..] | [..=0x1f | 0x7f.., ..] | [] => return None,
            [plain, rest @ ..] => {
                output.push(char::from(*plain));
                input = rest;
            }
        }
    }
}

fn is_key(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| (b'!'..=b'~').contains(&byte))
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["[!-~]{1,255}", "[\"\\\\a]{1,9}", "[!-~]{254,255}"]
}

/// Whatever a header can hold (the HTTP server lets through no other control character than the tab).
fn value() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => proptest::sample::select(b"\"\\\\; =ab1:?*,\t".to_vec()),
        1 => (b' '..).prop_filter("a control character", |byte| *byte != 0x7f),
    ];
    let long = vec(proptest::sample::select(b"ab\"".to_vec()), 250..260);
    let string = vec(byte.clone(), 0..8).prop_map(|mut bytes| {
        bytes.insert(0, b'"');
        bytes.push(b'"');
        bytes
    });
    prop_oneof![3 => vec(byte, 0..12), 3 => string, 1 => long]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_key_in_quotation_marks_is_read_as_itself(key in key(), strict: bool, blank in " {0,2}") {
        let value = format!("{blank}{}{blank}", quoted(&key));
        prop_assert_eq!(read_one(value.as_bytes(), strict), Some(key));
    }

    #[test]
    fn a_bare_key_is_the_same_key_as_in_quotation_marks(key in key()) {
        prop_assume!(!key.starts_with('"'));
        prop_assert_eq!(read_one(key.as_bytes(), false), read_one(quoted(&key).as_bytes(), false));
        prop_assert_eq!(read_one(key.as_bytes(), true), None, "strict");
    }

    #[test]
    fn parameters_are_ignored(
        key in key(), strict: bool, parameters in "(; {0,2}[a-z*][a-z0-9_.*-]{0,3}(=(-?[0-9]{1,5}|\"[ -!#-\\[\\]-~]{0,3}\"|\\?[01]|[a-z][a-z:/]{0,3}))?){1,3}",
    ) {
        let value = quoted(&key) + &parameters;
        prop_assert_eq!(read_one(value.as_bytes(), strict), Some(key));
    }

    #[test]
    fn strict_means_what_rfc_8941_says(value in value()) {
        let read = read_one(&value, true);
        match reference(&value) {
            None => prop_assert_eq!(read, None),
            Some((text, rest)) => match rest.iter().find(|byte| **byte != b' ') {
                None => prop_assert_eq!(read, Some(text).filter(|text| is_key(text))),
                // Parameters, if they are well-formed.
                Some(b';') if rest[0] == b';' => prop_assert!(read.is_none_or(|read| read == text)),
                Some(_) => prop_assert_eq!(read, None),
            }
        }
    }

    #[test]
    fn what_strict_accepts_is_the_same_key_otherwise(value in value()) {
        if let Some(key) = read_one(&value, true) {
            prop_assert_eq!(read_one(&value, false), Some(key));
        }
    }

    #[test]
    fn a_bare_value_is_taken_as_it_is_or_not_at_all(value in value()) {
        let quoted = value.trim_ascii_start().starts_with(b"\"");
        let text = String::from_utf8_lossy(&value).into_owned();
        let expected = if quoted { read_one(&value, true) } else { Some(text).filter(|text| is_key(text)) };
        prop_assert_eq!(read_one(&value, false), expected);
    }

    #[test]
    fn two_headers_are_one_too_many(one in value(), other in value(), strict: bool) {
        let mut headers = HeaderMap::new();
        for value in [one, other] {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(&value).unwrap());
        }
        prop_assert_eq!(read(&headers, strict).unwrap_err().kind(), ProblemKind::KeyInvalid);
    }
}

#[test]
fn no_header_is_no_key() {
    assert!(read(&HeaderMap::new(), false).unwrap().is_none());
    assert!(read(&HeaderMap::new(), true).unwrap().is_none());
}
