//! The settings and the layer: [`IdempotencyLayer`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, Uri, response};
use axum::response::{IntoResponse, Response};
use tower_layer::Layer;

use super::ending::Ending;
use super::problem::{Problem, ProblemKind};
use super::request;
use super::service::IdempotencyService;
use super::stored::KEPT_HEADERS;
use crate::{Error, Fingerprint, Idempotency, InFlight, Scope};

/// Makes the endpoints behind it idempotent: a [`tower`](tower_layer) layer.
///
/// **The promise.** For a request with an `Idempotency-Key`, the handler's writes (through
/// [`IdempotentTx`](super::IdempotentTx)), the key and the response commit in one transaction, before the first byte of
/// the response leaves. A retry gets the same status, kept headers and body, and `Idempotent-Replayed: true`, and the
/// handler does not run. An error, a panic, a client that hangs up, a time-out or a killed process before the COMMIT
/// leaves nothing, and the key is free at once; during the COMMIT, the retry finds out. Not covered: what the handler
/// writes through another connection, and effects outside of the database.
///
/// Put it on the routes that it is for, inside of what authenticates and of what changes responses (compression, CORS):
///
/// ```
/// # async fn post_charge() {}
/// # async fn post_note() {}
/// # fn app(idempotency: pgonce::Idempotency) -> axum::Router {
/// use axum::http::request::Parts;
/// use axum::{Router, routing::post};
/// use pgonce::{IdempotencyLayer, Scope};
///
/// #[derive(Clone)]
/// struct Tenant(i64); // put into the request's extensions by the layer that authenticates
///
/// let idempotent = IdempotencyLayer::new(idempotency, |request: &Parts| {
///     let Tenant(id) = request.extensions.get()?;
///     Scope::new(format!("tenant-{id}")).ok()
/// });
///
/// Router::new()
///     .route("/charges", post(post_charge).route_layer(idempotent.clone()))
///     .route("/notes", post(post_note).route_layer(idempotent.with_optional_key()))
/// // .layer(authenticate)
/// # }
/// ```
#[derive(Clone)]
pub struct IdempotencyLayer {
    settings: Arc<Settings>,
}

type ScopeFn = Arc<dyn Fn(&Parts) -> Option<Scope> + Send + Sync>;
type RefusalFn = Arc<dyn Fn(&Parts) -> Response + Send + Sync>;
type FingerprintFn = Arc<dyn Fn(&Parts, &Bytes) -> Result<Fingerprint, Error> + Send + Sync>;
type EndingFn = Arc<dyn Fn(&response::Parts) -> Ending + Send + Sync>;
type RenderingFn = Arc<dyn Fn(Problem, &Parts) -> Response + Send + Sync>;

/// Everything that an endpoint may have of its own.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) idempotency: Idempotency,
    pub(super) scope: ScopeFn,
    pub(super) unauthenticated: Option<RefusalFn>,
    pub(super) methods: Vec<Method>,
    pub(super) key_optional: bool,
    pub(super) strict: bool,
    pub(super) max_body_size: usize,
    pub(super) kept_headers: Vec<HeaderName>,
    pub(super) fingerprint: FingerprintFn,
    pub(super) ending: EndingFn,
    documentation: Option<Arc<str>>,
    rendering: RenderingFn,
}

impl IdempotencyLayer {
    const DEFAULT_MAX_BODY_SIZE: usize = 256 * 1024;

    /// A layer whose keys belong to the scope that `scope` reads from the request, best from the principal that an
    /// outer layer has authenticated and put into its extensions.
    ///
    /// There is no default: two tenants in one scope would get each other's responses. A scope may name the operation,
    /// too (`acct_42/charges`); where it does not, a key that is used for two endpoints answers 422, as at Stripe. With
    /// none, nothing is read and nothing runs: 403, or what [`with_unauthenticated`](Self::with_unauthenticated) says.
    ///
    /// For as long as a handler runs, the layer holds one of the `Idempotency`'s connections. A handler that takes a
    /// second one from the same pool can exhaust it, when as many of them run as it has connections, and then they all
    /// wait: let handlers use the [`IdempotentTx`](super::IdempotentTx) alone, or give the layer a pool of its own.
    pub fn new(
        idempotency: Idempotency,
        scope: impl Fn(&Parts) -> Option<Scope> + Send + Sync + 'static,
    ) -> Self {
        let settings = Settings {
            idempotency,
            scope: Arc::new(scope),
            unauthenticated: None,
            methods: vec![Method::POST, Method::PATCH],
            key_optional: false,
            strict: false,
            max_body_size: Self::DEFAULT_MAX_BODY_SIZE,
            kept_headers: KEPT_HEADERS.to_vec(),
            fingerprint: Arc::new(|request, body| request::fingerprint(request, body)),
            ending: Arc::new(|response| Ending::of_status(response.status)),
            documentation: None,
            rendering: Arc::new(|problem, _| problem.into_response()),
        };
        Self { settings: Arc::new(settings) }
    }

    /// Requests may come without a key. Default: 400.
    ///
    /// Without one the handler runs in a transaction all the same, which commits before the response leaves; it is as
    /// if the client had sent a new key that it forgot. (It takes a row in the table, without the response and for an
    /// hour.)
    pub fn with_optional_key(self) -> Self {
        self.with(|settings| settings.key_optional = true)
    }

    /// Keys must be RFC 8941 Strings, in quotation marks, as the draft has it. Default: bare values, too, as Stripe's
    /// clients send them.
    pub fn with_strict_header(self) -> Self {
        self.with(|settings| settings.strict = true)
    }

    /// The methods that are covered. Default: POST and PATCH. The others pass untouched; GET, PUT and DELETE are
    /// idempotent by definition.
    pub fn with_methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.with(|settings| settings.methods = methods.into_iter().collect())
    }

    /// How long a key is remembered, counted from its first request; see [`Idempotency::with_retention`]. Default: the
    /// `Idempotency`'s, 24 hours.
    pub fn with_retention(self, retention: Duration) -> Self {
        self.with_idempotency(|idempotency| idempotency.with_retention(retention))
    }

    /// What a duplicate does while the first request is still being carried out: 409, or wait for its response. Default: the
    /// `Idempotency`'s, 409.
    pub fn with_in_flight(self, in_flight: InFlight) -> Self {
        self.with_idempotency(|idempotency| idempotency.with_in_flight(in_flight))
    }

    /// The largest body of a request, in bytes. Default: 256 KiB. Beyond it, 413.
    ///
    /// A request is read before the handler runs, since its body is part of what makes it the same request. axum's
    /// extractors have a limit of their own, 2 MB (`axum::extract::DefaultBodyLimit`).
    pub fn with_max_body_size(self, bytes: usize) -> Self {
        self.with(|settings| settings.max_body_size = bytes)
    }

    /// The largest response that is stored, in bytes of the JSON in which status, kept headers and body are stored; see
    /// [`Idempotency::with_max_result_size`]. Default: the `Idempotency`'s, 256 KiB. Beyond it, 500, and nothing is committed.
    pub fn with_max_response_size(self, bytes: usize) -> Self {
        self.with_idempotency(|idempotency| idempotency.with_max_result_size(bytes))
    }

    /// Keeps one more response header for the replay. Default: [`KEPT_HEADERS`].
    ///
    /// Every header reaches the first response; a replay has those that are kept. `Set-Cookie`, `Authorization` and the
    /// like are secrets that would lie in the database for as long as the key; they are kept only when they are named.
    /// Headers of the connection (`Date`,
    /// `Content-Length`, `Transfer-Encoding`) are the server's affair.
    pub fn with_kept_header(self, name: HeaderName) -> Self {
        self.with(|settings| settings.kept_headers.push(name))
    }

    /// Keeps exactly these response headers for the replay; see [`with_kept_header`](Self::with_kept_header).
    pub fn with_kept_headers(self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.with(|settings| settings.kept_headers = names.into_iter().collect())
    }

    /// How a request ends, by the head of its response; see [`Ending`] for the default. What the handler says itself goes before.
    ///
    /// For example, so that a client may correct what failed the validation and send it under the same key:
    ///
    /// ```
    /// # fn example(layer: pgonce::IdempotencyLayer) -> pgonce::IdempotencyLayer {
    /// use axum::http::StatusCode;
    /// use pgonce::http::Ending;
    ///
    /// layer.with_ending(|response| match response.status {
    ///     StatusCode::BAD_REQUEST => Ending::Release,
    ///     status => Ending::of_status(status),
    /// })
    /// # }
    /// ```
    pub fn with_ending(self, ending: impl Fn(&response::Parts) -> Ending + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.ending = Arc::new(ending))
    }

    /// What makes two requests the same request. Default: [`fingerprint`](super::fingerprint()).
    pub fn with_fingerprint(
        self,
        fingerprint: impl Fn(&Parts, &Bytes) -> Result<Fingerprint, Error> + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| settings.fingerprint = Arc::new(fingerprint))
    }

    /// What a request without a scope gets. Default: 403, as a problem. For a 401, HTTP wants the scheme named by which
    /// to authenticate:
    ///
    /// ```
    /// # fn example(layer: pgonce::IdempotencyLayer) -> pgonce::IdempotencyLayer {
    /// use axum::http::{StatusCode, header::WWW_AUTHENTICATE};
    ///
    /// layer.with_unauthenticated(|_| (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")]))
    /// # }
    /// ```
    pub fn with_unauthenticated<R: IntoResponse>(
        self,
        respond: impl Fn(&Parts) -> R + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| {
            settings.unauthenticated = Some(Arc::new(move |request| respond(request).into_response()));
        })
    }

    /// Where the API's clients read about idempotency: the target of the problems' `Link` and the front part of their
    /// `type`. Default: the page of this crate.
    pub fn with_documentation(self, documentation: Uri) -> Self {
        self.with(|settings| settings.documentation = Some(documentation.to_string().into()))
    }

    /// Renders problems in another way. Default: [`Problem`]'s own `IntoResponse`.
    pub fn with_rendering<R: IntoResponse>(
        self,
        render: impl Fn(Problem, &Parts) -> R + Send + Sync + 'static,
    ) -> Self {
        self.with(|settings| {
            settings.rendering = Arc::new(move |problem, request| render(problem, request).into_response());
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }

    fn with_idempotency(self, change: impl FnOnce(Idempotency) -> Idempotency) -> Self {
        self.with(|settings| settings.idempotency = change(settings.idempotency.clone()))
    }
}

impl Settings {
    pub(super) fn covers(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    pub(super) fn render(&self, problem: Problem, request: &Parts) -> Response {
        let problem = problem.documented_at(self.documentation.clone());
        (self.rendering)(problem.logged(), request)
    }

    pub(super) fn refuse_without_scope(&self, request: &Parts) -> Response {
        match &self.unauthenticated {
            Some(respond) => respond(request),
            None => {
                let detail =
                    "Nothing says on whose behalf this request is made. Authenticate it. Nothing was done.";
                self.render(Problem::new(ProblemKind::NoScope, detail), request)
            }
        }
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> IdempotencyService<S> {
        IdempotencyService::new(inner, Arc::clone(&self.settings))
    }
}

impl fmt::Debug for IdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("idempotency", &self.settings.idempotency)
            .field("methods", &self.settings.methods)
            .finish_non_exhaustive()
    }
}
