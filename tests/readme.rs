//! The README's code compiles and is this code.
#![allow(dead_code, reason = "compiling is the test")]

use sqlx::PgConnection;

#[derive(serde::Serialize, serde::Deserialize)]
struct ChargeRequest {
    amount: i64,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Receipt {
    id: i64,
}

async fn charge(_: &mut PgConnection, request: &ChargeRequest) -> Result<Receipt, Error> {
    Ok(Receipt { id: request.amount })
}

// README begins
#[rustfmt::skip]
use pgonce::{Error, Idempotency, IdempotencyKey, Operation, Scope};

#[rustfmt::skip]
async fn post_charge(idempotency: &Idempotency, key: &str, request: ChargeRequest) -> Result<Receipt, Error> {
    let operation = Operation::new(Scope::new("acct_42/charges")?, IdempotencyKey::try_from(key)?)
        .with_params(&request)?;

    let outcome = idempotency.execute(&operation, async |conn| charge(conn, &request).await).await?;

    Ok(outcome.into_inner()) // the same receipt for the first call and for every retry
}
// README ends

#[cfg(feature = "axum")]
#[path = "readme/http.rs"]
mod http;
#[path = "readme/inbox.rs"]
mod inbox;
#[path = "readme/reaper.rs"]
mod reaper;

#[test]
fn the_readme_shows_the_code_above() {
    assert_shown(include_str!("readme.rs"), "README", include_str!("../README.md"));
}

#[test]
fn the_readme_shows_the_code_of_the_http_endpoint() {
    assert_shown(include_str!("readme/http.rs"), "README", include_str!("../README.md"));
}

#[test]
fn the_readme_shows_the_code_of_the_reaper() {
    assert_shown(include_str!("readme/reaper.rs"), "README", include_str!("../README.md"));
}

#[test]
fn the_readme_and_the_guide_show_the_code_of_the_consumers() {
    let file = include_str!("readme/inbox.rs");
    assert_shown(file, "consumer", include_str!("../README.md"));
    for section in ["consumer", "content", "batch"] {
        assert_shown(file, section, include_str!("../docs/inbox.md"));
    }
}

/// What stands between the two marks.
fn assert_shown(file: &str, section: &str, document: &str) {
    let code = file.split(&format!("// {section} begins\n")).nth(1).unwrap();
    let code = code.split(&format!("// {section} ends")).next().unwrap().replace("#[rustfmt::skip]\n", "");
    assert!(document.contains(&format!("```rust\n{code}```")), "the document differs from\n{code}");
}

#[test]
fn the_readme_opens_with_the_two_commands() {
    let readme = include_str!("../README.md");
    let example = readme.find("\ncargo run --example payment\n").unwrap();
    let tests = readme.find("\ncargo test --all-features\n").unwrap();
    assert!(example < tests && tests < readme.find("## Use").unwrap());
}
