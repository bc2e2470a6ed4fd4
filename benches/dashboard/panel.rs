//! The panels of the dashboard, and what Prometheus makes of their expressions.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::prometheus::Prometheus;

#[derive(Deserialize)]
struct Dashboard {
    panels: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    pub title: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    field_config: FieldConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    expr: String,
    legend_format: String,
}

#[derive(Default, Deserialize)]
struct FieldConfig {
    defaults: Defaults,
}

#[derive(Default, Deserialize)]
struct Defaults {
    unit: String,
}

/// One line of a panel: seconds since the beginning, and values.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Panel {
    /// Those with lines in them.
    pub fn of_dashboard(path: &Path) -> anyhow::Result<Vec<Self>> {
        let dashboard: Dashboard = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        Ok(dashboard.panels.into_iter().filter(|panel| panel.kind == "timeseries").collect())
    }

    pub fn unit(&self) -> &str {
        &self.field_config.defaults.unit
    }

    pub async fn lines(&self, prometheus: &Prometheus, from: f64, to: f64) -> anyhow::Result<Vec<Line>> {
        let mut lines = Vec::new();
        for Target { expr, legend_format } in &self.targets {
            // As Grafana does, for a scrape each second.
            let expression = expr.replace("$__rate_interval", "5s").replace("$job", ".*");
            for series in prometheus.range(&expression, from, to).await? {
                lines.push(Line {
                    name: name(legend_format, &series["metric"]),
                    points: points(&series, from),
                });
            }
        }
        Ok(lines)
    }
}

fn name(format: &str, labels: &Value) -> String {
    let mut name = format.to_owned();
    for (label, value) in labels.as_object().into_iter().flatten() {
        name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
    }
    name
}

fn points(series: &Value, from: f64) -> Vec<(f64, f64)> {
    let values = series["values"].as_array().into_iter().flatten();
    let point = |value: &Value| Some((value[0].as_f64()? - from, value[1].as_str()?.parse().ok()?));
    values.filter_map(point).filter(|(_, value): &(f64, f64)| value.is_finite()).collect()
}
