//! In place of `durare.rs` where there is no durare: everywhere but in `benches/rivals`.

use anyhow::bail;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use super::{Answer, Bed};
use crate::business::Payment;

pub struct Durare;

impl Durare {
    pub async fn at(_: &PgConnectOptions, _: u32) -> anyhow::Result<Self> {
        bail!("without durare")
    }

    pub async fn close(&self) {}
}

pub async fn call(_: &Bed, _: &Payment) -> anyhow::Result<Answer> {
    bail!("without durare")
}

pub async fn forget_all(_: &PgPool) -> anyhow::Result<()> {
    Ok(())
}

pub async fn count_keys(_: &PgPool) -> anyhow::Result<i64> {
    Ok(0)
}
