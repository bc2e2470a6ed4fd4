//! A client process: this test binary, run again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, SystemTime};

use pgonce::Idempotency;
use serde::{Deserialize, Serialize};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::call::Caller;
use crate::log::{Answer, Entry, Journal};
use crate::plan::{Character, Key, Request, TASKS};
use crate::work::PLANNED;

/// The environment variable that makes a client of this process.
pub const VARIABLE: &str = "PGONCE_CHAOS_CLIENT";

/// What a client says when everything was answered.
pub const RESTED: &str = "rested";

/// Who it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    pub seed: u64,
    pub client: u64,
    /// Its how many-th process this is.
    pub life: u64,
    /// When the run began: the hot keys change in the course of it.
    pub began: SystemTime,
    pub log: PathBuf,
    pub url: String,
}

/// How long a hot key is hot.
const HOT: Duration = Duration::from_millis(400);

/// Runs until standard input ends. A line there asks to come to rest.
pub fn run(identity: &str) -> ! {
    let identity: Identity = serde_json::from_str(identity).expect("an identity");
    let journal = Arc::new(Journal::open(&identity.log).expect("open the log"));
    keep_quiet_about_planned_panics();
    tracing::subscriber::set_global_default(Registry::default().with(LostCommits(Arc::clone(&journal))))
        .expect("the first subscriber");

    let ending = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&ending);
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines() {
            asked.store(true, SeqCst);
        }
        // Also when the parent was killed.
        std::process::exit(0);
    });

    let runtime = Runtime::new().expect("a runtime");
    let rested = runtime.spawn(async move { live(identity, journal, ending).await });
    if runtime.block_on(rested).is_err() {
        std::process::exit(1);
    }
    println!("\n{RESTED}");
    loop {
        std::thread::park();
    }
}

async fn live(identity: Identity, journal: Arc<Journal>, ending: Arc<AtomicBool>) {
    let idempotency = open(&identity).await;
    let hardened = Character::of(identity.seed, identity.client, identity.life).hardened;
    let caller =
        Arc::new(Caller { idempotency: idempotency.clone(), hardened, journal: Arc::clone(&journal) });
    let tasks = (0..TASKS).map(|task| {
        let (identity, caller, ending) = (identity.clone(), Arc::clone(&caller), Arc::clone(&ending));
        tokio::spawn(async move {
            for number in 0.. {
                if ending.load(SeqCst) {
                    break;
                }
                let request = Request::of(identity.seed, identity.client, identity.life, task, number);
                request_until_answered(&identity, &caller, request, &ending).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a task");
    }
    journal.write(&Entry::Rested { problem: problem_with_pool(&idempotency).await });
}

async fn open(identity: &Identity) -> Idempotency {
    let character = Character::of(identity.seed, identity.client, identity.life);
    let options: PgConnectOptions = identity.url.parse().expect("a url");
    let name = format!("client {} life {}", identity.client, identity.life);
    let options = options.application_name(&name);
    let pool = || {
        PgPoolOptions::new().max_connections(character.connections).acquire_timeout(Duration::from_secs(3))
    };
    let idempotency = loop {
        if !character.hardened {
            break Idempotency::new(pool().connect_lazy_with(options));
        }
        // Only the first connection has to succeed, some time.
        match Idempotency::connect_with(pool(), options.clone()).await {
            Ok(idempotency) => break idempotency,
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    };
    idempotency.with_commit_timeout(character.commit_timeout)
}

async fn request_until_answered(
    identity: &Identity,
    caller: &Arc<Caller>,
    mut request: Request,
    ending: &AtomicBool,
) {
    let key = match &request.key {
        Key::Cold(key) => key.clone(),
        Key::Hot(number) => {
            let elapsed = identity.began.elapsed().unwrap_or_default();
            format!("hot-{}-{number}", elapsed.as_millis() / HOT.as_millis())
        }
        Key::Brief(number) => format!("brief-{number}"),
    };
    for _ in 0..=request.replays {
        loop {
            let first = caller.call(request.scope, &key, request.retention, request.next_try());
            let answer = if std::mem::take(&mut request.twice) {
                let second = caller.call(request.scope, &key, request.retention, request.next_try());
                tokio::join!(first, second).0
            } else {
                first.await
            };
            // Where nobody listens, trying again at once would only fill the logs.
            let failed = matches!(answer, Answer::Database { .. });
            sleep(request.pause * if failed { 10 } else { 1 }).await;
            if answer.is_final() || ending.load(SeqCst) {
                break;
            }
        }
    }
}

/// Whether each connection of the pool can be had, and is in no transaction.
async fn problem_with_pool(idempotency: &Idempotency) -> Option<String> {
    let mut all = Vec::new();
    let size = idempotency.pool().options().get_max_connections();
    for _ in 0..size {
        match idempotency.pool().acquire().await {
            Ok(conn) => all.push(conn),
            Err(error) => return Some(format!("connection {} of {size}: {error}", all.len() + 1)),
        }
    }
    for conn in &mut all {
        if conn.is_in_transaction() {
            return Some("a connection is in a transaction".to_owned());
        }
        if let Err(error) = conn.ping().await {
            return Some(format!("a connection is broken: {error}"));
        }
    }
    None
}

fn keep_quiet_about_planned_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str() != Some(PLANNED) {
            usual(panic);
        }
    }));
}

/// Writes down what the library says of lost COMMITs.
struct LostCommits(Arc<Journal>);

impl<S: tracing::Subscriber> Layer<S> for LostCommits {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target() == "pgonce::commit"
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut message = Message::default();
        event.record(&mut message);
        self.0.write(&Entry::LostCommit(message.0));
    }
}

#[derive(Default)]
struct Message(String);

impl tracing::field::Visit for Message {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
