//! Each call with a new key.

use std::sync::Arc;

use crate::business::Business;
use crate::contender::{Bed, Contender, Field};
use crate::load::{self, Keys, Load};
use crate::plan::Plan;
use crate::rounds::Rounds;
use crate::stage::{Disk, Stage};
use crate::table;

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let mut text = String::new();
    let all: [(Disk, &[usize]); 2] = [(Disk::Work, &[1, 16, 64]), (Disk::Waits, &[16])];
    let quick: [(Disk, &[usize]); 1] = [(Disk::Work, &[16])];
    for (disk, callers) in if plan.quick { &quick[..] } else { &all[..] } {
        let stage = Stage::set(*disk).await?;
        for callers in *callers {
            let title = format!("{callers} at once; {}", disk.title());
            let contenders = field.filter(Contender::pays);
            let rounds = compare(&stage, plan, contenders, *callers, Business::USUAL, &title).await?;
            let against = [(Contender::Unkeyed, "no key"), (Contender::ByHand, "by hand")];
            text += &table::of_loads(&title, &rounds, &against);
            text.push('\n');
        }
    }
    Ok(text)
}

/// New keys for all of them, in rounds.
pub async fn compare(
    stage: &Stage,
    plan: &Plan,
    contenders: Vec<Contender>,
    callers: usize,
    business: Business,
    title: &str,
) -> anyhow::Result<Rounds<Load>> {
    let mut beds = Vec::new();
    for contender in &contenders {
        let bed = stage.bed(*contender, callers, business).await?;
        load::run(&bed, None, callers, plan.warm_up(), &Keys::fresh()).await?;
        beds.push(bed);
    }
    let rounds = Rounds::of(title, contenders, plan.rounds, async |n| {
        measure(stage, plan, &beds[n], callers, business).await
    });
    let rounds = rounds.await?;
    for bed in beds {
        bed.close().await;
    }
    Ok(rounds)
}

/// And each payment was made once, and each key kept.
pub async fn measure(
    stage: &Stage,
    plan: &Plan,
    bed: &Arc<Bed>,
    callers: usize,
    business: Business,
) -> anyhow::Result<Load> {
    stage.forget_all().await?;
    // TRUNCATE makes each session forget what it knew of the tables, plans included; that is no part of a payment.
    let first = load::run(bed, None, callers, plan.warm_up(), &Keys::fresh()).await?;
    let load = load::run(bed, stage.servers.as_ref(), callers, plan.duration, &Keys::fresh()).await?;
    let payments = first.executed + load.executed;
    stage.ensure_made(business, payments, if bed.contender.has_keys() { payments } else { 0 }).await?;
    Ok(load)
}
