//! Chaos: clients that are killed, a server that crashes, a network that fails, and a checker that proves from the clients'
//! logs and from the database that every promise was kept all the same. See `docs/chaos.md`.

mod bank;
mod call;
mod checker;
mod client;
mod crew;
mod log;
mod plan;
mod summary;
mod trouble;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgonce::Idempotency;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use throwaway_postgres::Settings;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

use crate::bank::Evidence;
use crate::call::Caller;
use crate::checker::{Complaints, Promise};
use crate::crew::Crew;
use crate::log::{Entry, Journal, Log};
use crate::plan::Try;
use crate::summary::Summary;
use crate::trouble::Tally;

const SECONDS: u64 = 60;

/// The clients are this test again, in processes of their own.
#[test]
fn every_promise_is_kept_under_chaos() {
    if let Ok(identity) = std::env::var(client::VARIABLE) {
        client::run(&identity);
    }
    let seconds = variable("PGONCE_CHAOS_SECONDS").unwrap_or(SECONDS);
    let seed = variable("PGONCE_CHAOS_SEED").unwrap_or_else(|| fastrand::u32(..).into());
    let again = format!(
        "PGONCE_CHAOS_SEED={seed} PGONCE_CHAOS_SECONDS={seconds} cargo test --all-features --test chaos"
    );
    tell(&format!("chaos for {seconds} s: {again}"));
    let folder = folder(seed);
    let (summary, complaints) =
        match Runtime::new().expect("a runtime").block_on(chaos(seed, seconds, &folder)) {
            Ok(run) => run,
            Err(error) => panic!("{error:#}\nagain: {again}\nlogs: {}", folder.display()),
        };
    tell(&summary.to_string());
    let missing = if seconds < summary::ENOUGH { Vec::new() } else { summary.missing() };
    if complaints.0.is_empty() && missing.is_empty() {
        if std::env::var_os("PGONCE_CHAOS_KEEP").is_none() {
            std::fs::remove_dir_all(&folder).expect("remove the logs");
        }
        return;
    }
    panic!("{complaints}\nnever happened: {missing:?}\nagain: {again}\nlogs: {}", folder.display());
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// To the terminal, past the test harness, which shows what is printed only when a test fails.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n{text}");
}

fn folder(seed: u64) -> PathBuf {
    let name = format!("chaos-{seed}-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("make a folder for the logs");
    folder
}

async fn chaos(seed: u64, seconds: u64, folder: &Path) -> anyhow::Result<(Summary, Complaints)> {
    // Its own server also where DATABASE_URL is set, since it crashes it.
    let settings = Settings::durable().with("deadlock_timeout", "100ms");
    let server = tokio::task::spawn_blocking(move || throwaway_postgres::private_with(&settings)).await??;
    let options: PgConnectOptions = server.url().parse().expect("the server's url");
    let pool = PgPoolOptions::new().max_connections(2).connect_lazy_with(options.clone());
    pgonce::migrate(&pool).await?;
    bank::create(&mut *pool.acquire().await?).await?;

    let test = "every_promise_is_kept_under_chaos";
    let crew = Crew::start(seed, folder.to_owned(), test, &options).await?;
    let tally = Tally::default();
    let server = trouble::make(seed, Duration::from_secs(seconds), &crew, server, &tally).await?;

    let mut complaints = Complaints::default();
    // The clients are still there, and have their connections.
    if let Err(problem) = crew.rest().await {
        complaints.add(Promise::Rest, problem.to_string());
    }
    let mut conn = PgConnection::connect_with(&options).await?;
    if let Some(problem) = unrest(&mut conn).await? {
        complaints.add(Promise::Rest, problem);
    }
    let mut logs = crew.end().await?;
    logs.push(settle(folder, &pool, &logs, &mut complaints).await?);
    let evidence = Evidence::read(&mut conn).await?;
    drop(server);
    std::fs::write(folder.join("evidence.json"), serde_json::to_vec(&evidence)?)?;
    complaints.0.extend(checker::check(&logs, &evidence).0);
    let tally = tally.into_inner().expect("no panic");
    Ok((Summary::new(&logs, &evidence, tally), complaints))
}

/// Waits until no session is in a transaction and no lock of a key is held. What there still is after a long time.
async fn unrest(conn: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let busy: Option<String> = sqlx::query_scalar(
            "SELECT string_agg(concat_ws(', ', application_name, state, query), '; ') FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND state <> 'idle'",
        )
        .fetch_one(&mut *conn)
        .await?;
        let locks: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            .fetch_one(&mut *conn)
            .await?;
        if busy.is_none() && locks == 0 {
            return Ok(None);
        }
        if Instant::now() > deadline {
            return Ok(Some(format!("not at rest: {locks} locks of keys; {}", busy.unwrap_or_default())));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Calls once more for every key that nobody got a result for: nothing is in flight any more.
async fn settle(
    folder: &Path,
    pool: &sqlx::PgPool,
    logs: &[Log],
    complaints: &mut Complaints,
) -> anyhow::Result<Log> {
    let path = folder.join("settle.jsonl");
    let journal = Arc::new(Journal::open(&path)?);
    let idempotency = Idempotency::new(pool.clone());
    let caller = Arc::new(Caller { idempotency, hardened: false, journal: Arc::clone(&journal) });
    for (scope, key) in unanswered(logs) {
        let answer = caller.call(&scope, &key, Duration::from_secs(60), Try::plain()).await;
        if !answer.is_final() {
            complaints.add(Promise::Rest, format!("{scope} {key}, at rest, answers {answer:?}"));
        }
    }
    journal.write(&Entry::Rested { problem: None });
    Log::parse("settle", &std::fs::read_to_string(&path)?, false)
}

/// The keys for which no call got a result, each with its scope.
fn unanswered(logs: &[Log]) -> Vec<(String, String)> {
    let mut of_call = HashMap::new();
    let mut answered: BTreeMap<&str, bool> = BTreeMap::new();
    for entry in logs.iter().flat_map(|log| &log.entries) {
        match entry {
            Entry::Start(start) => {
                of_call.insert(start.call, start.key.as_str());
                answered.entry(&start.key).or_default();
            }
            Entry::End { call, answer, .. } if answer.is_final() => {
                answered.insert(of_call[call], true);
            }
            _ => {}
        }
    }
    let keys = answered.into_iter().filter(|(_, answered)| !answered);
    keys.filter_map(|(key, _)| key.split_once(' '))
        .map(|(scope, key)| (scope.to_owned(), key.to_owned()))
        .collect()
}
