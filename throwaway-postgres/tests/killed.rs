//! SIGKILL at any moment of a start: nothing stays behind.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::process::{self, Actor, say, wait_for_parent};
use common::sandbox::Sandbox;

#[test]
fn child() {
    let Some(role) = process::role() else { return };
    let mut server = match role.as_str() {
        "private" | "standby" => throwaway_postgres::private(),
        "shared" => throwaway_postgres::shared_lingering(Duration::from_millis(20)),
        _ => unreachable!("{role}"),
    }
    .expect("a server");
    let _standby = (role == "standby").then(|| server.standby().expect("a standby"));
    say(server.url());
    wait_for_parent();
}

/// Kills the child after times that grow from nothing to more than a start takes.
fn kill_at_many_moments(role: &str, moments: u32) {
    let sandbox = Sandbox::new();
    let begin = Instant::now();
    let mut child = Actor::start(process::command("child", role, &sandbox));
    child.hear();
    let start = begin.elapsed();
    child.kill();
    let mut slowest = sandbox.wait_until_empty();

    for moment in 0..moments {
        let child = Actor::start(process::command("child", role, &sandbox));
        thread::sleep(start * moment * 5 / (moments * 4));
        child.kill();
        // When nothing is there yet, something may still be on its way: a child of the child.
        thread::sleep(Duration::from_millis(30));
        slowest = slowest.max(sandbox.wait_until_empty());
    }
    println!("{role}: a start takes {start:?}, everything was gone within {slowest:?}");
}

#[test]
fn nothing_is_left_of_a_private_server() {
    kill_at_many_moments("private", 16);
}

#[test]
fn nothing_is_left_of_a_shared_server() {
    kill_at_many_moments("shared", 16);
}

#[test]
fn nothing_is_left_of_a_standby_and_its_primary() {
    kill_at_many_moments("standby", 8);
}
