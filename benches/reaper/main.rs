//! What it costs to delete expired keys, and what the choices behind it are worth:
//!
//!     cargo bench --bench reaper               # all five, half an hour, 10 GB of disk
//!     cargo bench --bench reaper -- --quick    # all five, small, two minutes
//!     cargo bench --bench reaper -- backlog    # or held, steady, factor, index
//!
//! It starts PostgreSQL servers of its own.

mod backlog;
mod factor;
#[path = "../support/figures.rs"]
mod figures;
mod held;
mod index;
mod keys;
mod load;
mod steady;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use throwaway_postgres::{Server, Settings};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let named: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |name: &str| named.is_empty() || named.iter().any(|wanted| *wanted == name);
    if wanted("backlog") {
        println!("\n{}", backlog::measure(quick).await?);
    }
    if wanted("held") {
        println!("\n{}", held::measure(quick).await?);
    }
    if wanted("steady") {
        println!("\n{}", steady::measure(quick).await?);
    }
    if wanted("factor") {
        println!("\n{}", factor::measure(quick).await?);
    }
    if wanted("index") {
        println!("\n{}", index::measure(quick).await?);
    }
    Ok(())
}

/// A server with the memory of a small one in production. It ends with the value.
async fn server(settings: Settings) -> anyhow::Result<Server> {
    let settings = settings.with("shared_buffers", "1GB").with("max_wal_size", "4GB");
    Ok(tokio::task::spawn_blocking(move || throwaway_postgres::private_with(&settings)).await??)
}

/// With pgonce's schema and the business of the load.
async fn database(server: &Server, name: &str) -> anyhow::Result<PgPool> {
    let options: PgConnectOptions = server.url().parse()?;
    let any = PgPool::connect_with(options.clone()).await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&any).await?;
    any.close().await;
    let pool = PgPoolOptions::new().max_connections(20).connect_lazy_with(options.database(name));
    pgonce::migrate(&pool).await?;
    load::create_tables(&pool).await?;
    Ok(pool)
}
