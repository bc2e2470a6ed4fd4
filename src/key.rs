//! Who asks, and for what: [`Scope`] and [`IdempotencyKey`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Error;

/// The longest key and the longest scope, in characters (all of them ASCII).
const MAX_LEN: usize = 255;

/// Says what is wrong with a text that has to be 1 to 255 visible ASCII characters.
///
/// The same rule as Stripe's keys, so a key survives every header, log line and index unchanged. The text
/// itself is not repeated: it may be anything, a card number included.
fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if let Some((at, c)) = text.char_indices().find(|(_, c)| !c.is_ascii_graphic()) {
        return Err(format!(
            "the character {} at byte {at} is not visible ASCII ('!' to '~')",
            c.escape_unicode()
        ));
    }
    if text.len() > MAX_LEN {
        return Err(format!("it has {} characters; at most {MAX_LEN} are allowed", text.len()));
    }
    Ok(())
}

/// The conversions that both newtypes share.
macro_rules! checked_text {
    ($name:ident, $error:ident) => {
        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            fn checked(text: String) -> Result<Self, Error> {
                match check(&text) {
                    Ok(()) => Ok(Self(text.into())),
                    Err(reason) => Err(Error::$error { reason }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                Self::checked(text)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;

            fn try_from(text: &str) -> Result<Self, Error> {
                Self::checked(text.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                Self::checked(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The client's name for one request: the same on every retry, another one for every new request.
///
/// 1 to 255 visible ASCII characters. A key means nothing by itself; together with a [`Scope`] it names one
/// operation, so two tenants may use the same key without ever meeting.
///
/// ```
/// use pgonce::{ErrorKind, IdempotencyKey};
///
/// let from_header = IdempotencyKey::try_from("8e03978e-40d5-43dd-bc93-6894a57f9324")?;
/// let made_here = IdempotencyKey::new_v7();
/// assert_ne!(from_header, made_here);
///
/// let error = IdempotencyKey::try_from("two words").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidKey);
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(Box<str>);

checked_text!(IdempotencyKey, InvalidKey);

impl IdempotencyKey {
    /// A new random key (a UUID, version 4).
    ///
    /// Make it once for a request, **before** the first attempt, and keep it for every retry: a key made inside
    /// the retry loop is a new request each time.
    pub fn new_v4() -> Self {
        Self::from(Uuid::new_v4())
    }

    /// A new key that sorts by the time it was made (a UUID, version 7), which is kinder to the index than a
    /// random one when there are very many. Otherwise like [`new_v4`](Self::new_v4).
    pub fn new_v7() -> Self {
        Self::from(Uuid::now_v7())
    }
}

impl From<Uuid> for IdempotencyKey {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.hyphenated().to_string().into())
    }
}

/// Who asks and for what: the tenant and the operation, for example `acct_42/charges`.
///
/// 1 to 255 visible ASCII characters. Take it from the authenticated principal and from the code, **never from
/// the client's body or headers**: whoever chooses the scope chooses whose results are replayed.
///
/// ```
/// use pgonce::Scope;
///
/// let tenant = 42; // from the session, not from the request
/// let scope = Scope::new(format!("acct_{tenant}/charges"))?;
/// assert_eq!(scope.as_str(), "acct_42/charges");
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scope(Box<str>);

checked_text!(Scope, InvalidScope);

impl Scope {
    /// Checks the text and makes a scope of it.
    ///
    /// When it is joined from parts, take a separator that the parts cannot contain, or two tenants may end up
    /// with one scope.
    ///
    /// # Errors
    ///
    /// [`InvalidScope`](crate::ErrorKind::InvalidScope) for anything but 1 to 255 visible ASCII characters.
    pub fn new(text: impl Into<String>) -> Result<Self, Error> {
        Self::checked(text.into())
    }
}
