//! The canonical encoding below a [`Fingerprint`](crate::Fingerprint), version 1. Private.
//!
//! A prefix-free byte code, so that different values cannot meet: every value starts with a tag, and whatever has a
//! length says it or ends with a tag of its own.
//!
//! | value | bytes |
//! | --- | --- |
//! | null, false, true | `n`, `f`, `t` |
//! | integer | `i`, 16 bytes (two's complement); above `i128::MAX` `u`, 16 bytes |
//! | float | `d`, the 8 bytes of the `f64` |
//! | a number that an `f64` would round | `D`, length, sign, digits, `e`, exponent |
//! | string, bytes, raw JSON text | `s`, `b` or `r`, length, bytes |
//! | array | `a`, elements, `.` |
//! | map | `m`, entries sorted by their encoded key, `.`; equal keys stay in their order |
//!
//! Lengths and numbers are big-endian, lengths have 8 bytes.

mod json;
mod number;
mod write;

use std::fmt;

pub(crate) use json::Json;

/// serde_json's own limit; deeper values could be written and never be read again.
const MAX_DEPTH: usize = 128;

/// The names under which serde_json hides a number (feature `arbitrary_precision`) and a raw text (`raw_value`).
const NUMBER_TOKEN: &str = "$serde_json::private::Number";
const RAW_TOKEN: &str = "$serde_json::private::RawValue";

/// Takes values and holds their encoding. `&mut Encoder` is a [`serde::Serializer`].
#[derive(Default)]
pub(crate) struct Encoder {
    out: Vec<u8>,
    depth: usize,
}

impl Encoder {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.out
    }

    pub(crate) fn null(&mut self) {
        self.out.push(b'n');
    }

    fn bool(&mut self, value: bool) {
        self.out.push(if value { b't' } else { b'f' });
    }

    fn text(&mut self, tag: u8, bytes: &[u8]) {
        self.out.push(tag);
        self.out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.out.extend_from_slice(bytes);
    }

    fn string(&mut self, text: &str) {
        self.text(b's', text.as_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.text(b'b', bytes);
    }

    fn integer(&mut self, value: i128) {
        self.out.push(b'i');
        self.out.extend_from_slice(&value.to_be_bytes());
    }

    fn float(&mut self, value: f64) -> Result<(), Error> {
        if !value.is_finite() {
            return Err(Error(format!("{value} is not a number that JSON can hold")));
        }
        self.out.push(b'd');
        self.out.extend_from_slice(&value.to_bits().to_be_bytes());
        Ok(())
    }

    fn enter(&mut self, tag: u8) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error(format!("it is nested deeper than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        self.out.push(tag);
        Ok(())
    }

    fn leave(&mut self) {
        self.depth -= 1;
        self.out.push(b'.');
    }
}

/// The entries of a map while it is being written: where each key, its value and the entry's end lie.
pub(crate) struct Entries {
    start: usize,
    /// Start of the key, start of the value, end of the entry.
    entries: Vec<(usize, usize, usize)>,
}

impl Entries {
    fn begin(encoder: &mut Encoder) -> Result<Self, Error> {
        encoder.enter(b'm')?;
        Ok(Self { start: encoder.out.len(), entries: Vec::new() })
    }

    fn key(&mut self, encoder: &Encoder) {
        let here = encoder.out.len();
        self.entries.push((here, here, here));
    }

    fn value(&mut self, encoder: &Encoder) {
        if let Some(entry) = self.entries.last_mut() {
            entry.1 = encoder.out.len();
        }
    }

    fn value_done(&mut self, encoder: &Encoder) {
        if let Some(entry) = self.entries.last_mut() {
            entry.2 = encoder.out.len();
        }
    }

    fn end(mut self, encoder: &mut Encoder) {
        let out = &encoder.out;
        let key = |&(key, value, _): &(usize, usize, usize)| &out[key..value];
        if !self.entries.is_sorted_by_key(key) {
            // Stable, so that equal keys keep their order.
            self.entries.sort_by(|a, b| key(a).cmp(key(b)));
            let sorted =
                self.entries.iter().map(|&(key, _, end)| &out[key..end]).collect::<Vec<_>>().concat();
            encoder.out.truncate(self.start);
            encoder.out.extend_from_slice(&sorted);
        }
        encoder.leave();
    }
}

/// Why a value has no encoding.
#[derive(Debug)]
pub(crate) struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}
