//! From the first request to the last: start, listen, and an orderly end.

use std::convert::Infallible;
use std::future::IntoFuture;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use pgonce::Idempotency;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use crate::app::app;
use crate::database::Database;
use crate::settings::Settings;

/// On this machine alone.
pub async fn listen(port: u16) -> Result<TcpListener> {
    match TcpListener::bind(("127.0.0.1", port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!(
                "port {port} is taken: set another one, for example PORT={}",
                port.wrapping_add(1).max(1024)
            )
        }
        Err(error) => bail!("cannot listen on port {port}: {error}"),
    }
}

/// Serves until a signal asks for the end. Then what has begun is finished.
pub async fn serve(
    listener: TcpListener,
    database: Database,
    settings: &Settings,
    mut signals: Signals,
) -> Result<()> {
    let (stop, stopped) = oneshot::channel::<Infallible>();
    let server = axum::serve(listener, app(database.clone(), settings))
        .with_graceful_shutdown(async { drop(stopped.await) });
    let mut server = pin!(server.into_future());

    tokio::select! {
        served = &mut server => return Ok(served?),
        never = purge(&database.idempotency) => match never {},
        () = signals.any() => info!("ending; what has begun is finished"),
    }
    drop(stop);
    // No request takes longer than the time-out. Who only holds a connection is not waited for.
    match timeout(settings.time_out + Duration::from_secs(1), server).await {
        Ok(served) => served?,
        Err(_) => {
            warn!("closing the connections that are still open");
            return Ok(());
        }
    }
    database.close().await;
    Ok(())
}

/// Deletes expired keys, every few minutes.
async fn purge(idempotency: &Idempotency) -> Infallible {
    const AT_ONCE: u32 = 1_000;
    let mut minutes = interval(Duration::from_secs(5 * 60));
    minutes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        minutes.tick().await;
        loop {
            match idempotency.purge_expired(AT_ONCE).await {
                Ok(purged) if purged == u64::from(AT_ONCE) => {}
                Ok(_) => break,
                Err(error) => {
                    warn!("cannot purge expired keys now: {error}");
                    break;
                }
            }
        }
    }
}

/// Ctrl-C, and SIGTERM, by which a service manager ends a service.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn new() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
