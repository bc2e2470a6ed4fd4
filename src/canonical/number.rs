//! Numbers that arrive as text.

use super::{Encoder, Error};

impl Encoder {
    /// A number as serde_json keeps it under `arbitrary_precision`.
    ///
    /// Gives the bytes that the same number has without that feature, where it survives without it; a number that
    /// an `f64` would round keeps its digits.
    pub(super) fn number(&mut self, text: &str) -> Result<(), Error> {
        if text != "-0" {
            if let Ok(value) = text.parse::<i64>() {
                self.integer(value.into());
                return Ok(());
            }
            if let Ok(value) = text.parse::<u64>() {
                self.integer(value.into());
                return Ok(());
            }
        }
        let exact = Decimal::parse(text)
            .ok_or_else(|| Error("a number is not written as JSON writes numbers".into()))?;
        match text.parse::<f64>() {
            Ok(value) if as_written(value).as_ref() == Some(&exact) => self.float(value),
            _ => {
                self.text(b'D', exact.to_string().as_bytes());
                Ok(())
            }
        }
    }
}

/// The digits that serde_json gives a float. Of two spellings that are as short and as near, Rust's own may be the other one.
fn as_written(value: f64) -> Option<Decimal> {
    Decimal::parse(&serde_json::Number::from_f64(value)?.to_string())
}

/// `±0.d₁d₂… × 10^exponent`, without zeros at either end.
#[derive(PartialEq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i128,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let without_lead = all.trim_start_matches('0');
        let digits = without_lead.trim_end_matches('0');
        if digits.is_empty() {
            return Some(Self { negative, digits: String::new(), exponent: 0 });
        }
        let lead = all.len() - without_lead.len();
        let exponent = i128::from(exponent) + whole.len() as i128 - lead as i128;
        Some(Self { negative, digits: digits.to_owned(), exponent })
    }
}

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.negative { "-" } else { "+" };
        write!(f, "{sign}{}e{}", self.digits, self.exponent)
    }
}
