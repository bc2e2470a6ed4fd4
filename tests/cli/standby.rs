//! On a standby: everything that only reads works, and says that it may be behind.

use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use throwaway_postgres::Settings;

use crate::scene::{SCOPE, execute, operation, run_at};
use crate::support::private::Bank;

#[tokio::test]
async fn what_only_reads_works_on_a_standby() {
    let mut bank = Bank::start(Settings::fast()).await;
    let standby = bank.server.standby().unwrap_or_else(|error| panic!("{error}"));
    let url = standby.url();
    execute(&pgonce::Idempotency::new(bank.pool.clone()), &operation(SCOPE, "order-1")).await;
    let pool = PgPoolOptions::new().connect_lazy(url).unwrap();
    let started = Instant::now();
    while sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pgonce.keys").fetch_one(&pool).await.unwrap_or(0)
        == 0
    {
        assert!(started.elapsed() < Duration::from_secs(30), "the standby gets nothing");
        tokio::task::yield_now().await;
    }
    pool.close().await;

    run_at(url, &["show", SCOPE, "order-1"]).await.ending(0).says("completed").says("this is a standby");
    run_at(url, &["show", SCOPE, "order-2"]).await.ending(1).says("only it knows what is in flight");
    run_at(url, &["list"]).await.ending(0).says("order-1").says("this is a standby");
    run_at(url, &["stats"]).await.ending(0).says("1 key live");
    run_at(url, &["evictions"]).await.ending(0);
    run_at(url, &["doctor"]).await.ending(1).says("connect to the primary");
    let evict = ["evict", SCOPE, "order-1", "--reason", "a test", "--yes"];
    for args in [&["purge"][..], &evict] {
        run_at(url, args).await.ending(7).says("this is a standby: nothing can be written here");
    }
    run_at(url, &["migrate"]).await.ending(0).says("nothing to do");
}
