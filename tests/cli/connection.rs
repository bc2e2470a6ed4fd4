//! Getting there, or not; and never a password.

use serde_json::Value;

use crate::scene::{program, run_as, run_at, said};
use crate::support::Database;

/// A port on which nobody listens.
fn nobody() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn no_server_is_an_exit_code_of_its_own() {
    let url = format!("postgres://app:sesame@127.0.0.1:{}/shop", nobody());
    let evict = ["evict", "scope", "key", "--reason", "a test", "--yes"];
    for args in [
        &["doctor"][..],
        &["show", "scope", "key"],
        &["list"],
        &["stats"],
        &["purge"],
        &["migrate"],
        &["evictions"],
        &evict,
    ] {
        let failed = run_at(&url, args).await.ending(3);
        failed.says("cannot connect to database shop on 127.0.0.1").does_not_say("sesame");
        assert_eq!(failed.out, "");
    }
    let failed = run_at(&url, &["list", "--json"]).await.ending(3);
    let error: Value = serde_json::from_str(failed.err.trim()).unwrap();
    assert_eq!((&error["error"], &error["exit_code"]), (&"no_connection".into(), &3.into()));
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    // It takes connections and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://app@127.0.0.1:{}/shop", listener.local_addr().unwrap().port());
    run_at(&url, &["list", "--timeout", "1"]).await.ending(3).says("no answer within 1 s");
}

#[tokio::test]
async fn a_password_is_never_said() {
    let db = Database::new().await;
    let port = db.options().get_port();
    let wrong = format!("postgres://postgres:sesame@{}:{port}/{}", db.options().get_host(), db.name());
    for url in [
        wrong.as_str(),
        "postgres://app:sesame@127.0.0.1:port/shop",
        "postgres://app:sesame@127.0.0.1/shop?sslmode=unheard-of",
        "postgres:app:sesame@127.0.0.1",
    ] {
        for args in
            [&["list", "-d", url][..], &["list", "--json", "--database-url", url], &[url], &["list", url]]
        {
            let output = program(args).output().await.unwrap();
            let failed = said(output);
            assert!([2, 3].contains(&failed.code), "{failed:?}");
            failed.does_not_say("sesame");
        }
    }
    // Nor is that of the variable shown in the help.
    run_at(&db.url(), &["list", "--help"]).await.ending(0).does_not_say(&db.url());
}

#[tokio::test]
async fn the_flag_counts_more_than_the_variable() {
    let db = Database::new().await;
    let url = format!("postgres://app@127.0.0.1:{}/shop", nobody());
    run_at(&url, &["list", "--database-url", &db.url()]).await.ending(0);
    run_at(&db.url(), &["list", "--database-url", &url]).await.ending(3);
    let refused = run_as(&db, "nobody_at_all", &["list"]).await.ending(3);
    refused.says(&format!("database {}", db.name())).says("nobody_at_all").does_not_say("secret");
}
