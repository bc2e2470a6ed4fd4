use std::fmt;
use std::io;

/// Why there is no server.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<io::Error>,
}

/// What sort of failure an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No `DATABASE_URL`, no installed programs, no Docker. The message names all three ways out.
    NothingFound,
    /// Something was asked for that cannot work: a variable that points to nothing, or a folder
    /// that belongs to somebody else.
    Unusable,
    /// The server did not start, or ended. The message has the end of its log.
    Failed,
    /// The server is not this process's own: it is shared, or it comes from `DATABASE_URL`.
    NotOurs,
}

impl Error {
    /// What sort of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A system call failed while we did `what`.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self { kind: ErrorKind::Failed, message: what.into(), source: Some(source) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
