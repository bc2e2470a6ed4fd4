//! What a payment takes that no clock has to measure: messages, WAL, rows.

use std::time::Duration;

use anyhow::ensure;
use sqlx::PgPool;

use crate::budget;
use crate::business::{Business, Payment, Payments};
use crate::contender::{Bed, Contender, Field};
use crate::plan::Plan;
use crate::scenario::latency::before_postgres;
use crate::stage::{Disk, Stage};

/// With a key that is new, or was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Fresh,
    Replay,
}

/// Of one payment.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub contender: Contender,
    pub form: Form,
    /// How often PostgreSQL is asked and its answer waited for.
    pub messages: f64,
    /// Bytes.
    pub wal: f64,
    /// Versions of rows that are written.
    pub rows: f64,
    /// And those of them that VACUUM has to take away.
    pub dead: f64,
}

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let stage = Stage::set(Disk::Work).await?;
    let mut costs = Vec::new();
    for contender in field.filter(|_| true) {
        if contender.pays() {
            costs.push(fresh(&stage, contender).await?);
        }
        if contender.replays() {
            costs.push(replay(&stage, contender).await?);
        }
    }
    let text = table(&costs);
    if let Err(error) = budget::check(&costs) {
        if !plan.write {
            println!("{text}");
            return Err(error);
        }
        eprintln!("{error}");
    }
    Ok(text)
}

async fn fresh(stage: &Stage, contender: Contender) -> anyhow::Result<Cost> {
    stage.forget_all().await?;
    let mut payments = Payments::of(0, 1);
    let size = contender.batch();
    let batch = || (0..size).map(|_| payments.new_one()).collect();
    measure(stage, contender, Form::Fresh, std::iter::repeat_with(batch)).await
}

async fn replay(stage: &Stage, contender: Contender) -> anyhow::Result<Cost> {
    stage.forget_all().await?;
    let size = contender.batch();
    let known = stage.known(contender, size.max(100)).await?;
    // So that reading changes nothing any more.
    for statement in ["VACUUM ANALYZE pgonce.keys", "VACUUM ANALYZE by_hand", "CHECKPOINT"] {
        sqlx::raw_sql(statement).execute(&stage.control).await?;
    }
    let payments: Vec<Payment> = known.iter().map(|(payment, _)| *payment).collect();
    let batches = payments.chunks(size).map(<[_]>::to_vec).cycle();
    measure(stage, contender, Form::Replay, batches).await
}

/// On one connection that is warmed up, so that nothing but the calls is counted.
async fn measure(
    stage: &Stage,
    contender: Contender,
    form: Form,
    mut batches: impl Iterator<Item = Vec<Payment>>,
) -> anyhow::Result<Cost> {
    let size = contender.batch();
    let (warm_up, calls) = if size == 1 { (30, 200) } else { (5, 10) };
    stage.come_to_rest().await?;
    let before = Rows::now(&stage.control).await?;
    let (through, proxy) = before_postgres(&stage.options, Duration::ZERO)?;
    let recipe = stage.recipe(contender).await?;
    let bed = Bed::make(contender, &through, 1, recipe, Business::USUAL).await?;
    for _ in 0..warm_up {
        bed.call(&batches.next().expect("they do not end")).await?;
    }
    let (messages, wal) = (proxy.round_trips(), wal(&stage.control).await?);
    for _ in 0..calls {
        let answer = bed.call(&batches.next().expect("they do not end")).await?;
        let right = if form == Form::Fresh { answer.executed } else { answer.replayed };
        ensure!(right == size, "{contender:?}, {form:?}: {answer:?}");
    }
    let (messages, wal) = (proxy.round_trips() - messages, self::wal(&stage.control).await? - wal);
    bed.close().await;
    stage.come_to_rest().await?;
    let after = Rows::now(&stage.control).await?;
    let (payments, all) = ((calls * size) as f64, ((warm_up + calls) * size) as f64);
    Ok(Cost {
        contender,
        form,
        messages: messages as f64 / payments,
        wal: wal / payments,
        rows: (after.written - before.written) / all,
        dead: (after.dead - before.dead) / all,
    })
}

async fn wal(control: &PgPool) -> anyhow::Result<f64> {
    let position = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
    Ok(sqlx::query_scalar(position).fetch_one(control).await?)
}

/// Of all tables, since the server was started.
struct Rows {
    written: f64,
    dead: f64,
}

impl Rows {
    /// A session tells what it did when it ends; this one, now.
    async fn now(control: &PgPool) -> anyhow::Result<Self> {
        sqlx::query("SELECT pg_stat_force_next_flush()").execute(control).await?;
        let (written, dead) = sqlx::query_as(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::float8, sum(n_tup_upd + n_tup_del)::float8
             FROM pg_stat_user_tables",
        )
        .fetch_one(control)
        .await?;
        Ok(Self { written, dead })
    }
}

fn table(costs: &[Cost]) -> String {
    let mut text = "Of one payment, one after the other on one connection; `full_page_writes = off`. The business's own \
        part is that of the first row.\n\n\
        | | messages | WAL, bytes | row versions written | of these dead | a replay: messages | WAL, bytes |\n\
        | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let mut contenders: Vec<Contender> = costs.iter().map(|cost| cost.contender).collect();
    contenders.dedup();
    for contender in contenders {
        let of = |form| costs.iter().find(|cost| cost.contender == contender && cost.form == form);
        text += &format!("| {} |", contender.title());
        text += &match of(Form::Fresh) {
            Some(Cost { messages, wal, rows, dead, .. }) => {
                format!(" {} | {wal:.0} | {} | {} |", short(*messages), short(*rows), short(*dead))
            }
            None => " | | | |".into(),
        };
        text += &match of(Form::Replay) {
            Some(Cost { messages, wal, .. }) => format!(" {} | {wal:.0} |\n", short(*messages)),
            None => " | |\n".into(),
        };
    }
    text
}

/// Whole numbers as such.
fn short(number: f64) -> String {
    format!("{}", (number * 100.0).round() / 100.0)
}
