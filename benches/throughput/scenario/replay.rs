//! Each call with a key that was used before.

use crate::business::Business;
use crate::contender::{Contender, Field};
use crate::load::{self, Keys};
use crate::plan::Plan;
use crate::rounds::Rounds;
use crate::stage::{Disk, Stage};
use crate::table;

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let stage = Stage::set(Disk::Work).await?;
    let count = plan.known();
    let contenders = field.filter(Contender::replays);
    let mut known = Vec::new();
    for contender in &contenders {
        known.push(stage.known(*contender, count).await?);
    }
    // So that reading changes nothing any more.
    for statement in ["VACUUM ANALYZE pgonce.keys", "VACUUM ANALYZE by_hand", "CHECKPOINT"] {
        sqlx::raw_sql(statement).execute(&stage.control).await?;
    }
    let made = (count * contenders.len()) as i64;
    stage.ensure_made(Business::USUAL, made, made).await?;
    let mut text = String::new();
    for callers in if plan.quick { &[16][..] } else { &[1, 16, 64][..] } {
        let mut beds = Vec::new();
        for (contender, known) in contenders.iter().zip(&known) {
            let bed = stage.bed(*contender, *callers, Business::USUAL).await?;
            load::run(&bed, None, *callers, plan.warm_up(), &Keys::known(known.clone())).await?;
            beds.push(bed);
        }
        let title = format!("{callers} at once; {count} keys");
        let rounds = Rounds::of(&title, contenders.clone(), plan.rounds, async |n| {
            let keys = Keys::known(known[n].clone());
            load::run(&beds[n], stage.servers.as_ref(), *callers, plan.duration, &keys).await
        });
        let rounds = rounds.await?;
        let against = [(Contender::Select, "the SELECT"), (Contender::ByHand, "by hand")];
        text += &table::of_loads(&title, &rounds, &against);
        text.push('\n');
        for bed in beds {
            bed.close().await;
        }
    }
    stage.ensure_made(Business::USUAL, made, made).await?;
    Ok(text)
}
