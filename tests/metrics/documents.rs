//! The table of metrics, the dashboard and the alert rules are about what the code emits.

use std::collections::BTreeSet;

use pgonce::metrics::{METRICS, Metric, MetricKind};
use serde::Deserialize;

use crate::everything;
use crate::meter::{Meter, Scrape, Series};
use crate::promql::Asked;
use crate::support::assert_in_document;

fn read(path: &str) -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The metric of a series: that of a histogram has several.
fn of(series: &Series) -> &'static Metric {
    let is = |metric: &&Metric| match metric.kind {
        MetricKind::Histogram => {
            let rest = series.name.strip_prefix(metric.name);
            rest.is_some_and(|rest| ["_bucket", "_sum", "_count"].contains(&rest))
        }
        _ => series.name == metric.name,
    };
    METRICS.iter().find(is).unwrap_or_else(|| panic!("{} is in no table", series.name))
}

fn names(metrics: impl Iterator<Item = &'static Metric>) -> BTreeSet<&'static str> {
    metrics.map(|metric| metric.name).collect()
}

/// The values of this label.
fn values(emitted: &Scrape, label: &str) -> BTreeSet<String> {
    emitted.0.keys().filter_map(|series| series.labels.get(label).cloned()).collect()
}

#[tokio::test]
async fn what_is_documented_shown_and_watched_is_what_is_emitted() {
    let meter = Meter::start();
    everything(&meter).await;
    let text = meter.text();
    let emitted = meter.scrape();

    let all: BTreeSet<_> = names(METRICS.iter());
    assert_eq!(names(emitted.0.keys().map(of)), all);
    for series in emitted.0.keys() {
        let labels =
            series.labels.keys().map(String::as_str).filter(|label| !["le", "scope"].contains(label));
        assert_eq!(labels.collect::<Vec<_>>(), of(series).labels, "{}", series.name);
    }
    for metric in METRICS {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        for line in
            [format!("# HELP {} {}", metric.name, metric.help), format!("# TYPE {} {kind}", metric.name)]
        {
            assert!(text.lines().any(|found| found == line), "{line}");
        }
    }
    a_guide_names_all_values(&emitted);

    let shown = of_dashboard(&emitted);
    assert_eq!(shown, all, "each metric is in the dashboard");
    assert_alerts_ask_for(&emitted);
}

/// The tables of values in `docs/metrics.md`.
fn a_guide_names_all_values(emitted: &Scrape) {
    let guide = read("docs/metrics.md");
    for label in ["outcome", "call", "step", "reason", "result"] {
        let mark = format!("\n| `{label}` |");
        let table = guide.split_once(&mark).unwrap_or_else(|| panic!("no table of {mark}")).1;
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let named: BTreeSet<_> = rows.filter_map(|row| row.split('`').nth(1)).map(str::to_owned).collect();
        assert_eq!(values(emitted, label), named, "the values of {label} in docs/metrics.md");
    }
}

#[derive(Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Panel {
    title: String,
    #[serde(default)]
    targets: Vec<Target>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    expr: String,
    legend_format: String,
}

/// The metrics that it asks for.
fn of_dashboard(emitted: &Scrape) -> BTreeSet<&'static str> {
    let dashboard: Dashboard =
        serde_json::from_str(&read("ops/grafana-dashboard.json")).expect("a dashboard");
    let mut shown = BTreeSet::new();
    for panel in &dashboard.panels {
        for Target { expr, legend_format } in &panel.targets {
            let asked = Asked::by(expr);
            asked.assert_emitted(emitted, &format!("the panel `{}`", panel.title));
            let in_legend =
                legend_format.split("{{").skip(1).filter_map(|rest| Some(rest.split_once("}}")?.0));
            for label in in_legend {
                assert!(asked.groups().any(|group| group == label), "{}: {label} in the legend", panel.title);
            }
            shown.extend(asked.names().map(metric_of));
        }
    }
    shown
}

fn metric_of(name: &str) -> &'static str {
    of(&Series { name: name.to_owned(), labels: Default::default() }).name
}

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct Annotations {
    summary: String,
    description: String,
    runbook_url: String,
}

/// They ask for what is emitted, and the documents say what they are and what to do.
fn assert_alerts_ask_for(emitted: &Scrape) {
    let rules: Rules = serde_saphyr::from_str(&read("ops/prometheus-alerts.yaml")).expect("alert rules");
    let (guide, runbook) = (read("docs/metrics.md"), read("docs/operations.md"));
    let rules: Vec<Rule> = rules.groups.into_iter().flat_map(|group| group.rules).collect();
    assert!(rules.len() >= 8);
    for Rule { alert, expr, annotations } in &rules {
        let asked = Asked::by(expr);
        asked.assert_emitted(emitted, &format!("the alert {alert}"));
        assert!(!annotations.summary.is_empty() && annotations.description.len() > 40, "{alert}");
        let anchor = format!("docs/operations.md#{}", alert.to_lowercase());
        assert!(annotations.runbook_url.ends_with(&anchor), "{alert}: {}", annotations.runbook_url);
        assert!(guide.contains(&format!("\n| `{alert}` |")), "{alert} is not in docs/metrics.md");
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert} is not in docs/operations.md");
    }
}

/// The table of [`METRICS`], in the guide and in the module's documentation.
#[test]
fn the_table_is_that_of_the_code() {
    let mut table =
        String::from("| metric | kind | unit | labels | what it is |\n| --- | --- | --- | --- | --- |\n");
    for Metric { name, kind, unit, labels, help, .. } in METRICS {
        let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, unit) = (format!("{kind:?}").to_lowercase(), unit.as_str());
        table += &format!("| `{name}` | {kind} | {unit} | {} | {help} |\n", labels.join(", "));
    }
    assert_in_document("docs/metrics.md", "metrics", table.trim_end());
    assert_in_document("src/metrics/guide.md", "metrics", table.trim_end());
}
