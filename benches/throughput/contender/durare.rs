//! durare's transactional step: the writes and the step's checkpoint commit together, and the workflow's id is the key.

use std::sync::Arc;

use anyhow::{Context, anyhow};
use durare::{DurableContext, DurableEngine, PostgresProvider, WorkflowOptions, params};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgPool};
use sqlx_of_durare::postgres::{PgPool as Pool, PgPoolOptions};

use super::{Answer, Bed};
use crate::business::{Payment, Receipt, Request};

pub struct Durare {
    engine: DurableEngine,
    pool: Pool,
}

impl Durare {
    /// With so many connections, and one more that listens.
    pub async fn at(options: &PgConnectOptions, connections: u32) -> anyhow::Result<Self> {
        let connections = connections + 1;
        let pool = PgPoolOptions::new().max_connections(connections).min_connections(connections);
        let pool = pool.connect(options.to_url_lossy().as_str()).await?;
        let provider = PostgresProvider::from_pool_with_schema(pool.clone(), "dbos")?;
        let mut engine = DurableEngine::new(Arc::new(provider)).await?;
        engine.register("pay", pay);
        Ok(Self { engine, pool })
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// The usual business, whatever the bed's is.
async fn pay(context: DurableContext, request: Request) -> durare::Result<Receipt> {
    let Request { account, amount } = request;
    context
        .transaction("pay", move |tx| {
            Box::pin(async move {
                let update = "UPDATE public.accounts SET balance = balance + ? WHERE id = ?";
                tx.execute(update, &params![amount, account]).await?;
                let insert = "INSERT INTO public.ledger (account, amount) VALUES (?, ?) RETURNING id";
                let entry = tx.query_one(insert, &params![account, amount]).await?.get::<i64>("id");
                Ok(Receipt { entry: Some(entry), account, amount })
            })
        })
        .await
}

/// Whether it ran now or before, durare does not say.
pub async fn call(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let engine = &bed.durare.as_ref().context("durare")?.engine;
    let options = WorkflowOptions::with_id(format!("{}/{}", bed.scope, payment.id));
    let run = engine.start::<Request, Receipt>("pay", payment.request, options).await?;
    Ok(Answer::executed(run.result().await.map_err(|error| anyhow!(error))?))
}

pub async fn forget_all(pool: &PgPool) -> anyhow::Result<()> {
    if exists(pool).await? {
        sqlx::raw_sql("TRUNCATE dbos.workflow_status CASCADE").execute(pool).await?;
    }
    Ok(())
}

pub async fn count_keys(pool: &PgPool) -> anyhow::Result<i64> {
    if !exists(pool).await? {
        return Ok(0);
    }
    let count = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'";
    Ok(sqlx::query_scalar(count).fetch_one(pool).await?)
}

async fn exists(pool: &PgPool) -> anyhow::Result<bool> {
    let exists = "SELECT to_regclass('dbos.workflow_status') IS NOT NULL";
    Ok(sqlx::query_scalar(exists).fetch_one(pool).await?)
}
