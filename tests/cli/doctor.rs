//! What is wrong is found, named, and mended by what the doctor says.

use pgonce::Claim;
use serde_json::Value;
use throwaway_postgres::Settings;

use crate::document::session;
use crate::scene::{Role, SCOPE, execute, expired, json, operation, run, run_as, run_at, sql};
use crate::show::PENDING;
use crate::support::private::Bank;
use crate::support::{Database, assert_in_document};

/// The checks that are not ok.
pub fn complaints<'d>(document: &'d Value, check: &str) -> Vec<&'d Value> {
    let checks = document["checks"].as_array().unwrap().iter();
    checks.filter(|c| c["check"] == check && c["status"] != "ok").collect()
}

/// It sees its own sessions only, and takes that for no proof.
#[tokio::test]
async fn what_a_role_may_not_see_is_not_called_ok() {
    let db = Database::new().await;
    let role = Role::new(&db).await;
    let document = run_as(&db, &role.name, &["doctor", "--json"]).await.json();
    let mut fixes = Vec::new();
    for check in ["transactions", "connections"] {
        let found = complaints(&document, check);
        assert_eq!(found.len(), 1, "{document}");
        assert!(found[0]["message"].as_str().unwrap().starts_with("not looked"), "{document}");
        fixes.push(found[0]["fix"].as_str().unwrap());
    }
    sql(&db.pool, &fixes.join(";")).await;
    let document = run_as(&db, &role.name, &["doctor", "--json"]).await.json();
    for check in ["transactions", "connections"] {
        assert!(complaints(&document, check).is_empty(), "{document}");
    }
    sql(&db.pool, &format!("DROP ROLE {}", role.name)).await;
}

#[tokio::test]
async fn the_operators_own_settings_are_not_taken_for_the_applications() {
    let db = Database::new().await;
    let (operator, app) = (Role::new(&db).await.name, Role::new(&db).await.name);
    sql(&db.pool, &format!("GRANT {app} TO {operator}; ALTER ROLE {operator} SET synchronous_commit = off"))
        .await;
    let own = run_as(&db, &operator, &["doctor"]).await;
    own.says("synchronous_commit is off for the role");
    let asked = ["doctor", "--role", &app];
    run_as(&db, &operator, &asked)
        .await
        .says(&format!("synchronous_commit cannot be seen for role {app} from here"))
        .does_not_say("synchronous_commit is off");
    sql(&db.pool, &format!("ALTER ROLE {app} SET synchronous_commit = on")).await;
    run_as(&db, &operator, &asked).await.does_not_say("synchronous_commit");
    sql(&db.pool, &format!("DROP ROLE {app}, {operator}")).await;
}

#[tokio::test]
async fn a_role_is_quoted_where_it_is_to_be_pasted() {
    let db = Database::new().await;
    let (role, app) = (Role::new(&db).await.name, format!("App {}", db.name()));
    sql(&db.pool, &format!("CREATE ROLE \"{app}\"")).await;
    let doctor = ["doctor", "--role", &app];
    run_as(&db, &role, &doctor).await.ending(1).says(&format!("GRANT \"{app}\" TO {role};"));
    sql(&db.pool, &format!("DROP ROLE \"{app}\", {role}")).await;
}

#[tokio::test]
async fn it_has_nothing_to_say_when_its_fixes_were_pasted() {
    let bank = Bank::start(Settings::durable()).await;
    sql(&bank.pool, "CREATE ROLE app LOGIN").await;
    let said = run_at(bank.server.url(), &["doctor", "--role", "app"]).await.ending(1);
    let port = format!("{}:{}", bank.options().get_host(), bank.options().get_port());
    let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&bank.pool).await.unwrap();
    let varies = [(port.as_str(), "127.0.0.1:5432"), (version.as_str(), "18.4")];
    assert_in_document("docs/cli.md", "doctor", &session("pgonce doctor --role app", &said, &varies));
    let doctor = ["doctor", "--role", "app", "--json", "--strict"];
    let document = run_at(bank.server.url(), &doctor).await.ending(1).json();
    assert_eq!(document["status"], "problem");
    let mut fixes: Vec<&str> = Vec::new();
    for check in document["checks"].as_array().unwrap() {
        let (name, status) = (check["check"].as_str().unwrap(), check["status"].as_str().unwrap());
        match (name, status) {
            (_, "ok") => assert_eq!(check["fix"], Value::Null),
            ("grants" | "settings", _) => fixes.extend(check["fix"].as_str().unwrap().lines()),
            _ => panic!("{check}"),
        }
    }
    assert_eq!(fixes.len(), 7, "five grants and two settings: {fixes:?}");
    sql(&bank.pool, &fixes.join("\n")).await;
    let said = run_at(bank.server.url(), &["doctor", "--role", "app", "--strict"]).await.ending(0);
    said.says("no problems, no warnings").says("role app has all that calls need").does_not_say("fix");
    for check in [
        "server",
        "primary",
        "clock",
        "pooler",
        "schema",
        "guards",
        "indexes",
        "settings",
        "transactions",
        "prepared",
        "connections",
        "slots",
        "pending",
        "expired",
        "vacuum",
    ] {
        said.says(&format!("ok       {check:<13} "));
    }
}

#[tokio::test]
async fn settings_that_lose_data_are_found_wherever_they_are_set() {
    let db = Database::new().await;
    let role = Role::new(&db).await;
    let app = role.name.as_str();
    for (set, setting, fix) in [
        (
            format!("ALTER ROLE {app} SET synchronous_commit = off"),
            "synchronous_commit",
            format!("ALTER ROLE {app} SET synchronous_commit = on"),
        ),
        (
            format!("ALTER DATABASE {} SET synchronous_commit = off", db.name()),
            "synchronous_commit",
            format!("ALTER ROLE {app} SET synchronous_commit = on"),
        ),
        (
            format!("ALTER ROLE {app} SET default_transaction_read_only = on"),
            "default_transaction_read_only",
            format!("ALTER ROLE {app} RESET default_transaction_read_only"),
        ),
        (
            format!("ALTER ROLE {app} IN DATABASE {} SET session_replication_role = replica", db.name()),
            "session_replication_role",
            "postgresql.conf".into(),
        ),
    ] {
        let is_about = |check: &&&Value| check["message"].as_str().unwrap().starts_with(setting);
        sql(&db.pool, &set).await;
        let document = json(&db, &["doctor", "--role", app]).await;
        let settings = complaints(&document, "settings");
        let found: Vec<_> = settings.iter().filter(is_about).collect();
        assert_eq!(found.len(), 1, "after {set}");
        assert_eq!(found[0]["status"], "problem");
        assert!(found[0]["fix"].as_str().unwrap().contains(&fix), "{}", found[0]);
        let database = db.name();
        let everywhere = ["ROLE {app}", "DATABASE {database}", "ROLE {app} IN DATABASE {database}"];
        for place in everywhere {
            let place = place.replace("{app}", app).replace("{database}", database);
            sql(&db.pool, &format!("ALTER {place} RESET ALL")).await;
        }
    }
    let document = json(&db, &["doctor", "--role", app]).await;
    assert!(
        !complaints(&document, "settings")
            .iter()
            .any(|check| check["message"].to_string().contains("for the role"))
    );
    sql(&db.pool, &format!("DROP ROLE {app}")).await;
}

#[tokio::test]
async fn a_committed_pending_key_is_found_and_leads_to_show() {
    let db = Database::new().await;
    sql(&db.pool, "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit").await;
    sql(&db.pool, PENDING).await;
    run(&db, &["doctor"]).await.ending(1).says("pgonce show acct_42/charges order-1");
}

#[tokio::test]
async fn what_waits_for_the_purge_is_measured() {
    let db = Database::new().await;
    execute(&db.idempotency(), &expired(SCOPE, "order-1")).await;
    let document = json(&db, &["doctor"]).await;
    assert!(complaints(&document, "expired").is_empty(), "{document}");
    run(&db, &["doctor"]).await.says("1 key expired, the oldest");
    sql(&db.pool, "UPDATE pgonce.keys SET expires_at = now() - interval '3 hours'").await;
    let said = run(&db, &["doctor"]).await;
    said.says("1 key expired, the oldest 3 h ago: nothing seems to purge them").says("pgonce purge");
    run(&db, &["purge"]).await.ending(0);
    run(&db, &["doctor"]).await.says("no expired key waits for the purge");
}

#[tokio::test]
async fn a_long_transaction_is_named() {
    let db = Database::new().await;
    run(&db, &["doctor"]).await.says("none has been open for more than 1 min");
    let Claim::Claimed(mut claimed) = db.idempotency().claim(&operation(SCOPE, "order-1")).await.unwrap()
    else {
        panic!("not claimed")
    };
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *claimed).await.unwrap();
    let said = run(&db, &["doctor", "--long", "0s"]).await;
    said.says(&format!("pid {pid} ("))
        .says("idle in transaction")
        .says(&format!("SELECT pg_terminate_backend({pid})"));
    claimed.release().await;
    run(&db, &["doctor", "--long", "0s"]).await.does_not_say("pg_terminate_backend");
}

#[tokio::test]
async fn a_role_that_is_not_there_is_said_so() {
    let db = Database::new().await;
    run(&db, &["doctor", "--role", "nobody_at_all"])
        .await
        .ending(1)
        .says("cannot look as role nobody_at_all");
}
