//! What a client writes down: one line of JSON for each thing, before it does anything else.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::plan::{Api, Deed};

/// Microseconds since 1970. The clients' clock is the database's too, since they run on one machine.
pub type Micros = i64;

pub fn now() -> Micros {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_micros() as Micros
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// A call begins.
    Start(Start),
    /// Its closure runs.
    Run { call: Uuid, run: Uuid, at: Micros },
    /// It was told this.
    End { call: Uuid, at: Micros, answer: Answer },
    /// What the library said of a COMMIT whose answer was lost.
    LostCommit(String),
    /// Everything was answered; what was wrong with the pool then.
    Rested { problem: Option<String> },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub call: Uuid,
    /// With the scope: `acct_1/payments brief-3`.
    pub key: String,
    pub variant: u8,
    pub retention: Micros,
    pub api: Api,
    pub deed: Deed,
    /// Whether it may run its closure in vain.
    pub optimistic: bool,
    pub cancels: bool,
    pub at: Micros,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Executed(Stored),
    Replayed(Stored),
    Found(Stored),
    NotFound,
    FingerprintMismatch,
    InFlight,
    CommitUnknown {
        attempt: Uuid,
    },
    /// A recorded failure, to a call that takes none.
    Decode,
    AtomicityViolation(String),
    Database {
        retryable: bool,
        text: String,
    },
    /// An error that there is no reason for.
    Other(String),
    /// The closure's own error.
    Refused,
    Panicked(String),
    Cancelled,
    /// The caller's own COMMIT, around `execute_in`, failed somehow.
    CallersCommitFailed,
    Purged,
}

impl Answer {
    /// The client needs no other try.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Executed(_) | Self::Replayed(_) | Self::FingerprintMismatch | Self::Decode)
    }
}

/// A result, as the bytes that are stored for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub failed: bool,
    pub result: String,
}

/// What the closure returns. Each run makes another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub run: Uuid,
    pub call: Uuid,
    pub variant: u8,
}

/// The log of one life of a client.
pub struct Journal(Mutex<File>);

impl Journal {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(OpenOptions::new().create(true).append(true).open(path)?)))
    }

    pub fn write(&self, entry: &Entry) {
        let mut line = serde_json::to_vec(entry).expect("an entry is JSON");
        line.push(b'\n');
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line).expect("write the log");
    }
}

/// The log of one life of a client, read again.
#[derive(Debug)]
pub struct Log {
    pub name: String,
    pub entries: Vec<Entry>,
    pub killed: bool,
}

impl Log {
    /// The last line of a client that was killed may be torn.
    pub fn parse(name: &str, text: &str, killed: bool) -> anyhow::Result<Self> {
        let mut entries = Vec::new();
        for (number, line) in text.split_inclusive('\n').enumerate() {
            match serde_json::from_str(line) {
                Ok(entry) if line.ends_with('\n') => entries.push(entry),
                _ if killed && !line.ends_with('\n') => {}
                _ => anyhow::bail!("line {} of {name} is torn: {line}", number + 1),
            }
        }
        Ok(Self { name: name.to_owned(), entries, killed })
    }
}

#[test]
fn only_the_last_line_of_a_killed_client_may_be_torn() {
    let line = serde_json::to_string(&Entry::Rested { problem: None }).unwrap();
    let whole = format!("{line}\n{line}\n");
    let torn = &whole[..whole.len() - 5];
    assert_eq!(Log::parse("log", &whole, false).unwrap().entries.len(), 2);
    assert_eq!(Log::parse("log", torn, true).unwrap().entries.len(), 1);
    assert!(Log::parse("log", torn, false).is_err());
    assert!(Log::parse("log", &format!("{torn}\n{line}\n"), true).is_err());
}
