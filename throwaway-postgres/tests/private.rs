//! A private server: it works, and nothing is left of it.

mod common;

use std::os::unix::process::CommandExt;

use common::client::{Client, query};
use common::process::{self, Actor, say, signal, wait_for_parent};
use common::sandbox::Sandbox;

/// A child with a server that ends in one way or another.
#[test]
fn child() {
    let Some(role) = process::role() else { return };
    let server = throwaway_postgres::private().expect("a server");
    say(server.url());
    wait_for_parent();
    match role.as_str() {
        "drop" => {
            drop(server);
            // The parent looks at once.
            std::process::abort();
        }
        "panic" => panic!("with a server, as it should be"),
        "exit" => std::process::exit(0),
        "abort" => std::process::abort(),
        _ => unreachable!("{role}"),
    }
}

#[test]
fn several_servers_answer_queries() {
    let servers = [(); 2].map(|()| throwaway_postgres::private().expect("a server"));
    for server in &servers {
        assert_eq!(query(server.url(), "SELECT 6 * 7").expect("an answer"), ["42"]);
    }
    assert_ne!(servers[0].url(), servers[1].url());
}

#[test]
fn a_url_leads_to_another_database() {
    let server = throwaway_postgres::private().expect("a server");
    assert!(!server.is_external());
    query(server.url(), "CREATE DATABASE \"a b\"").expect("a database");
    // The tiny client takes the name as it stands.
    assert!(server.url_of("a b").ends_with("/a%20b"));
    query(server.url(), "CREATE DATABASE other").expect("a database");
    let name = query(&server.url_of("other"), "SELECT current_database()").expect("an answer");
    assert_eq!(name, ["other"]);
}

#[test]
fn a_wrong_password_is_refused() {
    let server = throwaway_postgres::private().expect("a server");
    let (_, place) = server.url().split_once('@').expect("a URL");
    assert!(Client::connect(&format!("postgres://postgres:guess@{place}")).is_err());
}

#[test]
fn drop_returns_when_everything_is_gone() {
    let sandbox = Sandbox::new();
    let mut child = Actor::start(process::command("child", "drop", &sandbox));
    let url = child.hear();
    let mut client = Client::connect(&url).expect("a connection");
    assert!(!sandbox.contents().is_empty());
    child.release();
    child.wait();
    assert_eq!(sandbox.contents(), [""; 0]);
    client.query("SELECT 1").expect_err("the server is gone");
}

#[test]
fn other_ends_remove_everything_as_well() {
    for role in ["panic", "exit", "abort"] {
        let sandbox = Sandbox::new();
        let mut child = Actor::start(process::command("child", role, &sandbox));
        let url = child.hear();
        // A client that stays must not keep the server.
        let client = Client::connect(&url).expect("a connection");
        child.release();
        child.wait();
        println!("{role}: {:?}", sandbox.wait_until_empty());
        drop(client);
    }
}

#[test]
fn an_interrupt_at_the_terminal_removes_everything() {
    let sandbox = Sandbox::new();
    let mut command = process::command("child", "interrupted", &sandbox);
    command.process_group(0);
    let mut child = Actor::start(command);
    child.hear();
    // To the whole process group, as a terminal does. A background job ignores the first one.
    for name in ["INT", "TERM"] {
        signal(name, &format!("-{}", child.id()));
    }
    child.wait();
    sandbox.wait_until_empty();
}

#[test]
#[cfg(target_os = "linux")]
fn root_runs_it_as_somebody_else() {
    use std::os::unix::fs::MetadataExt;

    let sandbox = Sandbox::new();
    let mut child = Actor::start(process::command("child", "exit", &sandbox));
    child.hear();
    let me = std::fs::metadata(sandbox.path()).expect("it exists").uid();
    let processes = sandbox.processes();
    assert!(processes.len() >= 2, "{processes:?}");
    for process in processes {
        // Some of the server's processes come and go.
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", process.id)) else {
            continue;
        };
        let user = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("a user");
        let is_root = user.starts_with("0\t");
        assert!(!is_root, "{process:?}");
        assert!(me == 0 || user.starts_with(&format!("{me}\t")), "{process:?}: {user}");
    }
    child.release();
    child.wait();
    sandbox.wait_until_empty();
}
