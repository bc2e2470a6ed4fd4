//! Where contenders meet: a PostgreSQL server and a Redis, with nobody else on them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use throwaway_postgres::{Server, Settings};

use crate::business::{self, Business, Payments};
use crate::contender::redis::{Recipe, RedisServer};
use crate::contender::{self, Bed, Contender};
use crate::cpu::Servers;
use crate::load::Known;

/// How the server treats a COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Nothing waits for the disk, so that only the work counts.
    Work,
    /// A COMMIT waits for the disk of this machine.
    Waits,
}

impl Disk {
    pub fn title(self) -> &'static str {
        match self {
            Self::Work => "nothing waits for the disk (`fsync = off`)",
            Self::Waits => "a COMMIT waits for the disk",
        }
    }
}

pub struct Stage {
    pub options: PgConnectOptions,
    /// For everything that is not measured.
    pub control: PgPool,
    pub redis: Option<RedisServer>,
    pub servers: Option<Servers>,
    _server: Server,
}

/// Connections of a bed: one for each caller, but no more than an application would have.
pub fn connections(callers: usize) -> u32 {
    callers.min(16) as u32
}

impl Stage {
    /// Its own server also where DATABASE_URL is set: what else runs there would be measured, too.
    pub async fn set(disk: Disk) -> anyhow::Result<Self> {
        let settings = match disk {
            Disk::Work => Settings::fast(),
            Disk::Waits => Settings::durable(),
        };
        // What comes now and then would fall on some rounds and not on others.
        let settings = settings
            .with("autovacuum", "off")
            .with("checkpoint_timeout", "1h")
            .with("max_wal_size", "8GB")
            .with("shared_buffers", "256MB")
            .with("max_connections", "500");
        let server =
            tokio::task::spawn_blocking(move || throwaway_postgres::private_with(&settings)).await??;
        let options: PgConnectOptions = server.url().parse()?;
        let options = options.ssl_mode(PgSslMode::Disable);
        let control = PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        business::create_tables(&control).await?;
        let redis = RedisServer::start()?;
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&control).await?;
        let servers = Servers::of(backend, redis.as_ref().map(RedisServer::process));
        Ok(Self { options, control, redis, servers, _server: server })
    }

    pub async fn bed(
        &self,
        contender: Contender,
        callers: usize,
        business: Business,
    ) -> anyhow::Result<Arc<Bed>> {
        let recipe = self.recipe(contender).await?;
        Ok(Arc::new(Bed::make(contender, &self.options, connections(callers), recipe, business).await?))
    }

    /// For the contender that needs one.
    pub async fn recipe(&self, contender: Contender) -> anyhow::Result<Option<Recipe>> {
        match &self.redis {
            Some(redis) if contender == Contender::Redis => Ok(Some(Recipe::at(redis.address()).await?)),
            _ => Ok(None),
        }
    }

    pub async fn forget_all(&self) -> anyhow::Result<()> {
        if let Some(redis) = &self.redis {
            redis.forget_all().await?;
        }
        contender::forget_all(&self.control).await?;
        business::forget_all(&self.control).await
    }

    /// That so many payments were made since everything was forgotten, and so many keys are remembered.
    pub async fn ensure_made(&self, business: Business, payments: i64, keys: i64) -> anyhow::Result<()> {
        business.ensure_made(&self.control, payments).await?;
        let mut found = contender::count_keys(&self.control).await?;
        if let Some(redis) = &self.redis {
            found += redis.count_keys().await?;
        }
        ensure!(found == keys, "{payments} payments left {found} keys, and not {keys}");
        Ok(())
    }

    /// Payments that the contender has made, to be made again.
    pub async fn known(&self, contender: Contender, count: usize) -> anyhow::Result<Arc<[Known]>> {
        let bed = self.bed(contender.key_maker(), 1, Business::USUAL).await?;
        let mut payments = Payments::of(0, 1);
        let mut known = Vec::new();
        let size = bed.contender.batch();
        for _ in 0..count / size {
            let batch: Vec<_> = (0..size).map(|_| payments.new_one()).collect();
            let answer = bed.call(&batch).await?;
            ensure!(answer.executed == size, "{contender:?}: new keys came to {answer:?}");
            // An inbox replays no receipt.
            let receipt = answer.receipt.filter(|_| contender != Contender::Process);
            known.extend(batch.into_iter().map(|payment| (payment, receipt.clone())));
        }
        bed.close().await;
        Ok(known.into())
    }

    /// Waits until no session but this one is at work.
    pub async fn come_to_rest(&self) -> anyhow::Result<()> {
        let others = "SELECT count(*) FROM pg_stat_activity
                      WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        while sqlx::query_scalar::<_, i64>(others).fetch_one(&self.control).await? > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}
