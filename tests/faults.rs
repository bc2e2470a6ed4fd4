//! The sweep: every fault at every boundary of every message. `docs/reliability.md` has its table.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use pgonce::testing::{Edge, Fault, Message, Proxy, Side};
use pgonce::{Error, ErrorKind, Idempotency, InFlight, Mode, Operation, Outcome};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};
use support::{Database, key, scope};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

const FAULTS: [(&str, Fault); 5] = [
    ("cut", Fault::Cut),
    ("outage", Fault::Outage),
    ("black hole", Fault::BlackHole),
    ("stall", Fault::Stall),
    ("delay", Fault::Delay(Duration::from_millis(20))),
];

/// How many cases run at a time: they mostly wait.
const AT_A_TIME: usize = 24;

/// Far more than anything here takes; where it passes, something hangs.
const FOR_EVER: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Fresh,
    Optimistic,
    Replay,
    RecordedFailure,
    Message,
    /// Two messages, of which the first one has the effect.
    Batch,
    /// A fresh execution whose connection is cut at COMMIT; the fault comes while that is being found out.
    LostCommit(Edge),
}

/// A message of the undisturbed run, and the step that it belongs to.
struct Boundary {
    side: Side,
    nth: usize,
    edge: Edge,
    step: String,
}

/// What came of one case: what the caller got, and what the database held afterwards.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Saw {
    told: String,
    held: &'static str,
}

type Answer = Result<Outcome<Result<Uuid, String>>, Error>;

impl Scenario {
    async fn call(self, idempotency: &Idempotency, operation: &Operation, runs: &AtomicUsize) -> Answer {
        let work = async |conn: &mut PgConnection| {
            runs.fetch_add(1, SeqCst);
            sqlx::query("INSERT INTO effects (key) VALUES ($1)")
                .bind(operation.key().as_str())
                .execute(conn)
                .await?;
            Ok::<_, Error>(Uuid::new_v4())
        };
        let inbox = idempotency.inbox(operation.scope().clone());
        let no_result = Outcome::Replayed(Ok(Uuid::nil()));
        if self == Self::Message {
            let delivery = inbox.process(operation.key().clone(), work).await?;
            Ok(delivery.processed().map_or(no_result, |id| Outcome::Executed(Ok(id))))
        } else if self == Self::Batch {
            let second = key(&format!("{}-second", operation.key()));
            let batch = [pgonce::Message::new(operation.key().clone()), pgonce::Message::new(second)];
            let report = inbox.process_batch(&batch, async |conn, _| work(conn).await).await?;
            assert!(report.is_complete());
            Ok(report.results.first().map_or(no_result, |id| Outcome::Executed(Ok(*id))))
        } else if self == Self::RecordedFailure {
            let declines = async |conn: &mut PgConnection| Ok(Err(format!("declined {}", work(conn).await?)));
            idempotency.execute_recording(operation, declines).await
        } else {
            let mode = if self == Self::Optimistic { Mode::Optimistic } else { Mode::ClaimFirst };
            Ok(idempotency.clone().with_mode(mode).execute(operation, work).await?.map(Ok))
        }
    }

    /// Runs it undisturbed, and takes down what is said.
    async fn boundaries(self, db: &Database) -> Vec<Boundary> {
        let operation = self.operation(db, "undisturbed").await;
        let proxy = Proxy::start(&db.options()).await.unwrap();
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
        self.lose_commit(&proxy);
        self.call(&Idempotency::new(pool), &operation, &AtomicUsize::new(0)).await.unwrap();
        let mut messages = proxy.conversation();
        messages.retain(|message| message.connection == self.connection() && message.label != "Terminate");
        // What comes after the last answer is the pool's. So is the ROLLBACK of what was not claimed, which is not waited for.
        let first = |messages: &[Message], wanted: &str| {
            messages.iter().position(|message| step_of(&message.label).as_deref() == Some(wanted))
        };
        let end = match first(&messages, "COMMIT") {
            Some(commit) => {
                let answer = messages[commit..].iter().position(|message| message.label == "ReadyForQuery");
                commit + answer.unwrap() + 1
            }
            // The proxy may not have seen it yet.
            None => first(&messages, "ROLLBACK").unwrap_or(messages.len()),
        };
        messages.truncate(end);
        let mut step = String::new();
        let mut boundaries = Vec::new();
        for (place, Message { side, nth, label, .. }) in messages.iter().enumerate() {
            if *side == Side::Client {
                step = step_of(label).unwrap_or(step);
            }
            let delivered = if *side == Side::Server { ", delivered" } else { "" };
            let finding_out = matches!(self, Self::LostCommit(_));
            let named = |edge| match step.as_str() {
                step if finding_out => format!("{step} (looking)"),
                "COMMIT" if edge == Edge::After => "COMMIT, delivered".to_owned(),
                "COMMIT" => format!("COMMIT{delivered}"),
                step => step.to_owned(),
            };
            boundaries.push(Boundary {
                side: *side,
                nth: *nth,
                edge: Edge::Before,
                step: named(Edge::Before),
            });
            // After the last answer of a step is before the next one.
            let next = messages[place + 1..].iter().find(|next| next.side == Side::Client);
            let step = match next {
                _ if label != "ReadyForQuery" => named(Edge::After),
                Some(next) if !finding_out => step_of(&next.label).unwrap_or_else(|| named(Edge::After)),
                Some(_) => named(Edge::After),
                None => "afterwards".to_owned(),
            };
            boundaries.push(Boundary { side: *side, nth: *nth, edge: Edge::After, step });
        }
        // How a connection is made is swept by the others.
        boundaries.retain(|boundary| boundary.step != "connecting (looking)");
        boundaries
    }

    /// While it is found out, a dead connection takes more than a second.
    fn commit_timeout(self) -> Duration {
        Duration::from_secs(if matches!(self, Self::LostCommit(_)) { 3 } else { 2 })
    }

    /// Which connection the faults are for.
    fn connection(self) -> usize {
        usize::from(matches!(self, Self::LostCommit(_)))
    }

    fn lose_commit(self, proxy: &Proxy) {
        if let Self::LostCommit(edge) = self {
            proxy
                .arm(Fault::Cut, edge, |message| message.connection == 0 && message.label == "Query: COMMIT");
        }
    }

    async fn operation(self, db: &Database, name: &str) -> Operation {
        let operation = Operation::new(scope(), key(name)).with_params(&42).unwrap();
        if self == Self::Replay {
            self.call(&db.idempotency(), &operation, &AtomicUsize::new(0)).await.unwrap();
        }
        operation
    }

    /// One fault at one boundary: what the caller gets, what the database holds, and that the promise holds.
    async fn suffer(self, db: &Database, boundary: &Boundary, fault: Fault, name: &str) -> Saw {
        let mut commit_timeout = self.commit_timeout();
        loop {
            // A slow machine may need longer to connect than a round of finding out has, so that the fault has no occasion.
            let name = format!("{name}-{}s", commit_timeout.as_secs());
            if let Some(saw) = self.try_to_suffer(db, boundary, fault, &name, commit_timeout).await {
                return saw;
            }
            commit_timeout *= 2;
        }
    }

    /// Nothing when finding out did not get as far as the fault.
    async fn try_to_suffer(
        self,
        db: &Database,
        boundary: &Boundary,
        fault: Fault,
        name: &str,
        commit_timeout: Duration,
    ) -> Option<Saw> {
        let operation = self.operation(db, name).await;
        let Boundary { side, nth, edge, ref step } = *boundary;
        let proxy = Proxy::start(&db.options()).await.unwrap();
        self.lose_commit(&proxy);
        let connection = self.connection();
        proxy.arm(fault, edge, move |message| {
            (message.connection, message.side, message.nth) == (connection, side, nth)
        });
        let options = proxy.options().application_name(name);
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let idempotency = Idempotency::new(pool.clone()).with_commit_timeout(commit_timeout);
        let runs = AtomicUsize::new(0);

        // Before the COMMIT a network that swallows everything is waited for until the caller gives up. From the COMMIT on
        // the call ends by itself, always.
        let ends = step.starts_with("COMMIT") || step == "afterwards" || matches!(self, Self::LostCommit(_));
        let hangs = matches!(fault, Fault::BlackHole | Fault::Stall) && !ends;
        let gives_up = async {
            proxy.hit(1).await;
            sleep(if hangs { Duration::from_millis(50) } else { FOR_EVER }).await;
        };
        let answer = tokio::select! {
            answer = self.call(&idempotency, &operation, &runs) => Some(answer),
            () = gives_up => None,
        };
        assert!(answer.is_some() || hangs, "the call hangs");
        if connection == 1 && proxy.hits() == 1 && commit_timeout < FOR_EVER {
            return None;
        }
        assert_eq!(proxy.hits(), 1 + connection, "the fault happened");

        // When the fault is over, the pool has its slot, and the server no session that is not at rest.
        proxy.heal();
        let conn = timeout(FOR_EVER, pool.acquire()).await.expect("the slot comes back").unwrap();
        assert!(!conn.is_in_transaction());
        drop(conn);
        timeout(FOR_EVER, pool.close()).await.expect("the pool closes");
        timeout(FOR_EVER, gone(db, name)).await.expect("the server's sessions end");

        let before = db.idempotency().find(operation.scope(), operation.key()).await.unwrap();
        let held = if before.is_some() { "everything" } else { "nothing" };
        let retry = db.idempotency().with_in_flight(InFlight::Wait(FOR_EVER));
        let again = self.call(&retry, &operation, &AtomicUsize::new(0)).await.unwrap();
        let told = match answer {
            None => "none, until it gives up".to_owned(),
            Some(Ok(outcome)) => {
                assert!(again.is_replayed(), "told of a result that is not there");
                let told = match (&outcome, runs.into_inner()) {
                    (Outcome::Replayed(_), _) => "the first result".to_owned(),
                    (_, 1) => "the result".to_owned(),
                    (_, runs) => format!("the result of run {runs}"),
                };
                // A message has no result to get again.
                if !matches!(self, Self::Message | Self::Batch) {
                    assert_eq!(outcome.into_inner(), *again.as_ref().into_inner(), "told of another result");
                }
                told
            }
            Some(Err(error)) => {
                assert!(error.is_retryable(), "{error}");
                let unknown = error.kind() == ErrorKind::CommitUnknown;
                assert!(unknown || self == Self::Replay || before.is_none(), "told {error}, and it is there");
                format!("`{:?}`", error.kind())
            }
        };
        assert_eq!(again.is_replayed(), before.is_some());
        let effects: i64 = sqlx::query_scalar("SELECT count(*) FROM effects WHERE key = $1")
            .bind(name)
            .fetch_one(&db.pool)
            .await
            .unwrap();
        assert_eq!(effects, if self == Self::RecordedFailure { 0 } else { 1 }, "not once");
        Some(Saw { told, held })
    }
}

/// The step that a client's message begins, if it does.
fn step_of(label: &str) -> Option<String> {
    let (kind, sql) = label.split_once(": ").unwrap_or((label, ""));
    let step = match kind {
        "StartupMessage" => "connecting",
        "Parse" | "Query" if sql.starts_with("SELECT pg_catalog.pg_try_advisory") => "the lock",
        "Parse" | "Query" if sql.starts_with("WITH confirmed") => "the row",
        "Parse" | "Query" if sql.starts_with("BEGIN") => "BEGIN",
        "Parse" | "Query" if sql.starts_with("INSERT INTO pgonce.keys") && sql.contains("state, result") => {
            "the finish"
        }
        "Parse" | "Query" if sql.starts_with("INSERT INTO pgonce.keys") => "the claim",
        "Parse" | "Query" if sql.starts_with("SELECT lock.ours") => "the look",
        "Parse" | "Query" if sql.starts_with("UPDATE pgonce.keys") => "the finish",
        "Parse" | "Query" if sql.starts_with("INSERT INTO effects") => "the closure",
        "Parse" | "Query" if sql.starts_with("SAVEPOINT") => "the savepoint",
        "Parse" | "Query" if sql.starts_with("ROLLBACK TO") => "undoing its writes",
        "Query" if sql.starts_with("CLOSE ") => "COMMIT",
        "Query" if sql == "COMMIT" || sql == "ROLLBACK" => sql,
        "Parse" | "Query" => panic!("an unknown step: {label}"),
        _ => return None,
    };
    Some(step.to_owned())
}

/// Waits until the server has no session of this case any more.
async fn gone(db: &Database, name: &str) {
    while sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1)")
        .bind(name)
        .fetch_one(&db.pool)
        .await
        .unwrap()
    {
        sleep(Duration::from_millis(5)).await;
    }
}

/// All cases of a scenario, as the table in the documentation.
async fn sweep(scenario: Scenario, name: &'static str) {
    let db = Database::new().await;
    sqlx::raw_sql("CREATE TABLE effects (key text NOT NULL)").execute(&db.pool).await.unwrap();
    let boundaries = scenario.boundaries(&db).await;
    let cases: Vec<_> = boundaries
        .iter()
        .flat_map(|boundary| FAULTS.map(|(fault_name, fault)| (boundary, fault_name, fault)))
        .collect();
    let count = cases.len();
    let saw = stream::iter(cases.into_iter().enumerate())
        .map(async |(number, (boundary, fault_name, fault))| {
            let name = format!("{}-{number}", db.name());
            let saw = scenario.suffer(&db, boundary, fault, &name).await;
            (boundary.step.as_str(), fault_name, saw)
        })
        .buffer_unordered(AT_A_TIME)
        .collect::<Vec<_>>()
        .await;
    db.wait_until_idle().await;
    assert_eq!(db.count("pgonce.keys WHERE state = 'pending'").await, 0);
    println!("{name}: {} boundaries, {count} cases", boundaries.len());
    if matches!(scenario, Scenario::LostCommit(_)) {
        // What the look finds depends on whether the server has noticed the cut by then.
        return;
    }

    let mut cells: BTreeMap<(&str, &str), BTreeSet<Saw>> = BTreeMap::new();
    for (step, fault, saw) in saw {
        cells.entry((step, fault)).or_default().insert(saw);
    }
    let mut steps: Vec<&str> = boundaries.iter().map(|boundary| boundary.step.as_str()).collect();
    steps.dedup();
    let mut seen = BTreeSet::new();
    steps.retain(|step| seen.insert(*step));
    let mut table = String::from("| the fault is at |");
    let head = FAULTS.map(|(fault, _)| format!(" {fault} |")).concat();
    writeln!(table, "{head}\n| --- |{}", " --- |".repeat(FAULTS.len())).unwrap();
    for step in steps {
        let row = FAULTS.map(|(fault, _)| {
            let cell = cells[&(step, fault)].iter().map(|Saw { told, held }| format!("{told}; {held}"));
            format!(" {} |", cell.collect::<Vec<_>>().join(" *or* "))
        });
        writeln!(table, "| {step} |{}", row.concat()).unwrap();
    }
    support::assert_in_document("docs/reliability.md", name, &table);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_execution_survives_every_fault() {
    sweep(Scenario::Fresh, "fresh").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optimistic_execution_survives_every_fault() {
    sweep(Scenario::Optimistic, "optimistic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_survives_every_fault() {
    sweep(Scenario::Replay, "replay").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_failure_survives_every_fault() {
    sweep(Scenario::RecordedFailure, "recorded failure").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_survives_every_fault() {
    sweep(Scenario::Message, "message").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_messages_survives_every_fault() {
    sweep(Scenario::Batch, "batch").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finding_out_that_a_lost_commit_was_committed_survives_every_fault() {
    sweep(Scenario::LostCommit(Edge::After), "lost, committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finding_out_that_a_lost_commit_is_dead_survives_every_fault() {
    sweep(Scenario::LostCommit(Edge::Before), "lost, dead").await;
}

/// What could not be claimed is told in time, whatever becomes of the ROLLBACK.
#[tokio::test]
async fn a_rollback_that_is_swallowed_holds_nobody_up() {
    let db = Database::new().await;
    let operation = Operation::new(scope(), key("order-1")).with_params(&42).unwrap();
    db.idempotency().execute(&operation, async |_| Ok::<_, Error>(7)).await.unwrap();
    let proxy = Proxy::start(&db.options()).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
    proxy.arm(Fault::BlackHole, Edge::Before, |message| message.label == "Query: ROLLBACK");
    let other = Operation::new(scope(), key("order-1")).with_params(&43).unwrap();
    let idempotency = Idempotency::new(pool);
    let call = idempotency.execute(&other, async |_| Ok::<_, Error>(0));
    let error = timeout(Duration::from_secs(30), call).await.expect("it is not waited for").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
    assert_eq!(proxy.hits(), 1);
}

/// A runtime that is at rest as soon as the call has returned, as in a program that is not asynchronous otherwise.
#[test]
fn a_replay_leaves_no_transaction_when_the_runtime_is_at_rest() {
    let elsewhere = tokio::runtime::Runtime::new().unwrap();
    let db = elsewhere.block_on(Database::new());
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = db.options().application_name("at rest");
    let idempotency = {
        let _inside = here.enter();
        Idempotency::new(PgPoolOptions::new().max_connections(1).connect_lazy_with(options))
    };
    for replayed in [false, true] {
        let operation = Operation::new(scope(), key("order-1"));
        let outcome = here.block_on(idempotency.execute(&operation, async |_| Ok::<_, Error>(7))).unwrap();
        assert_eq!(outcome.is_replayed(), replayed);
    }
    elsewhere.block_on(db.wait_until(
        "SELECT bool_and(state = 'idle') FROM pg_stat_activity WHERE application_name = 'at rest'",
    ));
}
