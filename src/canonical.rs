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

mod entries;
mod json;
mod number;
mod write;

use std::fmt;

use entries::Entry;
pub(crate) use json::Json;

/// serde_json's own limit; deeper values could be written and never be read again.
const MAX_DEPTH: usize = 128;

/// The names under which serde_json hides a number (feature `arbitrary_precision`) and a raw text (`raw_value`).
const NUMBER_TOKEN: &str = "$serde_json::private::Number";
const RAW_TOKEN: &str = "$serde_json::private::RawValue";

/// The encoding of null.
pub(crate) const NULL: &[u8] = b"n";

/// What stands before a text or bytes of this length.
pub(crate) fn head(tag: u8, len: usize) -> [u8; 9] {
    let mut head = [tag; 9];
    head[1..].copy_from_slice(&(len as u64).to_be_bytes());
    head
}

/// Takes values and holds their encoding. `&mut Encoder` is a [`serde::Serializer`].
pub(crate) struct Encoder {
    out: Vec<u8>,
    depth: usize,
    /// Of the maps that are being written, the innermost one's last.
    entries: Vec<Entry>,
}

impl Default for Encoder {
    fn default() -> Self {
        // Enough for most parameters, and for a copy of them in order.
        Self { out: Vec::with_capacity(4096), depth: 0, entries: Vec::with_capacity(16) }
    }
}

impl Encoder {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.out
    }

    fn null(&mut self) {
        self.out.extend_from_slice(NULL);
    }

    fn bool(&mut self, value: bool) {
        self.out.push(if value { b't' } else { b'f' });
    }

    fn text(&mut self, tag: u8, bytes: &[u8]) {
        self.out.reserve(9 + bytes.len());
        self.out.extend_from_slice(&head(tag, bytes.len()));
        self.out.extend_from_slice(bytes);
    }

    fn string(&mut self, text: &str) {
        self.text(b's', text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.text(b'b', bytes);
    }

    fn integer(&mut self, value: i128) {
        self.fixed(b'i', value.to_be_bytes());
    }

    fn float(&mut self, value: f64) -> Result<(), Error> {
        if !value.is_finite() {
            return Err(Error(format!("{value} is not a number that JSON can hold").into()));
        }
        self.fixed(b'd', value.to_bits().to_be_bytes());
        Ok(())
    }

    fn fixed<const LEN: usize>(&mut self, tag: u8, bytes: [u8; LEN]) {
        self.out.reserve(1 + LEN);
        self.out.push(tag);
        self.out.extend_from_slice(&bytes);
    }

    fn enter(&mut self, tag: u8) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error(format!("it is nested deeper than {MAX_DEPTH} levels").into()));
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

/// Why a value has no encoding.
#[derive(Debug)]
pub(crate) struct Error(Box<str>);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string().into())
    }
}
