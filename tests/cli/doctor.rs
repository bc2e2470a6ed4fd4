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
fn complaints<'d>(document: &'d Value, check: &str) -> Vec<&'d Value> {
    let checks = document["checks"].as_array().unwrap().iter();
    checks.filter(|c| c["check"] == check && c["status"] != "ok").collect()
}

/// Nothing is wrong with the schema and the table.
async fn assert_sound(db: &Database) {
    let document = json(db, &["doctor"]).await;
    for check in ["schema", "guards", "indexes", "vacuum"] {
        assert!(complaints(&document, check).is_empty(), "{document}");
    }
}

/// In partitions, too: their index is not made concurrently.
#[tokio::test]
async fn the_index_of_partitions_is_missed_and_mended() {
    let db = Database::new().await;
    sql(&db.pool, concat!("BEGIN;", include_str!("../../docs/partitioned.sql"), "COMMIT;")).await;
    sql(&db.pool, "DROP INDEX pgonce.keys_expires_at_idx").await;
    let document = json(&db, &["doctor"]).await;
    let found = complaints(&document, "indexes");
    assert_eq!(found.len(), 1, "{document}");
    sql(&db.pool, found[0]["fix"].as_str().unwrap()).await;
    assert_sound(&db).await;
    sql(
        &db.pool,
        "CREATE INDEX broken ON pgonce.keys_07 (created_at);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgonce.broken'::regclass",
    )
    .await;
    run(&db, &["doctor"]).await.ending(1).says("REINDEX INDEX CONCURRENTLY pgonce.broken");
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

/// A partitioned table has no size, and seems never to have been frozen; its partitions have and were.
#[tokio::test]
async fn a_table_in_partitions_is_sound_and_has_a_size() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    sql(&db.pool, concat!("BEGIN;", include_str!("../../docs/partitioned.sql"), "COMMIT;")).await;
    assert_sound(&db).await;
    let stats = json(&db, &["stats"]).await;
    assert_eq!(stats["total"]["live"], 1);
    assert!(stats["table_bytes"].as_i64() > Some(0) && stats["index_bytes"].as_i64() > Some(0), "{stats}");
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
async fn each_break_of_the_schema_is_found() {
    let db = Database::new().await;
    assert_sound(&db).await;
    for (breaks, check, says, mends) in [
        (
            "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit",
            "guards",
            "keys_finished_before_commit is missing",
            "ALTER TABLE pgonce.keys ADD CONSTRAINT keys_finished_before_commit FOREIGN KEY (unfinished)
             REFERENCES pgonce.unfinished (id) DEFERRABLE INITIALLY DEFERRED",
        ),
        (
            "ALTER TABLE pgonce.keys DISABLE TRIGGER ALL",
            "guards",
            "are disabled",
            "ALTER TABLE pgonce.keys ENABLE TRIGGER ALL",
        ),
        (
            "DROP INDEX pgonce.keys_expires_at_idx",
            "indexes",
            "no index on expires_at",
            "CREATE INDEX keys_expires_at_idx ON pgonce.keys (expires_at)",
        ),
        (
            "CREATE INDEX broken ON pgonce.keys (created_at);
             UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgonce.broken'::regclass",
            "indexes",
            "the index broken is not valid",
            "REINDEX INDEX CONCURRENTLY pgonce.broken",
        ),
        (
            "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_pkey",
            "guards",
            "the primary key of pgonce.keys on (scope, key) is missing",
            "ALTER TABLE pgonce.keys ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key)",
        ),
        (
            "ALTER TABLE pgonce.keys SET (autovacuum_enabled = false)",
            "vacuum",
            "autovacuum is off for pgonce.keys",
            "ALTER TABLE pgonce.keys RESET (autovacuum_enabled)",
        ),
    ] {
        sql(&db.pool, breaks).await;
        let document = json(&db, &["doctor"]).await;
        let found = complaints(&document, check);
        assert_eq!(found.len(), 1, "after {breaks}: {document}");
        assert!(found[0]["message"].as_str().unwrap().contains(says), "{}", found[0]);
        assert_eq!(found[0]["status"], "problem");
        sql(&db.pool, mends).await;
    }
    assert_sound(&db).await;
}

/// However the schema came there: the notes of a migrator say nothing of what was dropped since, and without them it must not be
/// taken for an older version.
#[tokio::test]
async fn what_was_dropped_of_the_schema_is_found_and_mended_by_what_is_said() {
    for noted in [true, false] {
        let db = Database::new().await;
        if !noted {
            sql(&db.pool, "DROP TABLE pgonce._sqlx_migrations").await;
        }
        for (breaks, says) in [
            ("DROP TABLE pgonce.evictions", "the table pgonce.evictions is missing"),
            ("DROP FUNCTION pgonce.purge_expired", "the function pgonce.purge_expired is missing"),
            ("DROP FUNCTION pgonce.refuse_commit", "the function pgonce.refuse_commit is missing"),
        ] {
            sql(&db.pool, breaks).await;
            let document = json(&db, &["doctor"]).await;
            let found = complaints(&document, "schema");
            assert_eq!(found.len(), 1, "after {breaks}: {document}");
            assert!(found[0]["message"].as_str().unwrap().starts_with(says), "{}", found[0]);
            assert_eq!(found[0]["status"], "problem");
            run(&db, &["doctor"]).await.ending(1).does_not_say("as this release has it");
            sql(&db.pool, found[0]["fix"].as_str().unwrap()).await;
            assert_sound(&db).await;
        }
        execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
        run(&db, &["evict", SCOPE, "order-1", "--reason", "a test", "--yes"]).await.ending(0);
        execute(&db.idempotency(), &expired(SCOPE, "order-1")).await;
        assert_eq!(db.count("pgonce.purge_expired() WHERE purge_expired = 1").await, 1);
    }
}

/// The others are explained all the same.
#[tokio::test]
async fn without_the_table_of_evictions_only_evictions_fail() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    sql(&db.pool, "DROP TABLE pgonce.evictions").await;
    run(&db, &["show", SCOPE, "order-1"]).await.ending(0).says("completed");
    for args in [&["evictions"][..], &["evict", SCOPE, "order-1", "--reason", "a test", "--yes"]] {
        run(&db, args).await.ending(4).says("table pgonce.evictions is missing").says("pgonce doctor");
    }
    assert_eq!(db.count("pgonce.keys").await, 1);
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
