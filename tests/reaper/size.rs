//! What is deleted makes room for what comes.

use pgonce::{Idempotency, Reaper};
use throwaway_postgres::Settings;

use crate::scene::add_expired;
use crate::support::private::Bank;

/// A deleted page of an index is free when no transaction is older, in whatever database: so on a server where there is no
/// other.

#[tokio::test]
async fn at_a_constant_load_table_and_indexes_keep_their_size() {
    let db = Bank::start(Settings::fast()).await;
    let reaper = Reaper::new(Idempotency::new(db.pool.clone())).with_rest(0);
    let mut sizes = Vec::new();
    for _ in 0..24 {
        add_expired(&db.pool, 500).await;
        // Random keys, as those of clients are.
        sqlx::raw_sql("UPDATE pgonce.keys SET key = gen_random_uuid()").execute(&db.pool).await.unwrap();
        assert_eq!(reaper.run_once().await.unwrap().deleted, 500);
        sqlx::raw_sql("VACUUM (TRUNCATE off, INDEX_CLEANUP on) pgonce.keys").execute(&db.pool).await.unwrap();
        let size: (i64, i64, i64) = sqlx::query_as(
            "SELECT pg_relation_size('pgonce.keys'), pg_relation_size('pgonce.keys_pkey'),
                    pg_relation_size('pgonce.keys_expires_at_idx')",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        sizes.push(size);
    }
    // The first periods make the room that all others use. Without any, it would be three times as much in the end.
    let (first, later) = sizes.split_at(8);
    let most =
        |of: &[(i64, i64, i64)]| of.iter().copied().reduce(|a, b| (a.0.max(b.0), a.1.max(b.1), a.2.max(b.2)));
    let (first, later) = (most(first).unwrap(), most(later).unwrap());
    let bounded = |first, later| later <= first * 2;
    let all = bounded(first.0, later.0) && bounded(first.1, later.1) && bounded(first.2, later.2);
    assert!(all, "{sizes:?}");
}
