//! The way through Docker, with a `docker` that is a script: it notes how it was called, and its
//! "containers" are servers from the installed programs.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::client::query;
use common::process::{self, Actor, say, wait_for_parent};
use common::sandbox::Sandbox;
use throwaway_postgres::{ErrorKind, Origin, Server, Settings};

const IMAGE: &str = "example/postgres:18";

#[test]
fn child() {
    let Some(role) = process::role() else { return };
    let mut server = match role.as_str() {
        "private" => throwaway_postgres::private(),
        "shared" => throwaway_postgres::shared_lingering(Duration::from_millis(20)),
        "crash" => throwaway_postgres::private_with(&Settings::durable()),
        _ => unreachable!("{role}"),
    }
    .expect("a server");
    say(&format!("{}: {}", server.origin(), server.url()));
    if role == "crash" {
        let url = server.url().to_owned();
        let error = server.standby().expect_err("it is in a container");
        assert_eq!(error.kind(), ErrorKind::Unusable, "{error}");
        query(&url, "CREATE TABLE kept (n int)").expect("it still runs");
        for stop in [Server::stop_immediately, Server::stop_fast] {
            stop(&mut server).expect("it is ours");
            query(&url, "SELECT 1").expect_err("the server is down");
            server.start_again().expect("it is ours");
        }
        assert_eq!(query(&url, "SELECT count(*) FROM kept").expect("the table"), ["0"]);
    }
    wait_for_parent();
}

/// The pretended engine: its folder has a folder for each container.
struct Docker {
    sandbox: Sandbox,
    engine: Sandbox,
}

impl Docker {
    /// Nothing when this machine cannot play the engine.
    fn new() -> Option<Self> {
        let server = throwaway_postgres::private().expect("a server");
        let Origin::Programs { folder, .. } = server.origin() else {
            println!("skipped: there are no installed programs to play the container");
            return None;
        };
        let docker = Self { sandbox: Sandbox::new(), engine: Sandbox::new() };
        let script = include_str!("docker/docker.sh")
            .replace("@ENGINE@", &docker.engine.path().to_string_lossy())
            .replace("@PROGRAMS@", &folder.to_string_lossy())
            .replace("@AS_USER@", as_user()?);
        let path = docker.engine.path().join("docker");
        fs::write(&path, script).expect("a new file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        Some(docker)
    }

    fn start(&self, role: &str) -> Actor {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = process::command("child", role, &self.sandbox);
        command
            .env("THROWAWAY_POSTGRES_IMAGE", IMAGE)
            .env_remove("THROWAWAY_POSTGRES_BIN")
            .env("PATH", format!("{}:{path}", self.engine.path().display()));
        Actor::start(command)
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.engine.path().join("calls")).expect("it was called")
    }

    fn containers(&self) -> Vec<PathBuf> {
        self.engine.folders().into_iter().filter(|path| path.is_dir()).collect()
    }

    /// No folder, no process, no container.
    fn wait_until_empty(&self) -> Duration {
        let begin = Instant::now();
        self.sandbox.wait_until_empty();
        self.engine.wait_until("a container stayed behind", |_| {
            self.containers().is_empty() && self.engine.processes().is_empty()
        });
        begin.elapsed()
    }
}

/// What runs a command as somebody whom PostgreSQL does not refuse.
fn as_user() -> Option<&'static str> {
    let id = Command::new("id").arg("-u").output().expect("id runs").stdout;
    if id != b"0\n" {
        return Some("");
    }
    let accounts = fs::read_to_string("/etc/passwd").expect("readable");
    let there = Path::new("/usr/bin/setpriv").exists() && accounts.contains("\npostgres:");
    if !there {
        println!("skipped: as root it needs `setpriv` and the user `postgres`");
    }
    there.then_some("setpriv --reuid postgres --regid postgres --clear-groups")
}

#[test]
fn a_container_is_started_and_removed() {
    let Some(docker) = Docker::new() else { return };
    let mut child = docker.start("private");
    let answer = child.hear();
    let url = answer.strip_prefix(&format!("Docker image {IMAGE}: ")).expect("its origin");
    assert_eq!(query(url, "SHOW fsync").expect("an answer"), ["off"]);
    assert_eq!(docker.containers().len(), 1);

    let calls = docker.calls();
    let create = calls.lines().find(|line| line.starts_with("create ")).expect("a container");
    let port = url.split([':', '/']).rev().nth(1).expect("a port");
    for part in [
        &format!(" -p 127.0.0.1:{port}:5432 "),
        " --tmpfs=/var/lib/throwaway ",
        " -e PGDATA=/var/lib/throwaway/data ",
        &format!(" {IMAGE} postgres -c fsync=off "),
    ] {
        assert!(create.contains(part), "{part:?} is not in {create}");
    }
    let password = url.split([':', '@']).nth(2).expect("a password");
    assert!(!calls.contains(password), "{password} is in {calls}");

    child.finish();
    docker.wait_until_empty();
}

#[test]
fn a_durable_container_survives_a_crash() {
    let Some(docker) = Docker::new() else { return };
    let mut child = docker.start("crash");
    child.hear();
    assert!(child.finish());
    assert!(!docker.calls().contains("--tmpfs"));
    docker.wait_until_empty();
}

#[test]
fn processes_share_a_container() {
    let Some(docker) = Docker::new() else { return };
    let mut children = [(); 3].map(|()| docker.start("shared"));
    let answers = children.each_mut().map(Actor::hear);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(docker.containers().len(), 1);
    drop(children);
    docker.wait_until_empty();
}

#[test]
fn nothing_is_left_after_a_kill_at_any_moment() {
    const MOMENTS: u32 = 8;
    let Some(docker) = Docker::new() else { return };
    let begin = Instant::now();
    let mut child = docker.start("private");
    child.hear();
    let start = begin.elapsed();
    child.kill();
    let mut slowest = docker.wait_until_empty();
    for moment in 0..MOMENTS {
        let child = docker.start("private");
        thread::sleep(start * moment / (MOMENTS - 1));
        child.kill();
        thread::sleep(Duration::from_millis(30));
        slowest = slowest.max(docker.wait_until_empty());
    }
    println!("a start takes {start:?}, everything was gone within {slowest:?}");
}
