//! What a role must be granted, and what the tool says when it is not.

use crate::scene::{Role, SCOPE, execute, expired, operation, run, run_as, sql};
use crate::support::Database;

const EVICT: [&str; 6] = ["evict", SCOPE, "order-1", "--reason", "a test", "--yes"];

#[tokio::test]
async fn each_command_names_the_grants_that_it_lacks_and_works_with_them() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    execute(&db.idempotency(), &expired(SCOPE, "order-2")).await;
    for args in [&["show", SCOPE, "order-1"][..], &["list"], &["stats"], &["purge"], &["evictions"], &EVICT] {
        // A role of its own, since what one command was granted would hide what the next one lacks.
        let role = Role::new(&db).await;
        let said = run_as(&db, &role.name, args).await.ending(5);
        said.says(&format!("role {} lacks USAGE ON SCHEMA pgonce, ", role.name));
        let fixes: Vec<_> = said.err.lines().filter_map(|line| line.strip_prefix("  fix: ")).collect();
        sql(&db.pool, &fixes.join("\n")).await;
        run_as(&db, &role.name, args).await.ending(0);
        if args == EVICT {
            run(&db, &["evictions"]).await.ending(0).says(&role.name);
        }
        sql(&db.pool, &format!("DROP OWNED BY {0}; DROP ROLE {0}", role.name)).await;
    }
}

#[tokio::test]
async fn a_role_that_may_only_look_can_look() {
    let db = Database::new().await;
    let role = Role::new(&db).await;
    sql(
        &db.pool,
        &format!("GRANT USAGE ON SCHEMA pgonce TO {0}; GRANT SELECT ON pgonce.keys TO {0}", role.name),
    )
    .await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    run_as(&db, &role.name, &["show", SCOPE, "order-1"])
        .await
        .ending(0)
        .says("completed")
        .does_not_say("warning");
    for args in [&["purge"][..], &EVICT] {
        let said = run_as(&db, &role.name, args).await.ending(5);
        said.says("DELETE ON pgonce.keys").does_not_say("SELECT ON pgonce.keys");
    }
    run_as(&db, &role.name, &["migrate"]).await.ending(0).says("nothing to do");

    // Who may not see others' sessions is told so, and still sees that the key is in flight.
    let pgonce::Claim::Claimed(claimed) = db.idempotency().claim(&operation(SCOPE, "order-2")).await.unwrap()
    else {
        panic!("not claimed")
    };
    run_as(&db, &role.name, &["show", SCOPE, "order-2"])
        .await
        .ending(0)
        .says("in flight")
        .says("pg_read_all_stats");
    claimed.release().await;
    sql(&db.pool, &format!("DROP OWNED BY {0}; DROP ROLE {0}", role.name)).await;
}

#[tokio::test]
async fn a_role_that_may_not_create_a_schema_cannot_migrate() {
    let db = Database::empty().await;
    let role = Role::new(&db).await;
    run_as(&db, &role.name, &["migrate"]).await.ending(5).says("permission denied");
    sql(&db.pool, &format!("DROP ROLE {}", role.name)).await;
}
