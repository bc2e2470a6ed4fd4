//! At start-up a PgBouncer that mixes up prepared statements is refused, and no other; nor is it said that a pool is
//! hardened when PgBouncer does not let it be.

#[path = "../../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgbouncer_tests::{PgBouncer, Program};
use pgonce::{Error, ErrorKind, Idempotency};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, SqlSafeStr};
use support::{Database, charge, operation};
use tokio::task::JoinSet;

type Settings = &'static [(&'static str, &'static str)];

/// Those that do not follow prepared statements.
const WITHOUT_SUPPORT: [(Program, Settings); 2] =
    [(Program::Old, &[]), (Program::New, &[("max_prepared_statements", "0")])];

/// Those with which everything works.
const WITH_SUPPORT: [(Program, Settings); 3] = [
    (Program::New, &[]),
    (
        Program::New,
        &[("server_round_robin", "1"), ("max_prepared_statements", "1"), ("server_reset_query_always", "1")],
    ),
    (Program::Old, &[("pool_mode", "session")]),
];

#[tokio::test]
async fn without_support_for_prepared_statements_it_is_refused_with_what_to_do() {
    let db = Database::new().await;
    // In the last one nothing collides, since PgBouncer has the server forget the statements.
    let forgetful: (Program, Settings) = (Program::Old, &[("server_reset_query_always", "1")]);
    for (program, settings) in WITHOUT_SUPPORT.into_iter().chain([forgetful]) {
        let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
        for _ in 0..3 {
            let problems = what_is_missing(&pgbouncer.options()).await;
            assert_eq!(problems.len(), 1, "{problems:?}");
            for text in
                ["mixes up prepared statements", "1.21", "max_prepared_statements above 0", "session mode"]
            {
                assert!(problems[0].contains(text), "{program:?}: {problems:?}");
            }
        }
    }
}

#[tokio::test]
async fn without_support_it_is_also_refused_when_it_is_busy_or_takes_turns() {
    let db = Database::new().await;
    for (program, settings) in WITHOUT_SUPPORT {
        for round_robin in ["0", "1"] {
            let settings =
                [settings, &[("default_pool_size", "4"), ("server_round_robin", round_robin)]].concat();
            let pgbouncer = PgBouncer::start(program, &db.url(), &settings).await;
            let traffic = Traffic::start(&pgbouncer, 8);
            for _ in 0..5 {
                assert_eq!(what_is_missing(&pgbouncer.options()).await.len(), 1, "{program:?}, {settings:?}");
            }
            traffic.stop().await;
        }
    }
}

/// The first connection of verify prepares where nothing is prepared yet, and then runs what another client has
/// prepared elsewhere under the same name.
#[tokio::test]
async fn whatever_another_clients_statement_does_is_a_proof_and_does_no_harm() {
    let db = Database::new().await;
    sqlx::raw_sql("CREATE SEQUENCE counter").execute(&db.pool).await.unwrap();
    for statement in [
        "SELECT 7",
        "SELECT 'a text'",
        "SELECT 1 WHERE false",
        "SELECT $1::int",
        "SELECT nextval('counter')::int",
    ] {
        let settings = [("default_pool_size", "2"), ("server_round_robin", "1")];
        let pgbouncer = PgBouncer::start(Program::Old, &db.url(), &settings).await;
        let [mut one, mut other] = [connect(&pgbouncer).await, connect(&pgbouncer).await];
        let taken = one.begin().await.unwrap();
        other.prepare(statement.into_sql_str()).await.unwrap();
        taken.rollback().await.unwrap();
        // Now it would be the other's turn, and after this it is the one's on which nothing is prepared.
        sqlx::raw_sql("SELECT 1").execute(&mut other).await.unwrap();

        assert_eq!(what_is_missing(&pgbouncer.options()).await.len(), 1, "{statement}");
    }
    assert_eq!(db.count("counter WHERE is_called").await, 0, "another client's statement took effect");
}

#[tokio::test]
async fn what_else_is_missing_is_named_as_well_and_correctly() {
    let db = Database::empty().await;
    for (program, settings) in WITHOUT_SUPPORT {
        let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
        let problems = what_is_missing(&pgbouncer.options()).await;
        assert_eq!(problems.len(), 2, "{program:?}: {problems:?}");
        assert!(problems[1].starts_with("table pgonce.keys is missing"), "{program:?}: {problems:?}");
    }
}

#[tokio::test]
async fn what_works_is_not_refused() {
    let db = Database::new().await;
    for (program, settings) in WITH_SUPPORT {
        let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
        for _ in 0..2 {
            pgonce::verify(&pgbouncer.pool(2)).await.unwrap();
        }
        let traffic = Traffic::start(&pgbouncer, 8);
        for _ in 0..3 {
            pgonce::verify(&pgbouncer.pool(2)).await.unwrap();
        }
        traffic.stop().await;
    }
}

#[tokio::test]
async fn a_pool_that_has_all_connections_is_not_refused_either() {
    let db = Database::new().await;
    let settings = [("pool_mode", "session"), ("default_pool_size", "1")];
    let pgbouncer = PgBouncer::start(Program::Old, &db.url(), &settings).await;
    let pool = pgbouncer.pool(1);
    sqlx::raw_sql("SELECT 1").execute(&pool).await.unwrap();
    pgonce::verify(&pool).await.unwrap();
}

#[tokio::test]
async fn statement_mode_is_refused() {
    let db = Database::new().await;
    for program in [Program::Old, Program::New] {
        let pgbouncer = PgBouncer::start(program, &db.url(), &[("pool_mode", "statement")]).await;
        let error = pgonce::verify(&pgbouncer.pool(2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database, "{program:?}: {error}");
        assert!(error.to_string().contains("transaction blocks not allowed"), "{program:?}: {error}");
    }
}

/// What the documentation says of it, on plain sqlx.
#[tokio::test]
async fn without_support_wrong_values_are_read_without_an_error() {
    let db = Database::new().await;
    for (program, settings) in WITHOUT_SUPPORT {
        let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
        let [mut one, mut other, mut third] =
            [connect(&pgbouncer).await, connect(&pgbouncer).await, connect(&pgbouncer).await];
        // Two connections to the server, with a statement of the same name on each.
        let mut transaction = one.begin().await.unwrap();
        let answer: &str = "SELECT 'one'";
        assert_eq!(ask(&mut transaction, answer).await.unwrap(), "one");
        assert_eq!(ask(&mut other, "SELECT 'other'").await.unwrap(), "other");
        transaction.commit().await.unwrap();
        // The first one is lent to somebody else.
        let taken = third.begin().await.unwrap();
        assert_eq!(ask(&mut one, answer).await.unwrap(), "other", "{program:?}");
        taken.rollback().await.unwrap();

        // Without a cache the names are the same, and collide.
        let options = pgbouncer.options().statement_cache_capacity(0);
        let error = ask(&mut options.connect().await.unwrap(), "SELECT 'no cache'").await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42P05"), "{program:?}");
        assert_eq!(what_is_missing(&options).await.len(), 1);
    }
}

#[tokio::test]
async fn a_hardened_pool_is_refused_where_its_settings_are() {
    let db = Database::new().await;
    for program in [Program::Old, Program::New] {
        let ignored = [("ignore_startup_parameters", "extra_float_digits, options")];
        for settings in [&[][..], &ignored] {
            let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
            let error = Idempotency::connect(pgbouncer.options()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Database, "{program:?}: {error}");
            let text = error.to_string();
            assert!(
                text.contains("connect to the server itself") && text.contains("Idempotency::new"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_hardened_pool_can_have_its_settings_from_the_role() {
    let db = Database::new().await;
    let role: String = sqlx::query_scalar("SELECT current_user::text").fetch_one(&db.pool).await.unwrap();
    // In this order: new connections of our own are read-only afterwards, too.
    for setting in ["client_connection_check_interval = '1s'", "default_transaction_read_only = on"] {
        let sql = format!("ALTER ROLE {role} IN DATABASE {} SET {setting}", db.name());
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db.pool).await.unwrap();
    }
    let settings = [("ignore_startup_parameters", "extra_float_digits, options")];
    let pgbouncer = PgBouncer::start(Program::New, &db.url(), &settings).await;

    let idempotency = Idempotency::connect(pgbouncer.options()).await.unwrap();
    pgonce::verify(idempotency.pool()).await.unwrap();
    let error = idempotency
        .execute(&operation(), async |conn| {
            sqlx::raw_sql("ROLLBACK").execute(&mut *conn).await?;
            charge(conn, 42).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    db.assert_untouched().await;
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}

async fn what_is_missing(options: &PgConnectOptions) -> Vec<String> {
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy_with(options.clone());
    match pgonce::verify(&pool).await {
        Err(Error::NotMigrated { missing, .. }) => missing,
        other => panic!("{other:?}"),
    }
}

async fn connect(pgbouncer: &PgBouncer) -> sqlx::PgConnection {
    pgbouncer.options().connect().await.unwrap()
}

async fn ask(conn: &mut sqlx::PgConnection, statement: &'static str) -> Result<String, sqlx::Error> {
    sqlx::query_scalar(statement).fetch_one(conn).await
}

/// Other clients, which prepare nothing.
struct Traffic {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Traffic {
    fn start(pgbouncer: &PgBouncer, clients: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients).map(|_| {
            let (options, stop) = (pgbouncer.options(), stop.clone());
            async move {
                let mut conn = options.connect().await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    sqlx::raw_sql("SELECT pg_sleep(random() * 0.002)").execute(&mut conn).await.unwrap();
                }
            }
        });
        Self { clients: clients.collect(), stop }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await;
    }
}
