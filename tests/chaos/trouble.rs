//! Makes the trouble that is planned, until the time is over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use pgonce::testing::{Fault, Message, Proxy, Side};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use throwaway_postgres::Server;
use tokio::time::{Instant, sleep, timeout};

use crate::crew::Crew;
use crate::plan::{self, Blow, Disturbance, Place};

/// How often each kind of trouble was made.
pub type Tally = Mutex<BTreeMap<&'static str, u64>>;

fn count(tally: &Tally, what: &'static str, times: u64) {
    *tally.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += times;
}

/// Makes trouble for so long. Afterwards the server is up and the network is well.
pub async fn make(
    seed: u64,
    length: Duration,
    crew: &Crew,
    server: Server,
    tally: &Tally,
) -> anyhow::Result<Server> {
    let end = Instant::now() + length;
    let network =
        crew.proxies.iter().enumerate().map(|(client, proxy)| disturb(seed, client, proxy, end, tally));
    let (server, _) = tokio::join!(strike(seed, crew, server, end, tally), join_all(network));
    server
}

/// Kills, terminates and restarts.
async fn strike(
    seed: u64,
    crew: &Crew,
    mut server: Server,
    end: Instant,
    tally: &Tally,
) -> anyhow::Result<Server> {
    let options: PgConnectOptions = server.url().parse().expect("the server's url");
    for (pause, blow) in plan::blows(seed) {
        sleep(pause).await;
        if Instant::now() > end {
            break;
        }
        match blow {
            Blow::Kill(client) => {
                crew.kill(client).await?;
                count(tally, "clients killed", 1);
            }
            Blow::Terminate(which) => {
                let terminated = terminate(&options, which).await?;
                count(tally, "backends terminated", terminated);
            }
            Blow::Restart => {
                server = restart(server).await?;
                count(tally, "server crashes", 1);
            }
        }
    }
    Ok(server)
}

/// Terminates up to three sessions of clients, those in a transaction first.
async fn terminate(server: &PgConnectOptions, which: i32) -> Result<u64, sqlx::Error> {
    let mut conn = server.connect().await?;
    let terminated = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE application_name LIKE 'client %' ORDER BY state = 'idle', hashint4(pid # $1) LIMIT 3",
    )
    .bind(which)
    .execute(&mut conn)
    .await?;
    conn.close().await?;
    Ok(terminated.rows_affected())
}

async fn restart(mut server: Server) -> anyhow::Result<Server> {
    let restarted = tokio::task::spawn_blocking(move || {
        server.stop_immediately()?;
        server.start_again()?;
        Ok(server)
    });
    restarted.await?
}

/// Disturbs the connections of one client.
async fn disturb(seed: u64, client: usize, proxy: &Proxy, end: Instant, tally: &Tally) {
    for Disturbance { pause, fault, edge, place, hold } in plan::disturbances(seed, client as u64) {
        sleep(pause).await;
        if Instant::now() > end {
            break;
        }
        let hits = proxy.hits();
        proxy.arm(fault, edge, matches(place));
        // The client may just have been killed, and be silent.
        if timeout(Duration::from_secs(3), proxy.hit(hits + 1)).await.is_ok() {
            count(tally, name(fault), 1);
            let lasts = !matches!(fault, Fault::Cut | Fault::Delay(_));
            sleep(if lasts { hold } else { Duration::ZERO }).await;
        }
        proxy.heal();
        proxy.forget();
    }
}

fn matches(place: Place) -> impl Fn(&Message) -> bool + Send + 'static {
    let seen = Arc::new(AtomicU64::new(0));
    move |message| match place {
        Place::Commit => message.side == Side::Client && message.label == "Query: COMMIT",
        Place::CommitsAnswer => message.side == Side::Server && message.label == "CommandComplete: COMMIT",
        Place::Anywhere(number) => seen.fetch_add(1, SeqCst) == number,
    }
}

pub fn name(fault: Fault) -> &'static str {
    match fault {
        Fault::Cut => "connections cut",
        Fault::Outage => "outages",
        Fault::BlackHole => "black holes",
        Fault::Stall => "stalls",
        Fault::Delay(_) => "delays",
        _ => "other faults",
    }
}
