//! What an operator sees of one charge and its retry: the trace, and the metrics.
//!
//! ```sh
//! cargo run --example observability --all-features
//! ```
//!
//! It needs PostgreSQL's programs or Docker, and starts a server of its own, which is gone afterwards.
//!
//! The parts to copy are `telemetry.rs` and the two functions of `app.rs` that make the request's span and answer
//! `/metrics`. A real service sends its spans away with `opentelemetry-otlp`; here they stay in the process, to be printed.

mod app;
mod client;
mod telemetry;
mod tree;

use sqlx::PgPool;
use throwaway_postgres::Settings;

use crate::telemetry::Telemetry;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let telemetry = Telemetry::install()?;
    let server = throwaway_postgres::private_with(&Settings::durable())?;
    let pool = PgPool::connect(server.url()).await?;
    let app = app::new(pool.clone(), telemetry.metrics.clone()).await?;

    for (what, amount) in [
        ("A charge of 42.00.", 4200),
        ("Its answer was lost, so the client sends the same again: a replay, which runs nothing.", 4200),
        ("The same key for another amount, which is a mistake of the client's.", 9900),
    ] {
        let (trace, status) = client::charge(&app, "order-1", amount).await?;
        println!("{what}\n\n  The client got {status}. Its trace:\n");
        for line in tree::of(&telemetry.spans_of(trace)?, true) {
            println!("    {line}");
        }
        println!();
    }

    println!("What Prometheus reads at /metrics (without the buckets of the histograms):\n");
    for line in client::metrics(&app).await?.lines().filter(|line| is_worth_showing(line)) {
        println!("    {line}");
    }
    pool.close().await;
    Ok(())
}

fn is_worth_showing(line: &str) -> bool {
    !line.is_empty() && !line.starts_with('#') && !line.contains("_bucket{")
}
