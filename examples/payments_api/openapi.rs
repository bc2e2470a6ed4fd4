//! The description that `GET /openapi.json` gives. Handlers describe themselves; what the layers do is described here.

use axum::http::StatusCode;
use utoipa::ToSchema;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, Content, Header, HeaderBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder,
    Ref, RefOr, Required, Response, ResponseBuilder, Type,
};
use utoipa_axum::router::OpenApiRouter;

use crate::error::ProblemBody;

const TOKEN: &str = "tenant_token";

/// What the operations are added to.
pub fn document() -> OpenApi {
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The token of a tenant"));
    let components = ComponentsBuilder::new()
        .schema_from::<ProblemBody>()
        .security_scheme(TOKEN, SecurityScheme::Http(token.build()));
    let info = InfoBuilder::new()
        .title("Payments")
        .version("1.0.0")
        .description(Some("Charges and refunds that happen once, however often they are asked for."));
    OpenApiBuilder::new().info(info).components(Some(components.build())).build()
}

/// Describes the layer that authenticates, and what may go wrong anywhere.
pub fn authenticated<S: Clone + Send + Sync + 'static>(mut routes: OpenApiRouter<S>) -> OpenApiRouter<S> {
    for operation in operations(routes.get_openapi_mut()) {
        operation.security = Some(vec![SecurityRequirement::new(TOKEN, [""; 0])]);
        add(
            operation,
            StatusCode::UNAUTHORIZED,
            problem("No token, or one that no tenant has")
                .header("WWW-Authenticate", header("The scheme, and what is wrong with the token")),
        );
        add(
            operation,
            StatusCode::SERVICE_UNAVAILABLE,
            problem("Not now: send the same request again").header("Retry-After", retry_after()),
        );
        add(operation, StatusCode::GATEWAY_TIMEOUT, problem("It took too long: send the same request again"));
    }
    routes
}

/// Describes the `IdempotencyLayer`.
pub fn idempotent<S: Clone + Send + Sync + 'static>(mut routes: OpenApiRouter<S>) -> OpenApiRouter<S> {
    for operation in operations(routes.get_openapi_mut()) {
        // Of the handler's responses these headers are the layer's: all that are described are final.
        for response in operation.responses.responses.values_mut() {
            let RefOr::T(response) = response else { continue };
            response.headers.insert("Idempotent-Replayed".into(), replayed().into());
            response.headers.insert("Idempotency-Key-Expires".into(), expires().into());
        }
        let key = ParameterBuilder::new()
            .name("Idempotency-Key")
            .parameter_in(ParameterIn::Header)
            .required(Required::True)
            .description(Some(
                "The client's name for this request: a new one for each request, the same one for every retry of it. 1 to \
                 255 visible ASCII characters, in quotation marks (RFC 8941) or bare. It belongs to the tenant.",
            ))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
            .example(Some("\"8e03978e-40d5-43e8-bc93-6894a57f9324\"".into()));
        operation.parameters.get_or_insert_default().push(key.build().into());
        add(
            operation,
            StatusCode::BAD_REQUEST,
            problem("The Idempotency-Key is missing or invalid, or the request is. Nothing is remembered"),
        );
        add(
            operation,
            StatusCode::CONFLICT,
            problem("The first request with this Idempotency-Key is still being carried out")
                .header("Retry-After", retry_after()),
        );
        add(operation, StatusCode::PAYLOAD_TOO_LARGE, problem("The body has more than 256 KiB"));
        add(
            operation,
            StatusCode::UNPROCESSABLE_ENTITY,
            problem("The Idempotency-Key was used before with another request"),
        );
    }
    routes
}

fn operations(document: &mut OpenApi) -> impl Iterator<Item = &mut Operation> {
    document.paths.paths.values_mut().flat_map(|path| path.get.iter_mut().chain(path.post.iter_mut()))
}

fn add(operation: &mut Operation, status: StatusCode, response: ResponseBuilder) {
    let response: Response = response.build();
    operation.responses.responses.insert(status.as_str().into(), response.into());
}

fn problem(description: &str) -> ResponseBuilder {
    let schema = Ref::from_schema_name(ProblemBody::name());
    ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", Content::new(Some(schema)))
}

fn replayed() -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true]));
    let description = "This is the first response again. The first one itself does not have this header";
    HeaderBuilder::new().schema(Some(schema)).description(Some(description)).build()
}

fn expires() -> Header {
    header("Until when the key is remembered, as an HTTP date. After that the same key is a new request")
}

fn retry_after() -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::Integer);
    HeaderBuilder::new()
        .schema(Some(schema))
        .description(Some("After how many seconds to send the same request again"))
        .build()
}

fn header(description: &str) -> Header {
    HeaderBuilder::new().description(Some(description)).build()
}
