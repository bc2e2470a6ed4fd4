//! The primary is lost and its standby takes over: key and business writes are both there or both gone.

#[path = "failover/cluster.rs"]
mod cluster;
#[path = "failover/front.rs"]
mod front;
#[path = "failover/load.rs"]
mod load;
mod support;

use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, Outcome, Record};
use sqlx::PgConnection;
use sqlx::postgres::PgPoolOptions;

use cluster::{
    Cluster, assert_consistent, call, call_until_answered, charges, is_true, operation, wait_until,
};
use load::Load;
use support::{key, scope};
use tokio::task::JoinHandle;

const A_COMMIT_WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')";

fn spawn_call(idempotency: &Idempotency, name: &'static str) -> JoinHandle<Result<Outcome<String>, Error>> {
    let idempotency = idempotency.clone();
    tokio::spawn(async move { call(&idempotency, name).await })
}

/// What another caller is told, as soon as the primary answers.
async fn replayed(idempotency: &Idempotency, name: &str) -> String {
    let outcome = call_until_answered(idempotency, name).await;
    assert!(outcome.is_replayed(), "{name} ran again");
    outcome.into_inner()
}

async fn find(idempotency: &Idempotency, name: &str) -> Option<Record> {
    idempotency.find(&scope(), &key(name)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn under_synchronous_replication_a_failover_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::synchronous().await;
    let idempotency = cluster.idempotency();
    let load = Load::start(&cluster).await;
    cluster.front.withhold_commits(2).await;
    let visible = charges(&cluster.primary).await;
    // Two COMMITs are done, and nobody hears of it. Others get no answer, since the standby gets nothing more.
    cluster.cut_off_standby().await;
    wait_until(&cluster.primary, A_COMMIT_WAITS).await;

    cluster.kill_primary();
    load.killed();
    cluster.promote_standby().await;
    let survivors = charges(&cluster.standby).await;
    assert!(visible.iter().all(|(key, run)| survivors.get(key) == Some(run)), "what was visible is lost");
    let answers = load.end().await;

    assert_consistent(&cluster.standby).await;
    for answer in &answers {
        let again = call(&idempotency, &answer.key).await.unwrap();
        assert_eq!(again, Outcome::Replayed(answer.run.clone()), "{answer:?}");
    }
    assert_consistent(&cluster.standby).await;
    println!("{} answers, and all of them hold", answers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn under_asynchronous_replication_a_failover_loses_keys_and_writes_together() {
    let mut cluster = Cluster::new().await;
    let idempotency = cluster.idempotency();
    let load = Load::start(&cluster).await;
    cluster.cut_off_standby().await;
    // Acknowledged, and no standby ever hears of it.
    let run = call_until_answered(&idempotency, "after-the-cut").await.into_inner();
    cluster.front.withhold_commits(2).await;

    cluster.kill_primary();
    load.killed();
    cluster.promote_standby().await;
    let answers = load.end().await;

    assert_consistent(&cluster.standby).await;
    let survivors = charges(&cluster.standby).await;
    assert_eq!(survivors.get("after-the-cut"), None);
    let mut lost = 1; // the one after the cut
    for answer in &answers {
        let again = call(&idempotency, &answer.key).await.unwrap();
        if again.as_ref().into_inner() == &answer.run {
            assert!(again.is_replayed(), "{answer:?}");
        } else {
            assert!(
                answer.before_the_kill,
                "{answer:?} was told by the second primary, which now says {again:?}"
            );
            lost += 1;
        }
        assert_eq!(call(&idempotency, &answer.key).await.unwrap(), Outcome::Replayed(again.into_inner()));
    }
    let again = call(&idempotency, "after-the-cut").await.unwrap();
    assert!(!again.is_replayed() && *again.as_ref().into_inner() != run, "{again:?}");
    assert_consistent(&cluster.standby).await;
    println!("{} answers, of which {lost} were lost", answers.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_standby_never_got_is_gone_and_a_retry_executes_it_once_more() {
    let mut cluster = Cluster::new().await;
    let idempotency = cluster.idempotency();
    let kept = call(&idempotency, "kept").await.unwrap().into_inner();
    wait_until(&cluster.standby, "SELECT count(*) = 1 FROM charges").await;
    cluster.cut_off_standby().await;
    let lost = call(&idempotency, "lost").await.unwrap().into_inner();
    assert_eq!(call(&idempotency, "lost").await.unwrap(), Outcome::Replayed(lost.clone()));
    // Synchronous replication protects only those who wait for it.
    cluster.make_synchronous().await;
    let options = cluster.options().options([("synchronous_commit", "local")]);
    let impatient = Idempotency::new(PgPoolOptions::new().connect_lazy_with(options));
    let local = call(&impatient, "local").await.unwrap().into_inner();

    cluster.fail_over().await;
    assert_eq!(charges(&cluster.standby).await.into_keys().collect::<Vec<_>>(), ["kept"]);
    assert_eq!(call_until_answered(&idempotency, "kept").await, Outcome::Replayed(kept));
    for (name, first) in [("lost", lost), ("local", local)] {
        assert!(find(&idempotency, name).await.is_none());
        let second = call(&idempotency, name).await.unwrap();
        assert!(!second.is_replayed() && *second.as_ref().into_inner() != first, "{name}: {second:?}");
        assert_eq!(call(&idempotency, name).await.unwrap(), Outcome::Replayed(second.into_inner()));
    }
    assert_consistent(&cluster.standby).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_the_standby_is_not_acknowledged() {
    let mut cluster = Cluster::synchronous().await;
    let idempotency = cluster.idempotency();
    cluster.cut_off_standby().await;
    let terminated = spawn_call(&idempotency, "terminated");
    wait_until(&cluster.primary, A_COMMIT_WAITS).await;
    // Nor does anybody else see it.
    assert_eq!(call(&idempotency, "terminated").await.unwrap_err().kind(), ErrorKind::InFlight);
    assert!(find(&idempotency, "terminated").await.is_none());
    assert!(!terminated.is_finished());

    // The session ends with its COMMIT done, and visible, on this server alone.
    let end = "SELECT bool_and(pg_terminate_backend(pid, 30000)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert!(is_true(&cluster.primary, end).await);
    assert!(is_true(&cluster.primary, "SELECT count(*) = 1 FROM charges").await);
    // The caller is told that it is unknown, or waits for the standby in another way.
    while !terminated.is_finished() && !is_true(&cluster.primary, A_COMMIT_WAITS).await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let is_told = terminated.is_finished();
    cluster.reconnect_standby().await;
    let run = match terminated.await.unwrap() {
        Ok(outcome) => {
            assert!(!is_told, "it was acknowledged without the standby");
            outcome.into_inner()
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
            wait_until(&cluster.standby, "SELECT count(*) = 1 FROM charges").await;
            replayed(&idempotency, "terminated").await
        }
    };

    // What is acknowledged now is there: the standby gets no more. What waits is gone.
    cluster.cut_off_standby().await;
    let killed = spawn_call(&idempotency, "killed");
    wait_until(&cluster.primary, A_COMMIT_WAITS).await;
    assert!(!killed.is_finished());
    cluster.fail_over().await;
    assert_eq!(replayed(&idempotency, "terminated").await, run);
    let first = killed.await.unwrap();
    let outcome = call_until_answered(&idempotency, "killed").await;
    match first {
        // The call has found out by itself what became of it, and executed again.
        Ok(first) => assert_eq!(outcome, Outcome::Replayed(first.into_inner())),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
            assert!(!outcome.is_replayed(), "the standby cannot have it");
        }
    }
    assert_eq!(charges(&cluster.standby).await.len(), 2);
    assert_consistent(&cluster.standby).await;
}

/// What PostgreSQL itself does, and no client of it can prevent. The documentation names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_restarts_or_whose_wait_is_cancelled_shows_what_no_standby_has() {
    let mut cluster = Cluster::synchronous().await;
    let idempotency = cluster.idempotency();
    cluster.cut_off_standby().await;
    let cancelled = spawn_call(&idempotency, "cancelled");
    wait_until(&cluster.primary, A_COMMIT_WAITS).await;
    sqlx::raw_sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        .execute(&cluster.primary)
        .await
        .unwrap();
    // The server answers the COMMIT as if nothing had happened, with a warning.
    let cancelled = cancelled.await.unwrap().unwrap();
    assert!(!cancelled.is_replayed());

    let in_doubt = spawn_call(&idempotency, "in-doubt");
    wait_until(&cluster.primary, A_COMMIT_WAITS).await;
    cluster.kill_primary();
    cluster.restart_primary();
    let shown =
        [("cancelled", cancelled.into_inner()), ("in-doubt", replayed(&idempotency, "in-doubt").await)];
    assert!(charges(&cluster.standby).await.is_empty());

    cluster.fail_over().await;
    if let Ok(second) = in_doubt.await.unwrap() {
        // The call has found out by itself what became of it, and executed again.
        assert_eq!(replayed(&idempotency, "in-doubt").await, second.into_inner());
    }
    for (name, first) in shown {
        let second = call_until_answered(&idempotency, name).await.into_inner();
        assert_ne!(second, first, "{name}");
        assert_eq!(call(&idempotency, name).await.unwrap(), Outcome::Replayed(second));
    }
    assert_consistent(&cluster.standby).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_runs_nothing_and_replays_nothing() {
    let cluster = Cluster::new().await;
    let run = call(&cluster.idempotency(), "order-1").await.unwrap().into_inner();
    wait_until(&cluster.standby, "SELECT count(*) = 1 FROM pgonce.keys").await;

    let error = pgonce::verify(&cluster.standby).await.unwrap_err();
    assert!(error.to_string().contains("the server is a standby: connect to the primary"), "{error}");
    let plain = Idempotency::new(cluster.standby.clone());
    let hardened = Idempotency::connect(cluster.standby_options()).await.unwrap();
    for idempotency in [&plain, &hardened] {
        for name in ["order-1", "order-2"] {
            let must_not_run = async |_: &mut PgConnection| -> Result<String, Error> { panic!("it ran") };
            let errors = [
                idempotency.execute(&operation(name), must_not_run).await.unwrap_err(),
                idempotency.claim(&operation(name)).await.unwrap_err(),
                idempotency.purge_expired(1).await.unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind(), ErrorKind::Database, "{error}");
                assert!(error.to_string().contains("connect to the primary"), "{error}");
                assert!(!error.is_retryable(), "{error}");
            }
        }
    }
    // Looking is possible, at what the standby has got so far.
    assert_eq!(find(&plain, "order-1").await.unwrap().result::<String>().unwrap(), run);

    // The same connections, when it is a primary.
    cluster.promote_standby().await;
    pgonce::verify(&cluster.standby).await.unwrap();
    for idempotency in [&plain, &hardened] {
        assert_eq!(call(idempotency, "order-1").await.unwrap(), Outcome::Replayed(run.clone()));
    }
    // Nobody has fenced the other one, so both accept the same key.
    let other = Idempotency::new(cluster.primary.clone());
    for idempotency in [&other, &hardened] {
        assert!(!call(idempotency, "order-2").await.unwrap().is_replayed());
    }
    assert_consistent(&cluster.standby).await;
}
