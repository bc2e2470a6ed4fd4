//! PostgreSQL's messages as they come along a connection, whole and named. Private.
//!
//! Source: "Message Formats" in PostgreSQL's documentation of its protocol, version 3.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::proxy::Side;

/// One message with its length word, as it is sent on.
pub(super) struct Frame {
    /// None for the messages that open a connection, which have no type.
    kind: Option<u8>,
    pub(super) bytes: Vec<u8>,
}

/// The code in place of a protocol version by which a client asks for TLS.
const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
/// The same for GSSAPI encryption.
const GSS_REQUEST: [u8; 4] = 80_877_104_u32.to_be_bytes();

impl Frame {
    /// None at the end of the stream, also in the middle of a message.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), typed: bool) -> io::Result<Option<Self>> {
        match Self::read_whole(stream, typed).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            read => read.map(Some),
        }
    }

    async fn read_whole(stream: &mut (impl AsyncRead + Unpin), typed: bool) -> io::Result<Self> {
        let kind = if typed { Some(stream.read_u8().await?) } else { None };
        let length = stream.read_u32().await?;
        let rest = length.checked_sub(4).ok_or_else(|| io::Error::other("no message of PostgreSQL's"))?;
        let mut bytes: Vec<u8> = kind.into_iter().chain(length.to_be_bytes()).collect();
        let start = bytes.len();
        bytes.resize(start + rest as usize, 0);
        stream.read_exact(&mut bytes[start..]).await?;
        Ok(Self { kind, bytes })
    }

    /// Whether the client asks for an encrypted connection, which the proxy could not read.
    pub(super) fn asks_for_encryption(&self) -> bool {
        self.kind.is_none() && (self.bytes.ends_with(&SSL_REQUEST) || self.bytes.ends_with(&GSS_REQUEST))
    }

    /// A request for what does not exist, if this is a request to run a statement: the server answers it with an error,
    /// which aborts the transaction.
    pub(super) fn spoiled(self) -> Self {
        match self.kind {
            Some(b'E') => Self::new(b'E', b"no such portal\0\0\0\0\0"),
            Some(b'Q') => Self::new(b'Q', b"no such command\0"),
            _ => self,
        }
    }

    /// An error as the server sends it.
    pub(super) fn error(sqlstate: &str) -> Self {
        let message = "refused by a test";
        Self::new(b'E', format!("SERROR\0VERROR\0C{sqlstate}\0M{message}\0\0").as_bytes())
    }

    pub(super) fn is_error_of(&self, side: Side) -> bool {
        side == Side::Server && self.kind == Some(b'E')
    }

    fn new(kind: u8, payload: &[u8]) -> Self {
        let length = (payload.len() as u32 + 4).to_be_bytes();
        Self { kind: Some(kind), bytes: [&[kind], &length[..], payload].concat() }
    }

    /// Its name in PostgreSQL's documentation, with the SQL or the command's tag where it has one.
    pub(super) fn label(&self, side: Side) -> String {
        let Some(kind) = self.kind else { return "StartupMessage".to_owned() };
        let text = |nth: usize| {
            let payload = self.bytes.get(5..).unwrap_or_default();
            let text = payload.split(|byte| *byte == 0).nth(nth).unwrap_or_default();
            String::from_utf8_lossy(text).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        match (side, kind) {
            (Side::Client, b'B') => "Bind".to_owned(),
            (Side::Client, b'C') => "Close".to_owned(),
            (Side::Client, b'D') => "Describe".to_owned(),
            (Side::Client, b'E') => "Execute".to_owned(),
            (Side::Client, b'P') => format!("Parse: {}", text(1)),
            (Side::Client, b'Q') => format!("Query: {}", text(0)),
            (Side::Client, b'S') => "Sync".to_owned(),
            (Side::Client, b'X') => "Terminate".to_owned(),
            (Side::Client, b'p') => "SASL response".to_owned(),
            (Side::Server, b'1') => "ParseComplete".to_owned(),
            (Side::Server, b'2') => "BindComplete".to_owned(),
            (Side::Server, b'3') => "CloseComplete".to_owned(),
            (Side::Server, b'C') => format!("CommandComplete: {}", text(0)),
            (Side::Server, b'D') => "DataRow".to_owned(),
            (Side::Server, b'E') => "ErrorResponse".to_owned(),
            (Side::Server, b'I') => "EmptyQueryResponse".to_owned(),
            (Side::Server, b'K') => "BackendKeyData".to_owned(),
            (Side::Server, b'N') => "NoticeResponse".to_owned(),
            (Side::Server, b'R') => "Authentication".to_owned(),
            (Side::Server, b'S') => format!("ParameterStatus: {}", text(0)),
            (Side::Server, b'T') => "RowDescription".to_owned(),
            (Side::Server, b'Z') => "ReadyForQuery".to_owned(),
            (Side::Server, b'n') => "NoData".to_owned(),
            (Side::Server, b't') => "ParameterDescription".to_owned(),
            (_, other) => format!("message '{}'", other.escape_ascii()),
        }
    }
}
