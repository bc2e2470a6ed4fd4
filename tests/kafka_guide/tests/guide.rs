//! What `docs/kafka.md` says, tried out: its code, with the mock of a broker that is a part of librdkafka.

#[path = "../../support/mod.rs"]
mod support;

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use kafka_guide::{ids, positions};
use pgonce::{Inbox, Scope};
use rdkafka::consumer::{BaseConsumer, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{DefaultProducerContext, FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use sqlx::{AssertSqlSafe, PgPool};
use support::{Database, assert_in_document};
use tokio::task::JoinHandle;

const PAGE: &str = include_str!("../../../docs/kafka.md");
const TOPIC: &str = "payments";
const PARTITIONS: i32 = 3;
const LONG: Duration = Duration::from_secs(30);

#[test]
fn the_page_shows_the_code_that_is_tested_here_and_no_other() {
    for (name, code) in [
        ("common.rs", include_str!("../common.rs")),
        ("ids.rs", include_str!("../ids.rs")),
        ("positions.rs", include_str!("../positions.rs")),
    ] {
        assert_in_document("../../docs/kafka.md", name, &format!("```rust\n{code}```\n"));
    }
    assert_eq!(PAGE.matches("```rust").count(), 3);
}

// The offset is in Kafka.

#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_again_after_a_crash_is_booked_once() {
    let world = World::new().await;
    world.publish_payments(1..=250).await;
    world.publish(0, None, r#"{"account": "alice", "cents": 1}"#).await;
    world.publish(1, Some("no-json"), "cents: 1").await;
    world.publish(2, Some("for-nobody"), r#"{"account": "nobody", "cents": 1}"#).await;

    // As after a crash between the two COMMITs: the database's is done, Kafka's is not.
    let refused = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1000];
    world.broker.request_errors(RDKafkaApiKey::OffsetCommit, &refused);
    let consumer = world.consume_by_ids();
    until(async || world.booked().await == 250 && world.parked().await == 3).await;
    stop(consumer).await;
    assert_eq!(world.committed(), [None; 3]);
    world.broker.clear_request_errors(RDKafkaApiKey::OffsetCommit);

    let consumer = world.consume_by_ids();
    world.publish_payments(240..=500).await;
    let ends: Vec<_> = world.ends().into_iter().map(Some).collect();
    until(async || world.committed() == ends).await;
    world.assert_booked_once(500).await;
    assert_eq!(world.parked().await, 3);
    stop(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_for_a_while_does_not_end_the_consumer() {
    let world = World::new().await;
    let consumer = world.consume_by_ids();
    let witness: StreamConsumer = config(&world.broker, "witness").create().unwrap();
    witness.subscribe(&[TOPIC]).unwrap();
    world.publish_payments(1..=10).await;
    until(async || world.booked().await == 10).await;

    world.broker.broker_down(-1).unwrap();
    until(async || witness.recv().await.is_err()).await;
    world.broker.broker_up(-1).unwrap();
    world.publish_payments(11..=20).await;
    until(async || world.booked().await == 20).await;
    world.assert_booked_once(20).await;
    stop(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_never_ahead_of_the_database() {
    let world = World::new().await;
    world.publish_each_once(1..=20_000).await;
    let consumer = world.consume_by_ids();
    let mut offsets = 0;
    while offsets < 20_000 {
        // A batch is stopped before it is booked. Those before it are committed to Kafka by then, not more.
        let mut pause = world.db.pool.begin().await.unwrap();
        sqlx::raw_sql("LOCK TABLE ledger IN SHARE MODE").execute(&mut *pause).await.unwrap();
        let is_stopped = "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND NOT granted";
        until(async || {
            offsets = world.committed().into_iter().flatten().sum();
            offsets == 20_000 || world.number(is_stopped).await == 1
        })
        .await;
        let (offsets, booked) = (world.committed().into_iter().flatten().sum::<i64>(), world.booked().await);
        assert!(offsets <= booked, "{offsets} offsets are committed, and {booked} payments booked");
        pause.commit().await.unwrap();
    }
    stop(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_does_not_have_is_not_committed_to_kafka() {
    let world = World::new().await;
    world.publish_payments(1..=10).await;
    world.execute("ALTER TABLE ledger RENAME TO elsewhere").await;
    let error = failure_of(world.consume_by_ids()).await;
    assert!(error.to_string().contains(r#"relation "ledger" does not exist"#), "{error:?}");
    assert_eq!((world.committed(), world.parked().await), (vec![None; 3], 0));

    world.execute("ALTER TABLE elsewhere RENAME TO ledger").await;
    let consumer = world.consume_by_ids();
    until(async || world.booked().await == 10).await;
    world.assert_booked_once(10).await;
    stop(consumer).await;
}

// The offset is in the database.

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_where_the_database_stands() {
    let world = World::new().await;
    world.publish_payments(1..=250).await;
    let consumer = world.consume_by_positions("ledger", &world.db.pool);
    until(async || world.booked().await > 0).await;
    stop(consumer).await;

    let consumer = world.consume_by_positions("ledger", &world.db.pool);
    world.publish_payments(240..=497).await;
    // The last one in each partition is no duplicate, which would not move the position.
    world.publish_each_once(498..=500).await;
    let ends = world.ends();
    until(async || world.positions().await == ends).await;
    stop(consumer).await;
    world.assert_booked_once(500).await;

    // Without any id, and without an offset in Kafka: the position alone keeps the old ones away.
    world.execute("DELETE FROM pgonce.keys").await;
    assert_eq!(world.committed(), [None; 3]);
    let consumer = world.consume_by_positions("ledger", &world.db.pool);
    world.publish_payments(501..=504).await;
    until(async || world.booked().await >= 504).await;
    world.assert_booked_once(504).await;
    stop(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_from_one_consumer_to_another_and_back() {
    let world = World::new().await;
    let [first, second] = [world.db.pool_of(1), world.db.pool_of(1)];
    let leaving = world.consume_by_positions("ledger", &first);
    let mut last = 0;
    let mut publish_until = async |booked_by: i64| {
        until(async || {
            last += 10;
            world.publish_payments(last - 9..=last).await;
            world.number("SELECT count(DISTINCT backend) FROM ledger").await == booked_by
        })
        .await;
        until(async || world.booked().await == last as i64).await;
        world.assert_booked_once(last as i64).await;
    };
    publish_until(1).await;
    let staying = world.consume_by_positions("ledger", &second);
    publish_until(2).await;
    stop(leaving).await;
    publish_until(2).await;
    stop(staying).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_alone_do_not_move_a_position_and_do_not_stand_in_its_way() {
    let world = World::new().await;
    let pool = world.db.pool_of(1);
    let consumer = world.consume_by_positions("ledger", &pool);
    for _ in 0..3 {
        world.publish_payment(1, 0).await;
        until(async || world.booked().await == 1).await;
    }
    // What a batch without anything fresh ends with.
    world
        .db
        .wait_until(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                            AND query = 'ROLLBACK' AND state = 'idle')",
        )
        .await;
    assert_eq!(world.positions().await, [1, 0, 0]);
    world.publish_payment(2, 0).await;
    until(async || world.booked().await == 2).await;
    assert_eq!(world.positions().await, [4, 0, 0]);
    stop(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zombie_is_fenced() {
    let world = World::new().await;
    // In groups of their own, so that Kafka gives all partitions to both.
    let (zombies, owners) = (world.db.pool_of(1), world.db.pool_of(1));
    let zombie = world.consume_by_positions("zombie", &zombies);
    world.publish_payment(1, 0).await;
    until(async || world.booked().await == 1).await;

    // What it receives now it cannot process in time.
    let paused = zombies.acquire().await.unwrap();
    let owner = world.consume_by_positions("owner", &owners);
    world.publish_payments(2..=30).await;
    until(async || world.booked().await == 30).await;
    drop(paused);

    // These it receives as the first one, and is at the old position.
    let paused = owners.acquire().await.unwrap();
    world.publish_payments(31..=33).await;
    let error = failure_of(zombie).await;
    assert!(error.to_string().starts_with("fenced: "), "{error:?}");
    world.assert_booked_once(30).await;
    drop(paused);
    until(async || world.booked().await == 33).await;
    world.assert_booked_once(33).await;
    stop(owner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_holds_its_partition_up_until_it_is_parked_under_its_id() {
    let world = World::new().await;
    world.publish(0, Some("for-nobody"), r#"{"account": "nobody", "cents": 1}"#).await;
    world.publish_payment(1, 0).await;
    for _ in 0..2 {
        let error = failure_of(world.consume_by_positions("ledger", &world.db.pool)).await;
        assert!(error.to_string().contains("violates foreign key constraint"), "{error:?}");
    }
    world.assert_booked_once(0).await;
    let inbox = world.inbox(&world.db.pool);
    let parked = inbox.process("for-nobody", async |conn| {
        sqlx::query("INSERT INTO dead_letters VALUES ($1, 0, 0, NULL, 'no such account')")
            .bind(TOPIC)
            .execute(conn)
            .await?;
        anyhow::Ok(())
    });
    parked.await.unwrap();
    let consumer = world.consume_by_positions("ledger", &world.db.pool);
    until(async || world.booked().await == 1).await;
    assert_eq!(world.positions().await, [2, 0, 0]);
    stop(consumer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_cannot_be_had_is_an_error_and_skips_nothing() {
    let world = World::new().await;
    world.publish_payment(1, 0).await;
    world.execute("INSERT INTO positions VALUES ('ledger/payments', 'payments', 0, 1000)").await;
    let error = failure_of(world.consume_by_positions("ledger", &world.db.pool)).await;
    let gone = KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset);
    assert_eq!(error.downcast_ref(), Some(&gone));

    world.execute("DROP TABLE positions").await;
    let error = failure_of(world.consume_by_positions("ledger", &world.db.pool)).await;
    assert!(error.to_string().contains(r#"relation "positions" does not exist"#), "{error:?}");
    world.assert_booked_once(0).await;
}

/// A broker with an empty topic, and a database in which alice has an account.
struct World {
    broker: MockCluster<'static, DefaultProducerContext>,
    producer: FutureProducer,
    /// Of the group `ledger`, though it never joins it.
    observer: BaseConsumer,
    db: Database,
}

impl World {
    async fn new() -> Self {
        let broker = MockCluster::new(1).unwrap();
        broker.create_topic(TOPIC, PARTITIONS, 1).unwrap();
        let db = Database::empty().await;
        pgonce::migrate(&db.pool).await.unwrap();
        let bank = "CREATE TABLE accounts (id text PRIMARY KEY);
             CREATE TABLE ledger (account text NOT NULL REFERENCES accounts, cents bigint NOT NULL,
                                  backend int NOT NULL DEFAULT pg_backend_pid());
             INSERT INTO accounts VALUES ('alice');";
        let documented = PAGE.split("```sql\n").nth(1).and_then(|text| text.split("```").next()).unwrap();
        sqlx::raw_sql(AssertSqlSafe([bank, documented].concat())).execute(&db.pool).await.unwrap();
        let config = config(&broker, "ledger");
        Self { producer: config.create().unwrap(), observer: config.create().unwrap(), broker, db }
    }

    fn inbox(&self, pool: &PgPool) -> Inbox {
        Inbox::new(pool.clone(), Scope::new("ledger/payments").unwrap())
    }

    fn consume_by_ids(&self) -> JoinHandle<anyhow::Result<()>> {
        let pool = self.db.pool.clone();
        tokio::spawn(ids::consume(config(&self.broker, "ledger"), TOPIC, self.inbox(&pool), pool))
    }

    fn consume_by_positions(&self, group: &str, pool: &PgPool) -> JoinHandle<anyhow::Result<()>> {
        let config = config(&self.broker, group);
        tokio::spawn(positions::consume(config, TOPIC, self.inbox(pool), pool.clone()))
    }

    /// Each is of as many cents as its number. Every fifth is published twice, into two partitions.
    async fn publish_payments(&self, numbers: RangeInclusive<i32>) {
        let partitions = |number: i32| if number % 5 == 0 { vec![number, number + 1] } else { vec![number] };
        let all = numbers.flat_map(|number| partitions(number).into_iter().map(move |at| (number, at)));
        join_all(all.map(|(number, at)| self.publish_payment(number, at % PARTITIONS))).await;
    }

    async fn publish_each_once(&self, numbers: RangeInclusive<i32>) {
        join_all(numbers.map(|number| self.publish_payment(number, number % PARTITIONS))).await;
    }

    async fn publish_payment(&self, number: i32, partition: i32) {
        let payload = format!(r#"{{"account": "alice", "cents": {number}}}"#);
        self.publish(partition, Some(&format!("payment-{number}")), &payload).await;
    }

    async fn publish(&self, partition: i32, id: Option<&str>, payload: &str) {
        let headers = OwnedHeaders::new().insert(Header { key: "id", value: id });
        let record = FutureRecord::<str, _>::to(TOPIC).partition(partition).headers(headers).payload(payload);
        self.producer.send(record, LONG).await.unwrap();
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.db.pool).await.unwrap();
    }

    async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.db.pool).await.unwrap()
    }

    /// How many payments are in the ledger.
    async fn booked(&self) -> i64 {
        self.db.count("ledger").await
    }

    async fn parked(&self) -> i64 {
        self.db.count("dead_letters").await
    }

    /// Each of the payments up to this number is in the ledger, and nothing else.
    async fn assert_booked_once(&self, last: i64) {
        let cents = "SELECT array_agg(cents ORDER BY cents) FROM ledger";
        let cents: Option<Vec<i64>> = sqlx::query_scalar(cents).fetch_one(&self.db.pool).await.unwrap();
        assert_eq!(cents.unwrap_or_default(), (1..=last).collect::<Vec<_>>());
    }

    /// The positions in the database, by partition.
    async fn positions(&self) -> Vec<i64> {
        let positions = "SELECT next_offset FROM positions ORDER BY partition";
        sqlx::query_scalar(positions).fetch_all(&self.db.pool).await.unwrap()
    }

    /// The offsets that the group has committed to Kafka, by partition.
    fn committed(&self) -> Vec<Option<i64>> {
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(TOPIC, 0, PARTITIONS - 1);
        let committed = self.observer.committed_offsets(partitions, LONG).unwrap();
        let offset = |offset| if let Offset::Offset(offset) = offset { Some(offset) } else { None };
        committed.elements().iter().map(|partition| offset(partition.offset())).collect()
    }

    /// The end of each partition.
    fn ends(&self) -> Vec<i64> {
        (0..PARTITIONS).map(|at| self.observer.fetch_watermarks(TOPIC, at, LONG).unwrap().1).collect()
    }
}

fn config(broker: &MockCluster<'static, DefaultProducerContext>, group: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap_servers()).set("group.id", group);
    // After one has left, the mock lets a group wait for almost as long as this.
    config.set("session.timeout.ms", "3000").set("heartbeat.interval.ms", "500");
    config
}

/// Drops the consumer wherever it is.
async fn stop(consumer: JoinHandle<anyhow::Result<()>>) {
    consumer.abort();
    let ended = consumer.await;
    assert!(ended.as_ref().is_err_and(|error| error.is_cancelled()), "it had ended by itself: {ended:?}");
}

/// Waits for the error with which it ends by itself.
async fn failure_of(consumer: JoinHandle<anyhow::Result<()>>) -> anyhow::Error {
    tokio::time::timeout(LONG, consumer).await.expect("it goes on").unwrap().unwrap_err()
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < LONG, "it does not come about");
        tokio::task::yield_now().await;
    }
}
