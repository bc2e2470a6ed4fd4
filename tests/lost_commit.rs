//! The answer to COMMIT is lost: the same call finds out what became of it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use pgonce::testing::{Edge, Fault, Message, Proxy, Side};
use pgonce::{Claim, Error, ErrorKind, Idempotency, InFlight, Mode, Operation, Outcome};
use sqlx::PgConnection;
use sqlx::postgres::PgPoolOptions;
use support::{Database, charge, must_not_run, operation};
use uuid::Uuid;

/// A client whose COMMIT something happens to.
struct Client {
    proxy: Arc<Proxy>,
    idempotency: Idempotency,
    runs: AtomicUsize,
}

impl Client {
    /// With a pool of one connection: unless the lost one gives its slot back, nothing is ever found out.
    async fn new(db: &Database, fault: Fault, edge: Edge) -> Self {
        let proxy = Proxy::start(&db.options()).await.unwrap();
        proxy.arm(fault, edge, is_commit);
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
        let idempotency = support::on(pool).with_commit_timeout(Duration::from_secs(30));
        Self { proxy: Arc::new(proxy), idempotency, runs: AtomicUsize::new(0) }
    }

    fn with_commit_timeout(mut self, limit: Duration) -> Self {
        self.idempotency = self.idempotency.with_commit_timeout(limit);
        self
    }

    fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.idempotency = self.idempotency.with_max_attempts(attempts);
        self
    }

    /// Charges, and makes an id that is another one in each run.
    async fn charge(&self, conn: &mut PgConnection) -> Result<Uuid, Error> {
        self.runs.fetch_add(1, SeqCst);
        charge(conn, 42).await?;
        Ok(Uuid::new_v4())
    }

    async fn execute(&self) -> Result<Outcome<Uuid>, Error> {
        self.idempotency.execute(&operation(), async |conn| self.charge(conn).await).await
    }

    fn runs(&self) -> usize {
        self.runs.load(SeqCst)
    }

    /// Makes the same call again, over a good connection.
    async fn replays(&self, db: &Database, id: Uuid) {
        let again = db.idempotency().execute(&operation(), must_not_run::<Uuid>).await;
        assert_eq!(again.unwrap(), Outcome::Replayed(id));
        db.assert_charged_once().await;
    }
}

fn is_commit(message: &Message) -> bool {
    // In optimistic mode what stands in its way is closed with it.
    let commits = ["Query: COMMIT", "Query: CLOSE pgonce_open; COMMIT AND CHAIN"];
    message.side == Side::Client && commits.contains(&message.label.as_str())
}

fn executed(outcome: Outcome<Uuid>) -> Uuid {
    match outcome {
        Outcome::Executed(id) => id,
        Outcome::Replayed(id) => panic!("replayed {id}"),
    }
}

#[tokio::test]
async fn a_commit_that_was_delivered_is_found() {
    for fault in [Fault::Cut, Fault::BlackHole] {
        let db = Database::new().await;
        let client = Client::new(&db, fault, Edge::After).await.with_commit_timeout(Duration::from_secs(2));
        let id = executed(client.execute().await.unwrap());
        assert_eq!(client.proxy.hits(), 1, "{fault:?}");
        assert_eq!(client.runs(), 1, "{fault:?}: its result differs in every run, and that is no conflict");
        client.replays(&db, id).await;
    }
}

#[tokio::test]
async fn a_commit_that_was_not_delivered_is_run_again() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Cut, Edge::Before).await;
    let id = executed(client.execute().await.unwrap());
    assert_eq!((client.proxy.hits(), client.runs()), (1, 2));
    client.replays(&db, id).await;
}

#[tokio::test]
async fn a_failure_whose_commit_was_lost_is_recorded_all_the_same() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let db = Database::new().await;
        let client = Client::new(&db, Fault::Cut, edge).await;
        let declines = async |conn: &mut PgConnection| {
            client.charge(conn).await?;
            Ok::<Result<(), String>, Error>(Err("declined".into()))
        };
        let outcome = client.idempotency.execute_recording(&operation(), declines).await.unwrap();
        assert_eq!(outcome, Outcome::Executed(Err("declined".into())));
        assert_eq!((client.proxy.hits(), client.runs()), (1, runs));
        assert_eq!((db.count("ledger").await, db.count("pgonce.keys WHERE state = 'failed'").await), (0, 1));
    }
}

#[tokio::test]
async fn who_cannot_run_again_is_told_that_nothing_was_committed() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Cut, Edge::Before).await;
    let once = client.idempotency.execute_once(&operation(), async |conn| client.charge(conn).await).await;
    let once = once.unwrap_err();

    client.proxy.arm(Fault::Cut, Edge::Before, is_commit);
    let Claim::Claimed(mut claimed) = client.idempotency.claim(&operation()).await.unwrap() else {
        panic!("fresh")
    };
    client.charge(&mut claimed).await.unwrap();
    let complete = claimed.complete(&1).await.unwrap_err();

    for error in [once, complete] {
        assert_eq!(error.kind(), ErrorKind::Database);
        assert!(error.is_retryable());
        assert!(error.to_string().ends_with("nothing was committed; make the same call again"), "{error}");
    }
    assert_eq!(client.runs(), 2, "each once");
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_claim_whose_commit_was_delivered_is_complete() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Cut, Edge::After).await;
    let Claim::Claimed(mut claimed) = client.idempotency.claim(&operation()).await.unwrap() else {
        panic!("fresh")
    };
    let id = client.charge(&mut claimed).await.unwrap();
    claimed.complete(&id).await.unwrap();
    client.replays(&db, id).await;
}

#[tokio::test]
async fn a_commit_that_hangs_is_cut_off_and_is_not_taken_for_dead() {
    let db = Database::new().await;
    // The server does not hear that the client is gone: its transaction stays open.
    let client =
        Client::new(&db, Fault::Stall, Edge::Before).await.with_commit_timeout(Duration::from_secs(2));
    let error = client.execute().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown);
    assert!(error.is_retryable());
    let text = error.to_string();
    for part in [
        "order-1",
        "acct_42/charges",
        "a transaction with the key's lock, its own or another call's, was still open",
        "same call again",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(client.runs(), 1, "not proven dead");
    let Error::CommitUnknown { attempt, .. } = error else { panic!("{error}") };

    // Its slot is free, though the server has not ended the session.
    sqlx::query("SELECT 1").execute(client.idempotency.pool()).await.unwrap();
    let open = "pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'";
    assert_eq!(db.count(open).await, 1);
    // In optimistic mode it would run first, and wait for the rows that the other one has locked.
    if support::mode() != Mode::Optimistic {
        let again = client.execute().await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::InFlight);
    }

    // The COMMIT arrives after all.
    client.proxy.heal();
    db.wait_until("SELECT count(*) = 1 FROM pgonce.keys").await;
    let record = db.idempotency().find(operation().scope(), operation().key()).await.unwrap().unwrap();
    assert_eq!(record.attempt(), attempt, "by which one finds out by hand");
    client.replays(&db, record.result().unwrap()).await;
}

#[tokio::test]
async fn a_commit_that_arrives_late_is_waited_for() {
    let db = Database::new().await;
    let client =
        Client::new(&db, Fault::Stall, Edge::Before).await.with_commit_timeout(Duration::from_secs(2));
    let late = async {
        // It has looked, and has got an answer.
        let looked = |message: &Message| message.connection > 0 && message.label == "DataRow";
        while client.proxy.conversation().iter().filter(|message| looked(message)).count() < 2 {
            tokio::task::yield_now().await;
        }
        client.proxy.heal();
    };
    let (outcome, ()) = tokio::join!(client.execute(), late);
    let id = executed(outcome.unwrap());
    assert_eq!(client.runs(), 1);
    client.replays(&db, id).await;
}

#[tokio::test]
async fn a_server_that_cannot_be_asked_leaves_it_unknown() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let db = Database::new().await;
        let client = Client::new(&db, Fault::Outage, edge).await.with_commit_timeout(Duration::from_secs(2));
        let error = client.execute().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CommitUnknown);
        assert!(error.to_string().contains("the database could not be asked for 2s"), "{error}");
        client.proxy.heal();
        db.wait_until_idle().await;
        let outcome = client.execute().await.unwrap();
        let in_vain = edge == Edge::After && support::mode() == Mode::Optimistic;
        assert_eq!(
            (outcome.is_replayed(), client.runs()),
            (edge == Edge::After, runs + usize::from(in_vain))
        );
        client.replays(&db, outcome.into_inner()).await;
    }
}

#[tokio::test]
async fn a_server_that_comes_back_in_time_is_asked() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let db = Database::new().await;
        let client = Client::new(&db, Fault::Outage, edge).await;
        let comes_back = async {
            client.proxy.hit(1).await;
            client.proxy.refused(2).await;
            client.proxy.heal();
        };
        let (outcome, ()) = tokio::join!(client.execute(), comes_back);
        let id = executed(outcome.unwrap());
        assert_eq!(client.runs(), runs);
        client.replays(&db, id).await;
    }
}

#[tokio::test]
async fn what_another_call_has_committed_since_is_replayed() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Outage, Edge::Before).await;
    let another = async {
        client.proxy.hit(1).await;
        let another = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(30)));
        let charges = async |conn: &mut PgConnection| {
            charge(conn, 42).await?;
            Ok::<_, Error>(Uuid::new_v4())
        };
        let id = executed(another.execute(&operation(), charges).await.unwrap());
        client.proxy.heal();
        id
    };
    let (outcome, id) = tokio::join!(client.execute(), another);
    assert_eq!(outcome.unwrap(), Outcome::Replayed(id));
    assert_eq!(client.runs(), 1);
    client.replays(&db, id).await;
}

#[tokio::test]
async fn other_parameters_that_have_taken_the_key_since_are_a_mismatch() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Outage, Edge::Before).await;
    let another = async {
        client.proxy.hit(1).await;
        let another = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(30)));
        let other = Operation::new(support::scope(), support::key("order-1")).with_params(&43).unwrap();
        another.execute(&other, async |conn| charge(conn, 42).await).await.unwrap();
        client.proxy.heal();
    };
    let (outcome, ()) = tokio::join!(client.execute(), another);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::FingerprintMismatch);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_key_that_may_have_been_purged_is_not_taken_for_dead() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Outage, Edge::After).await;
    let purged = async {
        client.proxy.hit(1).await;
        db.wait_until("SELECT count(*) = 1 FROM pgonce.keys").await;
        assert_eq!(db.idempotency().purge_expired(10).await.unwrap(), 1);
        client.proxy.heal();
    };
    let short = operation().with_retention(Duration::ZERO);
    let call = client.idempotency.execute(&short, async |conn| client.charge(conn).await);
    let (outcome, ()) = tokio::join!(call, purged);
    let error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown);
    assert!(!error.is_retryable(), "it would be charged twice");
    let text = error.to_string();
    assert!(
        text.contains("its retention ended") && text.contains("do not make the same call again"),
        "{text}"
    );
    assert_eq!((client.runs(), db.count("ledger").await), (1, 1));
}

#[tokio::test]
async fn a_key_that_has_expired_meanwhile_is_found_all_the_same() {
    let db = Database::new().await;
    let client = Client::new(&db, Fault::Cut, Edge::After).await;
    let short = operation().with_retention(Duration::ZERO);
    let outcome = client.idempotency.execute(&short, async |conn| client.charge(conn).await).await.unwrap();
    assert!(!outcome.is_replayed());
    assert_eq!((client.runs(), db.count("ledger").await), (1, 1));
}

#[tokio::test]
async fn a_taken_over_key_is_found_too() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let db = Database::new().await;
        let expired = operation().with_retention(Duration::ZERO);
        db.idempotency().execute(&expired, async |_| Ok::<_, Error>(Uuid::nil())).await.unwrap();
        let client = Client::new(&db, Fault::Cut, edge).await;
        let id = executed(client.execute().await.unwrap());
        // In optimistic mode it first runs in vain: a row is there.
        let in_vain = usize::from(support::mode() == Mode::Optimistic);
        assert_eq!(client.runs(), runs + in_vain);
        client.replays(&db, id).await;
    }
}

/// Ends its own session at COMMIT, as often as that.
async fn end_sessions_at_commit(db: &Database, times: u32) {
    let sql = format!(
        "CREATE SEQUENCE commits;
         CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('commits') <= {times} THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION end_session()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn a_session_that_the_server_ends_at_the_commit_is_found_out_too() {
    let db = Database::new().await;
    end_sessions_at_commit(&db, 2).await;
    let client = Client::new(&db, Fault::Cut, Edge::Before).await;
    client.proxy.heal();
    let id = executed(client.execute().await.unwrap());
    assert_eq!(client.runs(), 3);
    client.replays(&db, id).await;
}

#[tokio::test]
async fn lost_commits_are_repeated_as_often_as_conflicts_and_no_more() {
    let db = Database::new().await;
    end_sessions_at_commit(&db, 1000).await;
    let client = Client::new(&db, Fault::Cut, Edge::Before).await.with_max_attempts(3);
    client.proxy.heal();
    let error = client.execute().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.is_retryable());
    assert_eq!(client.runs(), 3);
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_pool_that_is_closed_or_exhausted_is_no_hindrance() {
    let db = Database::new().await;
    let client =
        Client::new(&db, Fault::Stall, Edge::After).await.with_commit_timeout(Duration::from_secs(2));
    let closed = async {
        client.proxy.hit(1).await;
        let _closing = client.idempotency.pool().close();
    };
    let (outcome, ()) = tokio::join!(client.execute(), closed);
    client.replays(&db, executed(outcome.unwrap())).await;

    let db = Database::new().await;
    let client = Client::new(&db, Fault::Cut, Edge::After).await.with_commit_timeout(Duration::from_secs(4));
    let takes_the_slot = async {
        client.proxy.hit(1).await;
        client.idempotency.pool().acquire().await.unwrap()
    };
    let (outcome, _slot) = tokio::join!(client.execute(), takes_the_slot);
    client.replays(&db, executed(outcome.unwrap())).await;
}

#[tokio::test]
async fn idle_connections_that_are_silently_dead_are_no_hindrance() {
    let db = Database::new().await;
    let proxy = Proxy::start(&db.options()).await.unwrap();
    let pool = PgPoolOptions::new().max_connections(10).connect_lazy_with(proxy.options());
    let mut conns = Vec::new();
    for _ in 0..10 {
        conns.push(pool.acquire().await.unwrap());
    }
    drop(conns);
    let idempotency = support::on(pool).with_commit_timeout(Duration::from_secs(3));
    // It and all idle connections are swallowed; new ones are not.
    proxy.arm(Fault::BlackHole, Edge::After, is_commit);
    let swallowed = async {
        proxy.hit(1).await;
        proxy.swallow();
    };
    let operation = operation();
    let call = idempotency.execute(&operation, async |conn| charge(conn, 42).await);
    let (outcome, ()) = tokio::join!(call, swallowed);
    assert!(!outcome.unwrap().is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn who_finds_out_can_be_dropped_anywhere() {
    for edge in [Edge::Before, Edge::After] {
        let db = Database::new().await;
        let mut completed = false;
        let mut polls = 0;
        while !completed {
            let Client { proxy, idempotency, .. } = Client::new(&db, Fault::Cut, edge).await;
            let operation = Operation::new(support::scope(), support::key(&format!("dropped/{polls}")));
            let call = idempotency.execute(&operation, async |conn| charge(conn, 1).await);
            completed = support::poll_at_most(call, polls).await.is_some();
            support::assert_at_rest(&db, idempotency.pool(), &format!("{edge:?}, {polls} polls")).await;
            proxy.heal();
            idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
            polls += 1;
            assert_eq!(db.count("ledger").await, polls as i64, "{edge:?}");
        }
        assert!(polls > 20, "{polls} polls cannot have been all await points");
    }
}
