//! The output in `docs/cli.md` is real: these tests make it and compare. (With PGONCE_UPDATE_SNAPSHOTS=1 they write it.)

use std::time::Duration;

use pgonce::Claim;

use crate::scene::{SCOPE, Said, execute, expired, fail, operation, process, run, sql};
use crate::support::{Database, assert_in_document};

/// What is another at every run, and what the document has instead. `9` stands for a digit, `x` for a hexadecimal one.
const VARIES: &[(&str, &str)] = &[
    ("9999-99-99 99:99:99", "2026-11-25 21:14:03"),
    ("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ("99.9 KiB", "64.0 KiB"),
    ("9.9 KiB", "8.0 KiB"),
    ("9 of 300 are used", "3 of 300 are used"),
    ("99 of 300 are used", "3 of 300 are used"),
    ("round trip 99.9 ms", "round trip 0.3 ms"),
    ("round trip 9.9 ms", "round trip 0.3 ms"),
    ("9 s ago", "just now"),
    ("999 ms", "112 ms"),
    ("99 ms", "112 ms"),
    ("9 ms", "112 ms"),
    ("for 9 s", "for 112 ms"),
    ("in 9 s;", "in 112 ms;"),
];

fn matches(template: &str, text: &str) -> bool {
    let alike = |(template, c): (char, char)| match template {
        '9' => c.is_ascii_digit(),
        'x' => c.is_ascii_hexdigit(),
        _ => c == template,
    };
    text.len() >= template.len() && template.chars().zip(text.chars()).all(alike)
}

/// The command and what it said, as the document has it.
pub fn session(command: &str, said: &Said, also: &[(&str, &str)]) -> String {
    let mut text = said.out.clone();
    for (from, to) in also {
        text = text.replace(from, to);
    }
    let mut steady = String::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        let step = match VARIES.iter().find(|(template, _)| matches(template, rest)) {
            Some((template, instead)) => {
                steady += instead;
                template.len()
            }
            None => {
                steady.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[step..];
    }
    let steady = steady.replace("expires      2026-11-25", "expires      2026-11-26");
    let lines: Vec<_> = steady.lines().map(str::trim_end).collect();
    format!("```console\n$ {command}\n{}\n```\n", lines.join("\n"))
}

#[tokio::test]
async fn the_story_of_the_document_is_real() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    for n in 1..=6 {
        execute(&idempotency, &operation(SCOPE, &format!("order-{n}"))).await;
    }
    fail(&idempotency, &operation(SCOPE, "order-7")).await;
    for n in 1..=3 {
        execute(&idempotency, &expired("acct_7/refunds", &format!("refund-{n}"))).await;
        process(&idempotency, &format!("evt-{n}"), Duration::from_secs(14 * 86400)).await;
    }
    sql(
        &db.pool,
        "UPDATE pgonce.keys SET created_at = created_at - (interval '11 min' * right(key, 1)::int + interval '20 s'),
             expires_at = expires_at - (interval '11 min' * right(key, 1)::int + interval '20 s'),
             completed_at = completed_at - (interval '11 min' * right(key, 1)::int + interval '20 s') + interval '0.1 s'
         WHERE state = 'failed' OR result IS NOT NULL",
    )
    .await;
    sql(
        &db.pool,
        "UPDATE pgonce.keys SET created_at = created_at - (interval '11 min' * right(key, 1)::int + interval '20 s'),
             completed_at = completed_at - (interval '11 min' * right(key, 1)::int + interval '20 s') WHERE result IS NULL",
    )
    .await;
    let shop = [(db.name(), "shop")];
    let in_document = async |name: &str, args: &[&str], also: &[(&str, &str)]| {
        let said = run(&db, args).await;
        let command: Vec<_> = args
            .iter()
            .map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { arg.to_string() })
            .collect();
        assert_in_document(
            "docs/cli.md",
            name,
            &session(&format!("pgonce {}", command.join(" ")), &said, also),
        );
    };
    in_document("completed", &["show", SCOPE, "order-2"], &[]).await;
    in_document("list", &["list", "--scope", SCOPE, "--limit", "3"], &[]).await;
    in_document("stats", &["stats"], &shop).await;

    let Claim::Claimed(mut claimed) = idempotency.claim(&operation(SCOPE, "order-8")).await.unwrap() else {
        panic!("not claimed")
    };
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *claimed).await.unwrap();
    in_document("in flight", &["show", SCOPE, "order-8"], &[(&pid.to_string(), "4711")]).await;
    claimed.release().await;

    let reason = "SUP-1234: refunded by hand, and the client shall try again";
    in_document("evict", &["evict", SCOPE, "order-2", "--yes", "--reason", reason], &[]).await;
    in_document("evicted", &["show", SCOPE, "order-2"], &[]).await;
    in_document("evictions", &["evictions"], &[]).await;
    in_document("purge", &["purge"], &[]).await;
}

#[test]
fn the_exit_codes_of_the_document_are_those_of_the_help() {
    let help = include_str!("../snapshots/cli_help.txt");
    let codes: Vec<_> = help
        .lines()
        .skip_while(|line| *line != "Exit codes:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .map(|line| line.trim().split_once("  ").expect("a code and what it means"))
        .map(|(code, meaning)| format!("| {code} | {} |\n", meaning.trim()))
        .collect();
    assert_eq!(codes.len(), 9);
    assert_in_document(
        "docs/cli.md",
        "exit codes",
        &format!("| code | |\n| --- | --- |\n{}", codes.concat()),
    );
}
