//! A recorder of the test's own, and what it has recorded.

use std::collections::BTreeMap;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use pgonce::metrics::{DURATION_BUCKETS, SIZE_BUCKETS, describe};
use tokio::sync::OnceCell;

use crate::support::Database;

/// The recorder of this thread, until it is dropped; and a database for what is recorded.
pub struct Meter {
    database: OnceCell<Database>,
    handle: PrometheusHandle,
    _recorder: metrics::LocalRecorderGuard<'static>,
}

impl Meter {
    pub fn start() -> Self {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), DURATION_BUCKETS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Suffix("_size_bytes".into()), SIZE_BUCKETS)
            })
            .expect("buckets")
            .build_recorder();
        let handle = recorder.handle();
        let _recorder = metrics::set_default_local_recorder(Box::leak(Box::new(recorder)));
        describe();
        Self { database: OnceCell::new(), handle, _recorder }
    }

    /// A database as [`Database::new`] makes it. The same one each time, since to make one takes longer than most scenarios.
    pub async fn database(&self) -> &Database {
        let database = self.database.get_or_init(Database::new).await;
        database.wait_until_idle().await;
        let clean = "TRUNCATE pgonce.keys, ledger; UPDATE accounts SET balance = CASE id WHEN 'alice' THEN 1000 ELSE 0 END";
        sqlx::raw_sql(clean).execute(&database.pool).await.expect("clean the database");
        database
    }

    pub fn text(&self) -> String {
        self.handle.render()
    }

    pub fn scrape(&self) -> Scrape {
        Scrape::read(&self.text())
    }

    /// What was added to the counters since then.
    pub fn gained_since(&self, before: &Scrape) -> Scrape {
        self.scrape().less(before)
    }

    /// What the work adds to the counters.
    pub async fn gains<T>(&self, work: impl Future<Output = T>) -> (T, Scrape) {
        let before = self.scrape();
        let done = work.await;
        (done, self.gained_since(&before))
    }

    /// Asserts by how much the work adds to which outcomes of which calls, and that it adds to no other.
    pub async fn comes_to<T>(&self, outcomes: &[(&str, &str, u64)], work: impl Future<Output = T>) -> T {
        let (done, gained) = self.gains(work).await;
        let mut expected = outcomes.to_vec();
        expected.sort_unstable();
        let counted = gained.of("pgonce_operations_total", ["call", "outcome"]);
        let counted: Vec<_> =
            counted.iter().map(|([call, outcome], n)| (call.as_str(), outcome.as_str(), *n)).collect();
        assert_eq!(counted, expected);
        done
    }
}

/// What Prometheus reads.
#[derive(Debug)]
pub struct Scrape(pub BTreeMap<Series, f64>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub name: String,
    pub labels: BTreeMap<String, String>,
}

impl Scrape {
    fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(|line| series(line).unwrap_or_else(|| panic!("what is this? {line}"))).collect())
    }

    fn less(self, before: &Self) -> Self {
        let less = |(series, value)| {
            let gained = value - before.0.get(&series).unwrap_or(&0.0);
            (gained != 0.0).then_some((series, gained))
        };
        Self(self.0.into_iter().filter_map(less).collect())
    }

    /// The series of this name: the values of these labels, which are all that they have.
    pub fn of<const N: usize>(&self, name: &str, labels: [&str; N]) -> Vec<([String; N], u64)> {
        let of_name = self.0.iter().filter(|(series, _)| series.name == name);
        of_name
            .map(|(series, value)| {
                let names: Vec<_> = series.labels.keys().map(String::as_str).collect();
                assert_eq!(names, labels, "the labels of {name}");
                (labels.map(|label| series.labels[label].clone()), *value as u64)
            })
            .collect()
    }
}

/// `name{label="value",…} 1`
fn series(line: &str) -> Option<(Series, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}')?.split_terminator(',').map(|label| {
        let (name, value) = label.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('"').to_owned()))
    });
    Some((Series { name: name.to_owned(), labels: labels.collect::<Option<_>>()? }, value.parse().ok()?))
}
