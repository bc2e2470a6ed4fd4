//! The header that holds the key.

use axum::http::HeaderMap;
use sfv::{BareItem, Item, Parser};

use super::IDEMPOTENCY_KEY;
use super::problem::{Problem, ProblemKind};
use crate::IdempotencyKey;

/// Reads the key. None when there is no such header.
///
/// An RFC 8941 String, whose parameters are ignored; and unless `strict`, a bare value, as Stripe's clients send it. A value that
/// begins with a quotation mark is always meant to be a String.
pub(super) fn read(headers: &HeaderMap, strict: bool) -> Result<Option<IdempotencyKey>, Problem> {
    let invalid =
        |reason: String| Problem::new(ProblemKind::KeyInvalid, format!("The {NAME} header {reason}"));
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid("stands in the request more than once. Send it once.".into()));
    }
    let value = value.as_bytes();
    let key = if strict || value.trim_ascii_start().starts_with(b"\"") {
        match Parser::new(value).parse::<Item>() {
            Ok(Item { bare_item: BareItem::String(text), .. }) => String::from(text),
            _ => {
                return Err(invalid(format!(
                    "is no String as RFC 8941 defines it. Put the key into quotation marks: {NAME}: \"{EXAMPLE}\"."
                )));
            }
        }
    } else {
        String::from_utf8_lossy(value).into_owned()
    };
    match IdempotencyKey::try_from(key) {
        Ok(key) => Ok(Some(key)),
        Err(error) => Err(invalid(format!("holds no key. {error}."))),
    }
}

pub(super) fn missing() -> Problem {
    let detail = format!(
        "This endpoint requires an {NAME} header, for example {NAME}: \"{EXAMPLE}\". Make a new key for each request and send \
         the same one with every retry of it."
    );
    Problem::new(ProblemKind::KeyMissing, detail)
}

const NAME: &str = "Idempotency-Key";
const EXAMPLE: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

#[cfg(test)]
mod tests;
