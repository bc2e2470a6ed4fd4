//! What holds back WAL and vacuum for a reader who is not there.

use serde_json::Value;
use throwaway_postgres::Settings;

use crate::scene::{run_at, sql};
use crate::support::private::Bank;

#[tokio::test]
async fn slots_that_nobody_reads_are_named_until_they_are_dropped() {
    let bank = Bank::start(Settings::fast().with("wal_level", "logical")).await;
    assert_eq!(slots(&bank).await, ["ok: there are no replication slots"]);
    sql(&bank.pool, "SELECT pg_create_physical_replication_slot('unused')").await;
    assert_eq!(slots(&bank).await, ["ok: the replication slot there is holds little back"]);
    sql(
        &bank.pool,
        "SELECT pg_create_physical_replication_slot('standby_1', immediately_reserve => true);
         SELECT pg_create_logical_replication_slot('warehouse', 'pgoutput')",
    )
    .await;
    let found = slots(&bank).await;
    let [standby, warehouse] = found.as_slice() else { panic!("{found:?}") };
    assert!(
        standby.starts_with("warning: nobody reads the replication slot standby_1, and it holds back "),
        "{standby}"
    );
    assert!(standby.contains("B of WAL") && !standby.contains("vacuum"), "{standby}");
    assert!(
        warehouse.starts_with("warning: nobody reads the replication slot warehouse, and"),
        "{warehouse}"
    );
    assert!(
        warehouse.contains("the vacuum of the catalogs by ") && warehouse.contains("B of WAL"),
        "{warehouse}"
    );
    for check in checks(&bank).await.iter().filter(|check| check["status"] == "warning") {
        sql(&bank.pool, check["fix"].as_str().unwrap()).await;
    }
    assert_eq!(slots(&bank).await, ["ok: the replication slot there is holds little back"]);
}

/// The status and the message of each line.
async fn slots(bank: &Bank) -> Vec<String> {
    let line = |check: &Value| {
        format!("{}: {}", check["status"].as_str().unwrap(), check["message"].as_str().unwrap())
    };
    checks(bank).await.iter().map(line).collect()
}

async fn checks(bank: &Bank) -> Vec<Value> {
    let document = run_at(bank.server.url(), &["doctor", "--json"]).await.json();
    let checks = document["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["check"] == "slots").cloned().collect()
}
