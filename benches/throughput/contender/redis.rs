//! The recipe with Redis, and a server for it: a lock by `SET NX PX`, the transaction, the response with an expiry, the
//! lock deleted.
//!
//! Written as well as it can be: one round trip before the transaction and one after it. What it cannot do is to let the
//! two stores commit together.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use redis::aio::MultiplexedConnection;
use redis::{Client, pipe};
use serde::{Deserialize, Serialize};

use super::by_hand::fingerprint;
use super::{Answer, Bed};
use crate::business::{Payment, Receipt};

/// Longer than any transaction here. What takes longer runs twice.
const LOCK: Duration = Duration::from_secs(60);
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// All callers share it, as the client's documentation recommends.
#[derive(Clone)]
pub struct Recipe {
    connection: MultiplexedConnection,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    fingerprint: Vec<u8>,
    receipt: Receipt,
}

pub async fn call(bed: &Bed, payment: &Payment) -> anyhow::Result<Answer> {
    let mut redis = bed.redis.as_ref().context("Redis")?.connection.clone();
    let fingerprint = fingerprint(&payment.request)?;
    let key = format!("{}/{}", bed.scope, payment.id);
    let (lock, response) = (format!("lock:{key}"), format!("response:{key}"));
    // The response is looked for once the lock is had: whoever had it before may have stored one.
    let mut claim = pipe();
    claim.cmd("SET").arg(&lock).arg(1).arg("NX").arg("PX").arg(LOCK.as_millis() as u64);
    claim.cmd("GET").arg(&response);
    loop {
        let (locked, stored): (Option<String>, Option<Vec<u8>>) = claim.query_async(&mut redis).await?;
        if let Some(stored) = stored {
            // A lock that was set beside it does no harm, and ends by itself.
            let stored: Stored = serde_json::from_slice(&stored)?;
            ensure!(stored.fingerprint == fingerprint, "the key was used for something else");
            return Ok(Answer::replayed(Some(stored.receipt)));
        }
        if locked.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut transaction = bed.pool.begin().await?;
    let receipt = bed.business.carry_out(&mut transaction, &payment.request).await?;
    transaction.commit().await?;
    // A crash here, and the retry pays once more.
    let stored = serde_json::to_vec(&Stored { fingerprint, receipt: receipt.clone() })?;
    let mut finish = pipe();
    finish.atomic();
    finish.cmd("SET").arg(&response).arg(stored).arg("PX").arg(RETENTION.as_millis() as u64).ignore();
    finish.cmd("DEL").arg(&lock).ignore();
    let () = finish.query_async(&mut redis).await?;
    Ok(Answer::executed(receipt))
}

/// A server that ends with this value, in a folder of its own. By TCP, as PostgreSQL's.
pub struct RedisServer {
    process: Child,
    folder: PathBuf,
    address: SocketAddr,
}

impl RedisServer {
    /// Starts `$REDIS_SERVER_BIN`, or the `redis-server` of the path. None where there is none.
    pub fn start() -> anyhow::Result<Option<Self>> {
        let program = std::env::var_os("REDIS_SERVER_BIN").unwrap_or_else(|| "redis-server".into());
        let folder = std::env::temp_dir().join(format!("pgonce-throughput-redis-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        // A port that was free a moment ago.
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        // It keeps nothing on the disk: the fastest that Redis is, and nobody's server that a retry depends on.
        let process = Command::new(&program)
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--loglevel", "warning"])
            .args(["--dir".as_ref(), folder.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let process = match process {
            Ok(process) => process,
            Err(error) => {
                fs::remove_dir_all(&folder)?;
                return match error.kind() {
                    ErrorKind::NotFound => Ok(None),
                    _ => Err(error).with_context(|| program.display().to_string()),
                };
            }
        };
        let mut server = Self { process, folder, address };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(server.process.try_wait()?.is_none(), "redis-server ended at once");
            ensure!(begun.elapsed() < Duration::from_secs(20), "redis-server does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Some(server))
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn process(&self) -> u32 {
        self.process.id()
    }

    pub async fn forget_all(&self) -> anyhow::Result<()> {
        let mut connection = connect(self.address).await?;
        let () = redis::cmd("FLUSHDB").query_async(&mut connection).await?;
        Ok(())
    }

    /// Responses, as of keys.
    pub async fn count_keys(&self) -> anyhow::Result<i64> {
        let mut connection = connect(self.address).await?;
        let keys: Vec<String> = redis::cmd("KEYS").arg("response:*").query_async(&mut connection).await?;
        Ok(keys.len() as i64)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Recipe {
    /// By an address that leads to the server.
    pub async fn at(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { connection: connect(address).await? })
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<MultiplexedConnection> {
    Ok(Client::open(format!("redis://{address}"))?.get_multiplexed_async_connection().await?)
}
