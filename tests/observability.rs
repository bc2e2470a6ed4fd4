//! `examples/observability`: the trace of a charge and of its retry, and the metrics.

#[path = "../examples/observability/app.rs"]
mod app;
#[path = "../examples/observability/client.rs"]
mod client;
#[path = "../examples/observability/telemetry.rs"]
mod telemetry;
#[path = "../examples/observability/tree.rs"]
mod tree;

mod support;

use opentelemetry::trace::{SpanKind, Status, TraceContextExt};
use opentelemetry_sdk::trace::SpanData;
use pgonce::{Error, Idempotency, Isolation, Mode, Operation, Outcome};
use sqlx::PgConnection;
use support::{Database, assert_in_document, key, scope};
use telemetry::Telemetry;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    span.attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == name)
        .map(|found| found.value.to_string())
}

fn named<'s>(spans: &'s [SpanData], name: &str) -> &'s SpanData {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"))
}

/// One test, since a process has one subscriber and one recorder.
#[tokio::test]
async fn a_charge_and_its_retry_are_seen() {
    let telemetry = Telemetry::install().unwrap();
    let db = Database::empty().await;
    let app = app::new(db.pool.clone(), telemetry.metrics.clone()).await.unwrap();

    let mut trees = String::new();
    let mut traces = Vec::new();
    for (title, amount, status) in
        [("the charge", 4200, 200), ("its retry", 4200, 200), ("the same key for another amount", 9900, 422)]
    {
        let (trace, got) = client::charge(&app, "order-1", amount).await.unwrap();
        assert_eq!(got.as_u16(), status);
        // Whatever has the client's trace id: nothing is lost on the way.
        let spans = telemetry.spans_of(trace).unwrap();
        let tree = tree::of(&spans, false).join("\n");
        trees += &format!("{title}\n{tree}\n\n");
        traces.push(spans);
    }
    assert_in_document("docs/metrics.md", "trace", &format!("```text\n{}\n```", trees.trim_end()));

    let [charge, retry, other] = &traces[..] else { panic!("{traces:?}") };
    let claim = named(charge, "INSERT pgonce.keys");
    let finish = named(charge, "UPDATE pgonce.keys COMMIT");
    for (span, operation) in [(claim, "INSERT"), (finish, "UPDATE")] {
        assert_eq!(span.span_kind, SpanKind::Client);
        assert_eq!(span.status, Status::Unset);
        for (name, value) in [
            ("db.system.name", "postgresql"),
            ("db.namespace", db.name()),
            ("db.collection.name", "pgonce.keys"),
            ("db.operation.name", operation),
            ("db.query.summary", &*span.name),
        ] {
            assert_eq!(attribute(span, name).as_deref(), Some(value), "{name} of {}", span.name);
        }
        assert!(attribute(span, "server.address").is_some());
    }
    let hash = attribute(named(charge, "pgonce execute"), "key_hash").unwrap();
    assert_eq!(attribute(named(retry, "pgonce execute"), "key_hash"), Some(hash), "found by the same hash");
    let refused = named(other, "pgonce execute");
    assert_eq!(refused.status, Status::error(""));
    assert_eq!(attribute(refused, "error.type").as_deref(), Some("fingerprint_mismatch"));
    for span in traces.iter().flatten() {
        for attribute in &span.attributes {
            let value = attribute.value.to_string();
            assert!(
                !["order-1", "4200", "9900"].iter().any(|secret| value.contains(secret)),
                "{attribute:?}"
            );
        }
    }

    // A statement that fails says with which code.
    let refuses = "ALTER TABLE pgonce.keys ADD CONSTRAINT refuses CHECK (false) NOT VALID";
    sqlx::raw_sql(refuses).execute(&db.pool).await.unwrap();
    let (trace, _) = client::charge(&app, "order-2", 4200).await.unwrap();
    let spans = telemetry.spans_of(trace).unwrap();
    let claim = named(&spans, "INSERT pgonce.keys");
    assert_eq!(claim.status, Status::error(""));
    for name in ["db.response.status_code", "error.type"] {
        assert_eq!(attribute(claim, name).as_deref(), Some("23514"));
    }

    let text = client::metrics(&app).await.unwrap();
    for (outcome, count) in
        [("executed", 1), ("replayed", 1), ("fingerprint_mismatch", 1), ("database_error", 1)]
    {
        let line = format!(
            "pgonce_operations_total{{call=\"execute\",scope=\"charges\",outcome=\"{outcome}\"}} {count}"
        );
        assert!(text.contains(&line), "{line} in\n{text}");
    }

    each_mode_is_told_by_what_it_sends(&telemetry, &Database::new().await).await;
}

/// The names of what a call did, in their order.
async fn steps_of(telemetry: &Telemetry, call: impl Future<Output = Outcome<i64>>) -> Vec<String> {
    let root = tracing::info_span!("root");
    let trace = root.context().span().span_context().trace_id();
    call.instrument(root.clone()).await;
    drop(root);
    let spans = telemetry.spans_of(trace).unwrap();
    for span in spans.iter().filter(|span| span.span_kind == SpanKind::Client) {
        assert_eq!(attribute(span, "db.query.summary").as_deref(), Some(&*span.name));
        let operation = span.name.split(' ').next();
        assert_eq!(attribute(span, "db.operation.name").as_deref(), operation);
        let table = span.name.contains("pgonce.keys").then_some("pgonce.keys");
        assert_eq!(attribute(span, "db.collection.name").as_deref(), table, "{}", span.name);
        assert!(attribute(span, "server.address").is_some());
        let parent = spans.iter().find(|call| call.span_context.span_id() == span.parent_span_id);
        assert!(parent.is_some_and(|call| call.name.starts_with("pgonce ")), "{}", span.name);
    }
    let names = spans.iter().map(|span| span.name.to_string());
    names.filter(|name| name != "root" && !name.starts_with("pgonce ")).collect()
}

async fn each_mode_is_told_by_what_it_sends(telemetry: &Telemetry, db: &Database) {
    const SELECT: &str = "SELECT pgonce.keys";
    const INSERT: &str = "INSERT pgonce.keys";
    const UPDATE_AND_COMMIT: &str = "UPDATE pgonce.keys COMMIT";
    const INSERT_AND_COMMIT: &str = "INSERT pgonce.keys COMMIT";
    let run = async |_: &mut PgConnection| Ok::<i64, Error>(1);
    let idempotency = Idempotency::new(db.pool.clone());
    let cases: [(&str, Idempotency, &[&str], &[&str]); 4] = [
        ("claims", idempotency.clone(), &[INSERT, "closure", UPDATE_AND_COMMIT], &[INSERT]),
        (
            "serializable",
            idempotency.clone().with_isolation(Isolation::Serializable),
            &[INSERT, "closure", INSERT_AND_COMMIT],
            &[INSERT],
        ),
        (
            "looks",
            idempotency.clone().with_mode(Mode::LookFirst),
            &[SELECT, INSERT, "closure", UPDATE_AND_COMMIT],
            &[SELECT],
        ),
        (
            "optimistic",
            idempotency.clone().with_mode(Mode::Optimistic),
            &["BEGIN", "closure", INSERT_AND_COMMIT],
            &["BEGIN", "closure", INSERT_AND_COMMIT, SELECT],
        ),
    ];
    for (name, idempotency, first, replay) in cases {
        let operation = Operation::new(scope(), key(name));
        for (expected, is_replay) in [(first, false), (replay, true)] {
            let call = async {
                let outcome = idempotency.execute(&operation, run).await.unwrap();
                assert_eq!(outcome.is_replayed(), is_replay, "{name}");
                outcome
            };
            assert_eq!(steps_of(telemetry, call).await, expected, "{name}");
        }
    }
    let mut transaction = db.pool.begin().await.unwrap();
    let inside = Operation::new(scope(), key("inside"));
    let call = async { idempotency.execute_in(&mut transaction, &inside, run).await.unwrap() };
    assert_eq!(steps_of(telemetry, call).await, [INSERT, "closure", INSERT]);
    let inbox = idempotency.inbox(scope());
    let call = async {
        inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
        Outcome::Executed(1)
    };
    assert_eq!(steps_of(telemetry, call).await, [INSERT, "closure", "COMMIT"]);
}
