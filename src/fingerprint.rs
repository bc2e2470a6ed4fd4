//! Whether two requests are the same request: [`Fingerprint`].

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::canonical::{self, Encoder, Json};

/// The parameters of an operation, reduced to 33 bytes: a version byte and a SHA-256.
///
/// Parameters are compared **by value**, as JSON would see them: the order of map entries and of struct fields
/// does not matter, nor does white space. Everything else does: `1` is not `"1"`, nor `1.0`; an absent field is not
/// `null`; `-0.0` is not `0.0`; 2⁵³ is not 2⁵³ + 1; a key that stands twice is not a key that stands once. `Some(x)`
/// is `x` and `None` is `null`, as in JSON.
///
/// The bytes are fixed by golden vectors: a new release of pgonce gives the same ones, or a new version byte.
/// `serde_json`'s features `preserve_order` and `arbitrary_precision`, which any crate in the build may switch on,
/// do not change the bytes of a value that can be held without them. With `arbitrary_precision` a `serde_json::Value` can
/// hold numbers that an `f64` would round; these are told apart digit by digit. A `RawValue` is compared as text.
///
/// Not secret: whoever can guess the parameters can check the guess.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Self::LEN]);

impl Fingerprint {
    /// The length in bytes.
    pub const LEN: usize = 33;

    /// SHA-256 over version 1 of the canonical encoding. (2 is meant for a keyed HMAC.)
    const VERSION: u8 = 1;

    /// The fingerprint of any value.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::ErrorKind::Encode) when a float is NaN or infinite (JSON has no such number, and both
    /// would become `null`), when the value is nested deeper than 128 levels, or when its own `Serialize` fails.
    pub fn of<T: Serialize + ?Sized>(parameters: &T) -> Result<Self, Error> {
        Self::of_encoded(|encoder| parameters.serialize(encoder))
    }

    /// The fingerprint of a JSON text, by value: that of the `serde_json::Value` which it is, where one can hold it.
    ///
    /// For parameters that arrive as text, the body of a request or the payload of a message: white space, the order of
    /// an object's keys and the spelling of a number do not matter (`100.0` is `1e2`), and nothing is lost on the way, not the last
    /// digit of a large number nor a key that stands twice.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::ErrorKind::Encode) when it is not JSON, is nested deeper than 128 levels, or has a string that is no
    /// Unicode (half of a surrogate pair).
    pub fn of_json(text: &[u8]) -> Result<Self, Error> {
        let json = Json::parse(text).map_err(|reason| Error::Encode { what: "parameters", reason })?;
        Self::of_encoded(|encoder| json.encode(encoder))
    }

    /// The fingerprint of bytes, of whatever they are: the payload of a message, a file. Every byte counts.
    ///
    /// The same as [`of`](Self::of) a type that serializes as bytes.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::of_hash(Sha256::new_with_prefix(canonical::head(b'b', bytes.len())).chain_update(bytes))
    }

    /// Whether two messages have the same content, as far as is known: one without a fingerprint may have any.
    pub(crate) fn is_of_the_same(&self, other: &Self) -> bool {
        let nothing = Self::of_nothing();
        self == other || *self == nothing || *other == nothing
    }

    /// The fingerprint of no parameters at all, the same as that of `()` and of `null`.
    pub(crate) fn of_nothing() -> Self {
        Self::of_hash(Sha256::new_with_prefix(canonical::NULL))
    }

    /// The version byte and the digest, as stored.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    fn of_encoded(encode: impl FnOnce(&mut Encoder) -> Result<(), canonical::Error>) -> Result<Self, Error> {
        let mut encoder = Encoder::default();
        match encode(&mut encoder) {
            Ok(()) => Ok(Self::of_hash(Sha256::new_with_prefix(encoder.as_bytes()))),
            Err(error) => Err(Error::Encode { what: "parameters", reason: error.to_string() }),
        }
    }

    fn of_hash(hash: Sha256) -> Self {
        let mut bytes = [Self::VERSION; Self::LEN];
        bytes[1..].copy_from_slice(&hash.finalize());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}
