//! What a key costs beside more or fewer statements of the business itself.

use std::time::Duration;

use super::fresh;
use crate::business::Business;
use crate::contender::{Contender, Field};
use crate::figures::{median, spread};
use crate::plan::Plan;
use crate::stage::{Disk, Stage};

const CALLERS: usize = 16;

/// Those whose lines are worth a picture.
pub const SHOWN: [Contender; 6] = [
    Contender::Unkeyed,
    Contender::Floor,
    Contender::ByHand,
    Contender::Execute,
    Contender::Optimistic,
    Contender::Process,
];

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let contenders = field.among(&SHOWN);
    let mut text = format!(
        "{CALLERS} at once; {}; {} rounds. Throughput against no key, and microseconds on a processor (client's and \
         servers') that a key adds to the payment.\n\n| statements | no key, per second |",
        Disk::Work.title(),
        plan.rounds
    );
    let keyed: Vec<Contender> = contenders.iter().copied().filter(|one| one.has_keys()).collect();
    for contender in &keyed {
        text += &format!(" {} | µs |", contender.title());
    }
    text += &format!("\n| --- | --- |{}\n", " --- | --- |".repeat(keyed.len()));
    let stage = Stage::set(Disk::Work).await?;
    for statements in if plan.quick { &[0, 20][..] } else { &[0, 2, 5, 10, 20][..] } {
        let statements = *statements;
        let business = Business { statements, pause: Duration::ZERO };
        let title = format!("{statements} statements");
        let rounds = fresh::compare(&stage, plan, contenders.clone(), CALLERS, business, &title).await?;
        let place = |wanted| rounds.contenders.iter().position(|one| *one == wanted);
        let Some(unkeyed) = place(Contender::Unkeyed) else { anyhow::bail!("against no key, or nothing") };
        text += &format!("| {statements} | {:.0} |", median(rounds.each(unkeyed, |load| load.per_second)));
        for contender in &keyed {
            let n = place(*contender).expect("it took part");
            let ratios = rounds.against(n, Contender::Unkeyed, |load| load.per_second).expect("it took part");
            let computed = |n| {
                median(rounds.each(n, |load| load.client.zip(load.servers).map_or(f64::NAN, |(a, b)| a + b)))
            };
            let more = computed(n) - computed(unkeyed);
            let more = if more.is_nan() { "–".into() } else { format!("{more:.0}") };
            text += &format!(" {} | {more} |", spread(ratios, 2));
        }
        text.push('\n');
    }
    Ok(text)
}
