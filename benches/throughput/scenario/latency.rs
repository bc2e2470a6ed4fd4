//! With a network between the application and its servers: a proxy that delays.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::business::Business;
use crate::contender::redis::{Recipe, RedisServer};
use crate::contender::{Bed, Contender, Field};
use crate::figures::{median, spread};
use crate::load::{self, Keys};
use crate::plan::Plan;
use crate::proxy::Proxy;
use crate::rounds::Rounds;
use crate::scenario::fresh;
use crate::stage::{Disk, Stage, connections};
use crate::table;

/// Those that ask a server more or less often.
const TAKING_PART: [Contender; 10] = [
    Contender::Unkeyed,
    Contender::Floor,
    Contender::ByHand,
    Contender::Redis,
    Contender::Durare,
    Contender::Execute,
    Contender::Optimistic,
    Contender::Process,
    Contender::Batch(100),
    Contender::Layer,
];

pub async fn run(plan: &Plan, field: &Field) -> anyhow::Result<String> {
    let stage = Stage::set(Disk::Work).await?;
    let contenders = field.among(&TAKING_PART);
    let mut text = String::new();
    for delay in if plan.quick { &[1][..] } else { &[0, 1][..] } {
        let delay = Duration::from_millis(*delay);
        let (through, _) = before_postgres(&stage.options, delay)?;
        let redis = stage.redis.as_ref().map(RedisServer::address);
        let redis = redis.map(|address| Proxy::to(address, delay)).transpose()?;
        let real = round_trip(&through).await?;
        for callers in if plan.quick { &[16][..] } else { &[1, 16][..] } {
            let title = format!("{} ms, {callers} at once", delay.as_millis());
            let mut beds = Vec::new();
            for contender in &contenders {
                let recipe = match &redis {
                    Some(redis) if *contender == Contender::Redis => Some(Recipe::at(redis.address()).await?),
                    _ => None,
                };
                let connections = connections(*callers);
                let bed = Bed::make(*contender, &through, connections, recipe, Business::USUAL).await?;
                let bed = std::sync::Arc::new(bed);
                load::run(&bed, None, *callers, plan.warm_up(), &Keys::fresh()).await?;
                beds.push(bed);
            }
            let rounds = Rounds::of(&title, contenders.clone(), plan.rounds, async |n| {
                fresh::measure(&stage, plan, &beds[n], *callers, Business::USUAL).await
            });
            let rounds = rounds.await?;
            text += &format!(
                "{title}; a round trip to PostgreSQL takes {real:.2} ms; {} rounds.\n\n\
                 | | per second | against no key | against by hand | p50, ms | p99, ms |\n\
                 | --- | --- | --- | --- | --- | --- |\n",
                rounds.count()
            );
            for (n, contender) in rounds.contenders.iter().enumerate() {
                text += &format!(
                    "| {} | {} | {} | {} | {:.2} | {:.2} |\n",
                    contender.title(),
                    spread(rounds.each(n, |load| load.per_second), 0),
                    table::ratio(&rounds, n, Contender::Unkeyed, |load| load.per_second),
                    table::ratio(&rounds, n, Contender::ByHand, |load| load.per_second),
                    median(rounds.each(n, |load| load.p50)),
                    median(rounds.each(n, |load| load.p99)),
                );
            }
            text.push('\n');
            for bed in beds {
                bed.close().await;
            }
        }
    }
    Ok(text)
}

/// Options that lead through a proxy.
pub fn before_postgres(
    options: &PgConnectOptions,
    delay: Duration,
) -> anyhow::Result<(PgConnectOptions, Proxy)> {
    let address: SocketAddr =
        (options.get_host(), options.get_port()).to_socket_addrs()?.next().context("the server's address")?;
    let proxy = Proxy::to(address, delay)?;
    let through = options.clone().host(&proxy.address().ip().to_string()).port(proxy.address().port());
    Ok((through, proxy))
}

/// Milliseconds of a statement that does nothing.
async fn round_trip(options: &PgConnectOptions) -> anyhow::Result<f64> {
    let mut conn: PgConnection = options.connect().await?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        sqlx::query("SELECT 1").execute(&mut conn).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    conn.close().await?;
    Ok(median(times))
}
