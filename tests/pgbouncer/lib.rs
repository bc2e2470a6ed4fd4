//! PgBouncer for tests, with the settings of `docs/pgbouncer.md`.
//!
//! The programs are named by `PGONCE_PGBOUNCER` (1.21 or later) and `PGONCE_PGBOUNCER_OLD` (before 1.21);
//! `bash .ci/run pgbouncer` builds them and runs the tests with them.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use std::{env, fs};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgPool};

/// The settings that the documentation recommends.
const DOCUMENTED: &str = include_str!("../../docs/pgbouncer.md");

/// Which PgBouncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Before 1.21: it does not follow prepared statements.
    Old,
    /// 1.21 or later.
    New,
}

impl Program {
    /// Its path.
    fn path(self) -> &'static Path {
        static OLD: LazyLock<PathBuf> =
            LazyLock::new(|| find("PGONCE_PGBOUNCER_OLD", |version| version < (1, 21)));
        static NEW: LazyLock<PathBuf> =
            LazyLock::new(|| find("PGONCE_PGBOUNCER", |version| version >= (1, 21)));
        match self {
            Self::Old => &OLD,
            Self::New => &NEW,
        }
    }
}

/// The program that the variable names, if it is of the right version.
fn find(variable: &str, fits: impl FnOnce((u32, u32)) -> bool) -> PathBuf {
    let usage = "PGONCE_PGBOUNCER must name a PgBouncer of version 1.21 or later and PGONCE_PGBOUNCER_OLD one before; \
                 `bash .ci/run pgbouncer` builds both and runs these tests";
    let path =
        PathBuf::from(env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: {usage}")));
    let output = Command::new(&path).arg("--version").output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {}: {error}: {usage}", path.display()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.strip_prefix("PgBouncer ").and_then(|text| {
        let mut numbers = text.split(['.', '\n']).map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    assert!(version.is_some_and(fits), "{variable} is {}, which says {text:?}: {usage}", path.display());
    path
}

/// A running PgBouncer, which ends with the value, or with the process.
pub struct PgBouncer {
    folder: PathBuf,
    options: PgConnectOptions,
    shell: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl PgBouncer {
    /// In front of the database with this URL, with the documented settings and what is to be different here.
    pub async fn start(program: Program, url: &str, different: &[(&str, &str)]) -> Self {
        let options: PgConnectOptions = url.parse().expect("the server's url");
        let folder = env::temp_dir().join(format!("pgonce-pgbouncer-{}", uuid::Uuid::new_v4().simple()));
        let mut shell = Command::new("/bin/sh")
            .args(["-c", include_str!("run.sh"), "pgbouncer-for-tests"])
            .args([program.path(), &folder])
            .env("SETTINGS", settings(program, &options, &folder, different))
            .env("USERS", users(url))
            // Out of reach of the terminal's signals.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a shell");
        let orders = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().expect("piped"));
        let mut pgbouncer = Self { options: options.socket(&folder), folder, shell, orders, answers };
        pgbouncer.start_again().await;
        pgbouncer
    }

    /// How to connect to it.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// A pool of clients.
    pub fn pool(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(self.options())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.order("kill");
    }

    /// After [`kill`](Self::kill). Returns when it takes connections.
    pub async fn start_again(&mut self) {
        self.order("start");
        let started = Instant::now();
        loop {
            match self.options.connect().await {
                Ok(conn) => return conn.close().await.expect("close"),
                Err(error) if started.elapsed() > Duration::from_secs(30) => {
                    let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                    panic!("PgBouncer does not take connections: {error}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders.as_ref().expect("running"), "{order}").expect("give an order");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("read the answer");
        assert_eq!(answer, "done\n", "the shell has ended");
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.orders.take());
        // A test that fails has something better to say.
        let _ = self.shell.wait();
    }
}

/// The text of `pgbouncer.ini`: as documented, but on a socket in the folder, for a server that listens elsewhere, and
/// with what is to be different.
fn settings(
    program: Program,
    server: &PgConnectOptions,
    folder: &Path,
    different: &[(&str, &str)],
) -> String {
    let folder = folder.to_str().expect("a path in UTF-8");
    let port = server.get_port().to_string();
    let mut ours = vec![
        ("listen_addr", ""),
        ("listen_port", port.as_str()),
        ("unix_socket_dir", folder),
        ("auth_file", "users.txt"),
    ];
    ours.extend_from_slice(different);
    let documented = DOCUMENTED.split("```ini\n").nth(1).and_then(|text| text.split("```").next());
    let mut lines = vec![format!("[databases]\n* = host={} port={port}", server.get_host())];
    for line in documented.expect("settings in docs/pgbouncer.md").lines() {
        let name = line.split(" = ").next().unwrap_or_default();
        // An old one does not start with a setting that it does not know.
        let unknown = program == Program::Old && name == "max_prepared_statements";
        if !unknown && ours.iter().all(|(ours, _)| *ours != name) {
            lines.push(line.to_owned());
        }
    }
    lines.extend(ours.iter().map(|(name, value)| format!("{name} = {value}")));
    lines.join("\n")
}

/// The text of the file of users, from a URL that begins with `postgres://user:password@`.
fn users(url: &str) -> String {
    let login = url.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
    let (user, password) =
        login.and_then(|(login, _)| login.split_once(':')).expect("a server's url with user and password");
    format!("\"{user}\" \"{password}\"")
}
