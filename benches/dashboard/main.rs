//! Draws the dashboard's panels from a real load run: `docs/dashboard.svg`.
//!
//!     cargo bench --bench dashboard --all-features
//!
//! A minute of load on a PostgreSQL server of its own, with trouble in it; a Prometheus that scrapes each second and evaluates
//! the expressions of `ops/grafana-dashboard.json`, and the alert rules. It needs the program `prometheus` (Debian has a package of
//! this name; `PROMETHEUS_BIN` may name another one).

mod load;
mod panel;
mod picture;
mod prometheus;

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use pgonce::metrics::{DURATION_BUCKETS, SIZE_BUCKETS};
use throwaway_postgres::Settings;
use tokio::net::TcpListener;

use crate::panel::Panel;
use crate::prometheus::Prometheus;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let port = serve(install()?).await?;
    let prometheus = Prometheus::start(port, &root.join("ops/prometheus-alerts.yaml"))?;
    let server =
        tokio::task::spawn_blocking(|| throwaway_postgres::private_with(&Settings::durable())).await??;

    // So that every series has a first value.
    prometheus.answers().await?;
    let begun = prometheus::now();
    load::run(&server).await?;
    let ended = prometheus::now();

    let mut panels = Vec::new();
    for panel in Panel::of_dashboard(&root.join("ops/grafana-dashboard.json"))? {
        panels.push((panel.lines(&prometheus, begun, ended).await?, panel));
    }
    for (lines, panel) in &panels {
        let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
        println!("{}: {}", panel.title, if names.is_empty() { "nothing".into() } else { names.join(", ") });
    }
    picture::draw(&root.join("docs/dashboard.svg"), &panels, ended - begun)?;
    println!("alerts that are pending or fire: {}", prometheus.alerts().await?.join(", "));
    Ok(())
}

fn install() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".into()), DURATION_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_size_bytes".into()), SIZE_BUCKETS)?
        .install_recorder()?;
    pgonce::metrics::describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            upkeep.run_upkeep();
        }
    });
    Ok(handle)
}

async fn serve(handle: PrometheusHandle) -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let app = Router::new().route("/metrics", get(async move || handle.render()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(port)
}
