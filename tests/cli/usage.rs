//! Wrong usage: an exit code of its own, and what is wrong.

use crate::scene::{SCOPE, run};
use crate::support::Database;

#[tokio::test]
async fn what_it_does_not_understand_it_refuses() {
    let db = Database::new().await;
    for args in [
        &["list", "--state", "lost"][..],
        &["list", "--since", "yesterday"],
        &["list", "--limit", "0"],
        &["list", "--expired", "--live"],
        &["list", "--scope", "two words"],
        &["list", "--after", "nonsense"],
        &["list", "--timeout", "2147484"],
        &["doctor", "--long", "300000y"],
        &["show", SCOPE],
        &["purge", "--batch", "0"],
        &["stats", "--watch", "0"],
        &["frobnicate"],
        &[],
    ] {
        run(&db, args).await.ending(2);
    }
}

#[tokio::test]
async fn a_wrong_flag_is_named_and_nothing_is_done() {
    let db = Database::empty().await;
    for (args, says) in [
        (&["migrate", "--sql"][..], "--dry-run"),
        (&["migrate", "--dry-run", "--sql", "--json"], "--sql cannot be used with --json"),
        (&["--json", "migrate", "--dry-run", "--sql"], "--sql cannot be used with --json"),
        (&["migrate", "--dry"], "unexpected argument '--dry'"),
        (&["evictions", "--since", "yesterday"], "give a time span (90s, 15m, 2h, 7d) or a time in UTC"),
        (&["evictions", "--limit", "0"], "1..=100000"),
        (&["man", "a", "folder"], "unexpected argument 'folder'"),
        (&["man", "--format", "html"], "unexpected argument '--format'"),
    ] {
        let said = run(&db, args).await.ending(2);
        said.says(says);
        assert_eq!(said.out, "", "{args:?}");
    }
    assert_eq!(db.count("pg_namespace WHERE nspname = 'pgonce'").await, 0);
}
