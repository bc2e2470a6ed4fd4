//! A message, as the inbox knows it: [`Message`].

use uuid::Uuid;

use crate::{Error, Fingerprint, IdempotencyKey};

/// A message: its id, which is the same at every delivery, perhaps the fingerprint of its content, and whatever a batch's
/// closure is to work on.
///
/// The id is the producer's, not the broker's: what a duplicate publisher sends again has the same, and what a broker numbers
/// (an offset, a delivery tag, a stream sequence) is another one then. 1 to 255 visible ASCII characters.
///
/// ```
/// use pgonce::{Fingerprint, IdempotencyKey, Message};
///
/// # struct Delivered { id: String, payload: Vec<u8> }
/// # fn example(delivered: Delivered) -> Result<(), pgonce::Error> {
/// let message = Message::new(IdempotencyKey::try_from(delivered.id.as_str())?)
///     .with_fingerprint(Fingerprint::of_bytes(&delivered.payload))
///     .with_body(delivered);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<B = ()> {
    id: IdempotencyKey,
    fingerprint: Option<Fingerprint>,
    body: B,
}

impl Message {
    /// A message of which only the id counts.
    pub fn new(id: IdempotencyKey) -> Self {
        Self { id, fingerprint: None, body: () }
    }
}

impl<B> Message<B> {
    /// Makes the content count: the same id with another content is a
    /// [`FingerprintMismatch`](crate::ErrorKind::FingerprintMismatch), not a duplicate.
    ///
    /// [`Fingerprint::of_bytes`] of the payload where it travels unchanged; [`Fingerprint::of_json`] where a publisher may write
    /// the same JSON in another way. Contents are compared only where both deliveries have a fingerprint, so a consumer
    /// may begin with it at any time. (The fingerprint of `null` counts as none.)
    pub fn with_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Puts in what [`process_batch`](crate::Inbox::process_batch) hands to its closure: the payload, an event, the broker's own
    /// message. It is not stored.
    ///
    /// What is processed inside of a spawned task must own its data: there the compiler wants a closure that takes borrowed
    /// bodies of *every* lifetime. Put in an owned one then, or the message's place in a list of your own.
    pub fn with_body<C>(self, body: C) -> Message<C> {
        Message { id: self.id, fingerprint: self.fingerprint, body }
    }

    /// The id, which is the idempotency key.
    pub fn id(&self) -> &IdempotencyKey {
        &self.id
    }

    /// The fingerprint of the content, if it counts.
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        self.fingerprint.as_ref()
    }

    /// The fingerprint, or that of nothing.
    pub(super) fn content(&self) -> Fingerprint {
        self.fingerprint.unwrap_or_else(Fingerprint::of_nothing)
    }

    /// What was put in.
    pub fn body(&self) -> &B {
        &self.body
    }

    /// What was put in, to keep.
    pub fn into_body(self) -> B {
        self.body
    }
}

impl From<IdempotencyKey> for Message {
    fn from(id: IdempotencyKey) -> Self {
        Self::new(id)
    }
}

impl From<&IdempotencyKey> for Message {
    fn from(id: &IdempotencyKey) -> Self {
        Self::new(id.clone())
    }
}

impl From<Uuid> for Message {
    fn from(id: Uuid) -> Self {
        Self::new(id.into())
    }
}

impl<B> From<&Message<B>> for Message {
    fn from(message: &Message<B>) -> Self {
        Self { id: message.id.clone(), fingerprint: message.fingerprint, body: () }
    }
}

impl TryFrom<&str> for Message {
    type Error = Error;

    fn try_from(id: &str) -> Result<Self, Error> {
        IdempotencyKey::try_from(id).map(Self::new)
    }
}

impl TryFrom<&String> for Message {
    type Error = Error;

    fn try_from(id: &String) -> Result<Self, Error> {
        IdempotencyKey::try_from(id.as_str()).map(Self::new)
    }
}

impl TryFrom<String> for Message {
    type Error = Error;

    fn try_from(id: String) -> Result<Self, Error> {
        IdempotencyKey::try_from(id).map(Self::new)
    }
}
