//! `examples/inbox_nats`, as a process of its own: what it comes to with the inbox and without it, and that it
//! leaves nothing behind.
//!
//! It needs nats-server (`apt-get install nats-server`) or Docker, as the example does.

#[path = "support/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use throwaway_postgres::Server;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// One server for all of them; each run makes a database there.
static SERVER: LazyLock<Server> =
    LazyLock::new(|| throwaway_postgres::shared().unwrap_or_else(|error| panic!("{error}")));

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| program::example("inbox_nats"));

const PATIENCE: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(&*PROGRAM);
    command
        .args(arguments)
        .args(["--consumers", "3", "--seed", "42"])
        .env("DATABASE_URL", SERVER.url())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The figure with this name in the summary.
fn figure(output: &Output, name: &str) -> usize {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line = stdout.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next()?.replace(',', "").parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {output:?}"))
}

#[tokio::test]
async fn every_event_is_applied_once_whoever_is_killed() {
    let output = command(&["--events", "2000"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, expected) in [
        ("events published", 2000),
        ("published again", 667),
        ("rows in the ledger", 2000),
        ("events applied", 2000),
        ("applied twice", 0),
    ] {
        assert_eq!(figure(&output, name), expected, "{name}");
    }
    assert!(figure(&output, "deliveries") > 2667);
    assert!(figure(&output, "duplicates dropped") >= 667);
    assert!(figure(&output, "consumers killed") > 0);
}

#[tokio::test]
async fn without_the_inbox_events_are_applied_twice() {
    let output = command(&["--events", "2000", "--without-inbox"]).output().await.unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.starts_with("Error: applied twice: "), "{complaint}");
    // All that was published twice, at least.
    assert!(figure(&output, "applied twice") >= 667);
    assert!(figure(&output, "rows in the ledger") >= 2667);
}

#[tokio::test]
async fn without_a_nats_server_it_says_what_to_install() {
    let output = command(&[]).env("NATS_SERVER_BIN", "/nowhere/nats-server").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let complaint = String::from_utf8_lossy(&output.stderr);
    for said in ["no nats-server", "apt-get install nats-server", "Docker", "/nowhere/nats-server"] {
        assert!(complaint.contains(said), "no {said:?} in {complaint}");
    }
}

#[tokio::test]
async fn killed_in_the_middle_it_leaves_nothing() {
    let folder = Folder::new();
    let mut example = command(&["--events", "100000"]);
    example.env("TMPDIR", folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut example = example.spawn().unwrap();
    let mut lines = BufReader::new(example.stdout.take().unwrap()).lines();
    let mut stderr = example.stderr.take().unwrap();

    let mut database = None;
    let in_the_middle = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if let Some((_, name)) = line.split_once("new database ") {
                database = Some(name.to_owned());
            }
            if line.trim_start().starts_with("applied") {
                return true;
            }
        }
        false
    };
    if !timeout(PATIENCE, in_the_middle).await.expect("it begins") {
        let mut complaint = String::new();
        stderr.read_to_string(&mut complaint).await.unwrap();
        panic!("it ended: {complaint}");
    }
    assert_eq!(folder.entries(), 1, "nats-server's folder");
    example.kill().await.unwrap();

    // The consumers have the same stderr: its end is theirs.
    let mut complaint = String::new();
    timeout(PATIENCE, stderr.read_to_string(&mut complaint)).await.expect("the consumers end").unwrap();
    wait_until("nats-server and its folder are gone", async || folder.entries() == 0).await;
    let database = database.expect("its name");
    wait_until("the database is dropped", async || !exists(&database).await).await;
}

async fn wait_until(what: &str, is_so: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < PATIENCE, "not so: {what}");
        tokio::task::yield_now().await;
    }
}

async fn exists(database: &str) -> bool {
    let mut conn = PgConnection::connect(SERVER.url()).await.unwrap();
    let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    sqlx::query_scalar(sql).bind(database).fetch_one(&mut conn).await.unwrap()
}

/// A folder for temporary files. It goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let name = format!("pgonce-inbox-nats-test-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn entries(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
