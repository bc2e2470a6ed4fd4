//! Calls of which one in a hundred is a retry; and, the other way round, of which one in a hundred is none.

use crate::business::Business;
use crate::contender::{Contender, Field};
use crate::load::{self, Keys};
use crate::plan::Plan;
use crate::rounds::Rounds;
use crate::stage::{Disk, Stage};
use crate::table;

const CALLERS: usize = 16;

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let stage = Stage::set(Disk::Work).await?;
    let count = plan.known();
    let contenders = field.filter(|one| one.replays() && one.pays() && one.batch() == 1);
    let (mut known, mut beds) = (Vec::new(), Vec::new());
    let mut made = 0;
    for contender in &contenders {
        let keys = stage.known(*contender, count).await?;
        let bed = stage.bed(*contender, CALLERS, Business::USUAL).await?;
        let warm_up = Keys::mixed(keys.clone(), 50);
        made += count as i64 + load::run(&bed, None, CALLERS, plan.warm_up(), &warm_up).await?.executed;
        known.push(keys);
        beds.push(bed);
    }
    let mut text = String::new();
    for fresh in [99, 1] {
        let title = format!("{fresh} new keys to {} retries; {CALLERS} at once", 100 - fresh);
        let rounds = Rounds::of(&title, contenders.clone(), plan.rounds, async |n| {
            let keys = Keys::mixed(known[n].clone(), fresh);
            load::run(&beds[n], stage.servers.as_ref(), CALLERS, plan.duration, &keys).await
        });
        let rounds = rounds.await?;
        made += rounds.executed();
        text += &table::of_loads(&title, &rounds, &[(Contender::ByHand, "by hand")]);
        text.push('\n');
    }
    stage.ensure_made(Business::USUAL, made, made).await?;
    Ok(text)
}
