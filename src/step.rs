//! A step of a call (claim, closure, finish): how long it takes, and its span by OpenTelemetry's conventions for clients of a
//! database. Private.

use sqlx::postgres::PgConnectOptions;
use tracing::{Span, field, info_span};

use crate::call::{Call, CallOutcome};
use crate::closure::database_error;
use crate::metrics::{self, Timer};
use crate::sql::Finish;
use crate::{Error, ErrorKind, Idempotency, Scope};

const TABLE: &str = "pgonce.keys";

/// A span of what the database does.
macro_rules! database_span {
    (parent: $parent:expr, $name:literal, $operation:expr, $summary:expr $(, $more:ident = $value:expr)*) => {
        info_span!(
            parent: $parent,
            $name,
            $($more = $value,)*
            otel.name = $summary,
            otel.kind = "client",
            otel.status_code = field::Empty,
            db.system.name = "postgresql",
            db.namespace = field::Empty,
            // BEGIN and COMMIT have none.
            db.collection.name = $summary.contains(TABLE).then_some(TABLE),
            db.operation.name = $operation,
            db.query.summary = $summary,
            db.response.status_code = field::Empty,
            server.address = field::Empty,
            server.port = field::Empty,
            "error.type" = field::Empty,
        )
    };
}

/// A step that is under way, until it is dropped.
pub(crate) struct Step {
    name: &'static str,
    call: Call,
    span: Span,
    timer: Timer,
}

impl Step {
    /// A connection, BEGIN, and the statements of the claim.
    pub(crate) fn claim(call: &Call, idempotency: &Idempotency) -> Self {
        Self::new("claim", call, claim(call, idempotency))
    }

    /// The same for a call that first looks for a result, and then [goes on](Self::goes_on).
    pub(crate) fn look(call: &Call, idempotency: &Idempotency) -> Self {
        Self::new("claim", call, look(call, idempotency))
    }

    /// The look found nothing: the claim, which gets a span of its own.
    pub(crate) fn goes_on(&mut self, idempotency: &Idempotency) {
        self.span = claim(&self.call, idempotency);
    }

    /// Where nothing is claimed before the end: a connection, and BEGIN.
    pub(crate) fn begin(call: &Call, idempotency: &Idempotency) -> Self {
        let span = database_span!(parent: &call.span(), "claim", "BEGIN", "BEGIN");
        Self::new("claim", call, with_server(span, idempotency))
    }

    /// The caller's own work.
    pub(crate) fn closure(call: &Call) -> Self {
        Self::new("closure", call, info_span!(parent: &call.span(), "closure"))
    }

    /// The result, if there is one, is stored and committed; where the answer is lost, until it is known what became of it.
    pub(crate) fn finish(call: &Call, idempotency: &Idempotency, finish: Finish) -> Self {
        let (operation, summary) = match finish {
            Finish::Update => ("UPDATE", "UPDATE pgonce.keys COMMIT"),
            Finish::Upsert | Finish::Insert => ("INSERT", "INSERT pgonce.keys COMMIT"),
            Finish::AtCommit => ("COMMIT", "COMMIT"),
        };
        let span = database_span!(parent: &call.span(), "finish", operation, summary);
        Self::new("finish", call, with_server(span, idempotency))
    }

    /// The same in a caller's transaction: without the COMMIT, and always an upsert, since the claim was made in a savepoint.
    pub(crate) fn finish_inside(call: &Call, idempotency: &Idempotency) -> Self {
        let span = database_span!(parent: &call.span(), "finish", "INSERT", "INSERT pgonce.keys");
        Self::new("finish", call, with_server(span, idempotency))
    }

    /// From when the key is found in flight until that is over. Without a span of its own: it consists of claims.
    pub(crate) fn wait(call: &Call) -> Self {
        Self::new("wait", call, Span::none())
    }

    fn new(name: &'static str, call: &Call, span: Span) -> Self {
        Self { name, call: call.clone(), span, timer: Timer::start() }
    }

    pub(crate) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Notes that it failed, where the database is what failed.
    pub(crate) fn failed(&self, error: &Error) {
        failed(&self.span, error);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        metrics::took(self.call.labels(), self.name, &self.timer);
    }
}

fn claim(call: &Call, idempotency: &Idempotency) -> Span {
    let span = database_span!(parent: &call.span(), "claim", "INSERT", "INSERT pgonce.keys");
    with_server(span, idempotency)
}

/// The span of a look for what is committed.
pub(crate) fn look(call: &Call, idempotency: &Idempotency) -> Span {
    let span = database_span!(parent: &call.span(), "claim", "SELECT", "SELECT pgonce.keys");
    with_server(span, idempotency)
}

/// The span of [`Idempotency::find`], which is no call: it claims nothing.
pub(crate) fn find(scope: &Scope, idempotency: &Idempotency) -> Span {
    let span = database_span!(parent: &Span::current(), "pgonce", "SELECT", "SELECT pgonce.keys", call = "find", scope = scope.as_str());
    with_server(span, idempotency)
}

/// Notes in a step's span that the database failed.
pub(crate) fn failed(span: &Span, error: &Error) {
    // Which the database has answered as it should.
    if span.is_disabled() || matches!(error.kind(), ErrorKind::FingerprintMismatch | ErrorKind::InFlight) {
        return;
    }
    let code = database_error(error).and_then(|error| error.code());
    if let Some(code) = &code {
        span.record("db.response.status_code", &**code);
    }
    span.record("error.type", code.as_deref().unwrap_or(CallOutcome::of(error).as_str()));
    span.record("otel.status_code", "ERROR");
}

fn with_server(span: Span, idempotency: &Idempotency) -> Span {
    if !span.is_disabled() {
        let options = idempotency.pool().connect_options();
        record_server(&span, &options);
    }
    span
}

fn record_server(span: &Span, options: &PgConnectOptions) {
    match options.get_socket() {
        Some(socket) => span.record("server.address", field::display(socket.display())),
        None => span.record("server.address", options.get_host()).record("server.port", options.get_port()),
    };
    if let Some(database) = options.get_database() {
        span.record("db.namespace", database);
    }
}
