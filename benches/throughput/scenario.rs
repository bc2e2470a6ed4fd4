//! What is measured.

pub mod cost;
pub mod fresh;
pub mod latency;
pub mod mixed;
pub mod replay;
pub mod statements;
pub mod storm;

use crate::contender::Field;
use crate::plan::Plan;

/// Its tables.
pub async fn run(name: &str, plan: &Plan, field: &Field) -> anyhow::Result<String> {
    match name {
        "fresh" => fresh::run(plan, field).await,
        "replay" => replay::run(plan, field).await,
        "storm" => storm::run(plan, field).await,
        "mixed" => mixed::run(plan, field).await,
        "latency" => latency::run(plan, field).await,
        "statements" => statements::run(plan, field).await,
        "cost" => cost::run(plan, field).await,
        _ => unreachable!("the plan has scenarios only"),
    }
}
