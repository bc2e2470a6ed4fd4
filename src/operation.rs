//! What is to be done once: [`Operation`].

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Error, Fingerprint, IdempotencyKey, InFlight, Scope};

/// One request as pgonce sees it: scope, key, the fingerprint of its parameters, and how long it is remembered.
///
/// ```
/// use pgonce::{IdempotencyKey, Operation, Scope};
/// # #[derive(serde::Serialize)] struct ChargeRequest { amount: u64, currency: &'static str }
/// # let header = "8e03978e-40d5-43dd-bc93-6894a57f9324";
///
/// let request = ChargeRequest { amount: 4200, currency: "EUR" };
/// let operation = Operation::new(Scope::new("acct_42/charges")?, IdempotencyKey::try_from(header)?)
///     .with_params(&request)?;
/// # Ok::<(), pgonce::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    scope: Scope,
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    retention: Option<Duration>,
    in_flight: Option<InFlight>,
    is_message: bool,
}

impl Operation {
    /// An operation without parameters. Add them with [`with_params`](Self::with_params): without them a client
    /// that reuses a key for another request gets the first one's result.
    pub fn new(scope: Scope, key: IdempotencyKey) -> Self {
        let fingerprint = Fingerprint::of_nothing();
        Self { scope, key, fingerprint, retention: None, in_flight: None, is_message: false }
    }

    /// Sets the parameters, all of them: what decides whether a retry is the same request. See [`Fingerprint`]
    /// for how they are compared.
    ///
    /// # Errors
    ///
    /// [`Encode`](crate::ErrorKind::Encode): a float that is not finite, more than 128 levels of nesting, or a
    /// `Serialize` that fails.
    pub fn with_params<T: Serialize + ?Sized>(self, parameters: &T) -> Result<Self, Error> {
        Ok(self.with_fingerprint(Fingerprint::of(parameters)?))
    }

    /// Sets a fingerprint made elsewhere.
    pub fn with_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = fingerprint;
        self
    }

    /// How long this operation is remembered, instead of
    /// [`Idempotency::with_retention`](crate::Idempotency::with_retention)'s time.
    pub fn with_retention(mut self, retention: Duration) -> Self {
        self.retention = Some(retention);
        self
    }

    /// What a duplicate of this operation does while the first is still running, instead of
    /// [`Idempotency::with_in_flight`](crate::Idempotency::with_in_flight)'s policy.
    pub fn with_in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// Who asks and for what.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The client's name for this request.
    pub fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// The parameters, reduced.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// How long this operation is remembered, if it says so itself.
    pub fn retention(&self) -> Option<Duration> {
        self.retention
    }

    /// What a duplicate does, if the operation says so itself.
    pub fn in_flight(&self) -> Option<InFlight> {
        self.in_flight
    }

    /// A key for something outside of the database that this operation causes: a call to a card processor, an
    /// email. The same on every retry, another one for each label.
    ///
    /// pgonce cannot undo such an effect when the transaction rolls back. It can make the second attempt recognisable:
    /// hand this key to the processor as *its* idempotency key, and the processor charges once.
    ///
    /// It is a UUID (version 8) of 36 characters, so it fits where processors allow few. It is made by SHA-256 from
    /// scope, key and label, which it does not reveal. The parameters are not part of it.
    ///
    /// ```
    /// # use pgonce::{IdempotencyKey, Operation, Scope};
    /// # let operation = Operation::new(Scope::new("acct_42/charges")?, IdempotencyKey::new_v4());
    /// let capture = operation.derived_key("capture");
    /// assert_eq!(capture, operation.derived_key("capture"));
    /// assert_ne!(capture, operation.derived_key("receipt email"));
    /// # Ok::<(), pgonce::Error>(())
    /// ```
    pub fn derived_key(&self, label: &str) -> IdempotencyKey {
        let mut hash = Sha256::new_with_prefix(b"pgonce derived key v1");
        for part in [self.scope.as_str(), self.key.as_str(), label] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize()[..16]);
        IdempotencyKey::from(Uuid::new_v8(bytes))
    }

    /// A short hash of the key for logs: tells keys apart, and hides those that cannot be guessed.
    pub(crate) fn key_hash(&self) -> String {
        let digest = Sha256::digest(self.key.as_str());
        digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The same without a result, for [`Inbox`](crate::Inbox): nothing is stored but the key.
    pub(crate) fn into_message(mut self) -> Self {
        self.is_message = true;
        self
    }

    pub(crate) fn is_message(&self) -> bool {
        self.is_message
    }

    /// Whether what is stored is the same request.
    pub(crate) fn is_same_as(&self, stored: &Fingerprint) -> bool {
        if self.is_message { self.fingerprint.is_of_the_same(stored) } else { self.fingerprint == *stored }
    }

    pub(crate) fn in_flight_error(&self) -> Error {
        Error::InFlight { scope: self.scope.clone(), key: self.key.clone() }
    }

    pub(crate) fn mismatch_error(&self) -> Error {
        Error::FingerprintMismatch { scope: self.scope.clone(), key: self.key.clone() }
    }
}
