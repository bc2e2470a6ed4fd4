//! What a closure returns, how it is stored, and what comes of it at a retry. Private.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{Record, State, encode_as};
use crate::{Error, Outcome};

/// What a closure returns, how it is stored and replayed, and what the caller gets.
pub(crate) trait Kind {
    type Value: Send;
    type Answer;

    /// The name of the call.
    const CALL: &'static str;

    /// Whether it may be a final failure, for which the savepoint is taken.
    const RECORDS: bool;

    /// What is to be stored, if anything.
    fn encode(value: &Self::Value, limit: usize) -> Result<Option<(State, Vec<u8>)>, Error>;

    fn executed(value: Self::Value) -> Self::Answer;

    fn replay(record: &Record) -> Result<Self::Answer, Error>;
}

/// A result.
pub(crate) struct Plain<T>(PhantomData<T>);

impl<T: Serialize + DeserializeOwned + Send> Kind for Plain<T> {
    type Value = T;
    type Answer = Outcome<T>;
    const CALL: &'static str = "execute";
    const RECORDS: bool = false;

    fn encode(value: &T, limit: usize) -> Result<Option<(State, Vec<u8>)>, Error> {
        Ok(Some((State::Completed, encode_as(value, limit)?)))
    }

    fn executed(value: T) -> Outcome<T> {
        Outcome::Executed(value)
    }

    fn replay(record: &Record) -> Result<Outcome<T>, Error> {
        record.result().map(Outcome::Replayed)
    }
}

/// A result or a final failure.
pub(crate) struct Recording<T, D>(PhantomData<(T, D)>);

impl<T, D> Kind for Recording<T, D>
where
    T: Serialize + DeserializeOwned + Send,
    D: Serialize + DeserializeOwned + Send,
{
    type Value = Result<T, D>;
    type Answer = Outcome<Result<T, D>>;
    const CALL: &'static str = "execute_recording";
    const RECORDS: bool = true;

    fn encode(value: &Result<T, D>, limit: usize) -> Result<Option<(State, Vec<u8>)>, Error> {
        Ok(Some(match value {
            Ok(value) => (State::Completed, encode_as(value, limit)?),
            Err(failure) => (State::Failed, encode_as(failure, limit)?),
        }))
    }

    fn executed(value: Result<T, D>) -> Outcome<Result<T, D>> {
        Outcome::Executed(value)
    }

    fn replay(record: &Record) -> Result<Outcome<Result<T, D>>, Error> {
        let result = match record.state() {
            State::Failed => record.failure().map(Err),
            _ => record.result().map(Ok),
        };
        result.map(Outcome::Replayed)
    }
}
