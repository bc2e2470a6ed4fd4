//! A shared server: processes come and go, all use the same one, and nothing is left of it.

mod common;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use common::client::{Client, query};
use common::process::{self, Actor, say, signal, wait_for_parent};
use common::sandbox::Sandbox;
use throwaway_postgres::{Error, ErrorKind, Server};

/// So short that the moments of giving up come often.
const SHORT: Duration = Duration::from_millis(20);

#[test]
fn child() {
    let Some(role) = process::role() else { return };
    match role.as_str() {
        "stay" => {
            let server = throwaway_postgres::shared().expect("a server");
            say(server.url());
            wait_for_parent();
        }
        "refused" => {
            let error = throwaway_postgres::shared().expect_err("the folder is a trap");
            assert_eq!(error.kind(), ErrorKind::Unusable, "{error}");
            assert!(error.to_string().contains("not ours"), "{error}");
        }
        "not ours" => {
            let mut server = throwaway_postgres::shared().expect("a server");
            let errors = [server.stop_immediately(), server.stop_fast(), server.start_again()];
            assert!(errors.into_iter().all(|e| e.expect_err("shared").kind() == ErrorKind::NotOurs));
            query(server.url(), "SELECT 1").expect("it still runs");
        }
        seed => come_and_go(seed.parse().expect("a number")),
    }
}

/// Joins and leaves, again and again, with pauses around the time that the server lingers.
fn come_and_go(seed: u64) {
    let mut random = seed;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % 1000
    };
    for round in 0..12 {
        let begin = Instant::now();
        let server = throwaway_postgres::shared_lingering(SHORT)
            .unwrap_or_else(|e| panic!("round {round} of {seed}, {:?}: {e}", begin.elapsed()));
        let mut client = Client::connect(server.url()).expect("a connection");
        client.query("SELECT 1").expect("an answer");
        thread::sleep(Duration::from_micros(next() * 30));
        client.query("SELECT 1").expect("the server stays as long as we do");
        drop(server);
        thread::sleep(Duration::from_micros(next() * 60));
    }
}

#[test]
fn a_folder_that_somebody_removes_takes_its_server_along() {
    let sandbox = Sandbox::new();
    let mut child = Actor::start(process::command("child", "stay", &sandbox));
    child.hear();
    // The server may make a file meanwhile.
    for folder in fs::read_dir(sandbox.path()).expect("readable").flatten() {
        while folder.path().exists() {
            let _ = fs::remove_dir_all(folder.path());
        }
    }
    assert!(child.finish());
    sandbox.wait_until_empty();
}

#[test]
fn several_processes_get_the_same_server_and_the_last_one_ends_it() {
    let sandbox = Sandbox::new();
    let start = || Actor::start(process::command("child", "stay", &sandbox));
    let mut children: Vec<Actor> = (0..5).map(|_| start()).collect();
    let urls: Vec<String> = children.iter_mut().map(Actor::hear).collect();
    assert!(urls.iter().all(|url| *url == urls[0]), "{urls:?}");

    // Whoever started it: all but one go, in one way or another.
    let last = children.pop().expect("five");
    for (n, child) in children.into_iter().enumerate() {
        if n % 2 == 0 { child.kill() } else { assert!(child.finish()) }
    }
    query(&urls[0], "SELECT 1").expect("the last one keeps it");
    assert!(last.finish());

    // It lingers, so that the next one does not have to start one.
    let mut late = start();
    assert_eq!(late.hear(), urls[0]);
    late.kill();
    println!("gone after {:?}", sandbox.wait_until_empty());
}

#[test]
fn joining_a_running_server_is_fast() {
    let sandbox = Sandbox::new();
    let mut first = Actor::start(process::command("child", "stay", &sandbox));
    first.hear();
    let begin = Instant::now();
    let mut second = Actor::start(process::command("child", "stay", &sandbox));
    second.hear();
    println!("a process that joins: {:?}", begin.elapsed());
    drop((first, second));
    sandbox.wait_until_empty();
}

#[test]
fn joins_race_with_leaves() {
    let sandbox = Sandbox::new();
    let children: Vec<Actor> =
        (1..=4).map(|seed| Actor::start(process::command("child", &seed.to_string(), &sandbox))).collect();
    for child in children {
        assert!(child.finish(), "a child failed, see above");
    }
    sandbox.wait_until_empty();
}

#[test]
fn a_starter_that_is_killed_leaves_a_server_to_who_waits_for_it() {
    let sandbox = Sandbox::new();
    let starter = Actor::start(process::command("child", "stay", &sandbox));
    sandbox.wait_until("no folder", |contents| !contents.is_empty());
    let mut other = Actor::start(process::command("child", "stay", &sandbox));
    sandbox.wait_until("no data", |_| {
        sandbox.folders().first().is_some_and(|folder| folder.join("data").exists())
    });
    starter.kill();
    query(&other.hear(), "SELECT 1").expect("a server");
    other.kill();
    sandbox.wait_until_empty();
}

#[test]
fn it_cannot_be_stopped() {
    let sandbox = Sandbox::new();
    assert!(Actor::start(process::command("child", "not ours", &sandbox)).finish());
    sandbox.wait_until_empty();
}

#[test]
fn a_folder_that_somebody_else_could_have_made_is_refused() {
    let sandbox = Sandbox::new();
    let mut child = Actor::start(process::command("child", "stay", &sandbox));
    child.hear();
    let folder = sandbox.folders().pop().expect("one folder");
    child.kill();
    sandbox.wait_until_empty();

    fs::create_dir(&folder).expect("the name is free");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("it is ours");
    assert!(Actor::start(process::command("child", "refused", &sandbox)).finish());
    fs::remove_dir(&folder).expect("nobody touched it");

    std::os::unix::fs::symlink("/", &folder).expect("the name is free");
    assert!(Actor::start(process::command("child", "refused", &sandbox)).finish());
    fs::remove_file(&folder).expect("nobody touched it");
}

/// As after a power cut, or when somebody kills what he does not know.
#[test]
#[cfg(target_os = "linux")]
fn what_a_killed_keeper_left_is_removed_by_the_next_start() {
    for server_too in [false, true] {
        let sandbox = Sandbox::new();
        let mut child = Actor::start(process::command("child", "stay", &sandbox));
        let url = child.hear();
        let server = sandbox.processes().into_iter().find(|p| p.command.contains("postgres -D /"));
        let server = server.expect("a server").id;
        let keeper = parent(parent(server));
        signal("KILL", &keeper.to_string());
        if server_too {
            signal("QUIT", &server.to_string());
        }
        child.kill();
        sandbox.wait_until("the keeper lives", |_| {
            // It may have been waiting for us with the help of `cat`.
            let keeper_lives =
                sandbox.processes().iter().any(|p| p.id == keeper || p.command.starts_with("cat"));
            let server_lives = query(&url, "SELECT 1").is_ok();
            !keeper_lives && server_lives != server_too
        });
        assert_eq!(sandbox.folders().len(), 1);

        let mut next = Actor::start(process::command("child", "stay", &sandbox));
        let next_url = next.hear();
        assert_ne!(next_url, url);
        query(&url, "SELECT 1").expect_err("the old one is gone");
        query(&next_url, "SELECT 1").expect("the new one works");
        next.kill();
        sandbox.wait_until_empty();
    }
}

#[cfg(target_os = "linux")]
fn parent(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:\t"));
    parent.and_then(|id| id.parse().ok()).expect("it has a parent")
}

#[test]
fn a_server_can_be_kept_in_a_static() {
    fn is_static<T: Send + Sync + 'static>() {}
    is_static::<Server>();
    is_static::<Error>();
    let _: fn(Error) -> io::Error = io::Error::other;
}
