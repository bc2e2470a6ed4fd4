//! The consumer processes. Each of them is killed again and again, and replaced.

use std::env;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use futures_util::future::try_join_all;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::consumer;
use crate::options::Options;

pub struct Crew<'a> {
    options: &'a Options,
    database_url: &'a str,
    nats_url: &'a str,
    duplicates: AtomicUsize,
    kills: AtomicUsize,
}

impl<'a> Crew<'a> {
    pub fn new(options: &'a Options, database_url: &'a str, nats_url: &'a str) -> Self {
        let (duplicates, kills) = Default::default();
        Self { options, database_url, nats_url, duplicates, kills }
    }

    /// As the consumers have told so far.
    pub fn duplicates(&self) -> usize {
        self.duplicates.load(Relaxed)
    }

    pub fn kills(&self) -> usize {
        self.kills.load(Relaxed)
    }

    /// Until it is over.
    pub async fn work(&self, over: &watch::Receiver<bool>) -> Result<()> {
        let mut random = Rng::with_seed(self.options.seed);
        let places = (0..self.options.consumers).map(|place| self.fill(place, random.fork(), over.clone()));
        try_join_all(places).await.map(drop)
    }

    /// One consumer after the other.
    async fn fill(&self, place: usize, mut random: Rng, mut over: watch::Receiver<bool>) -> Result<()> {
        let how = match self.options {
            Options { with_inbox: false, .. } => consumer::WITHOUT_INBOX,
            // One of them has no need of batches.
            _ if place == 0 && self.options.consumers > 1 => consumer::EACH,
            _ => consumer::BATCHES,
        };
        loop {
            let mut consumer = Consumer::start(how, self.database_url, self.nats_url)?;
            // In batches and not in seconds, so that a slow machine gets its work done as well.
            let batches = random.u32(1..=if how == consumer::EACH { 300 } else { 8 });
            let is_over = tokio::select! {
                lived = self.live(&mut consumer, batches, &mut random) => lived.map(|()| false)?,
                _ = over.wait_for(|over| *over) => true,
            };
            consumer.kill().await?;
            while let Some(duplicates) = consumer.next_batch().await? {
                self.duplicates.fetch_add(duplicates, Relaxed);
            }
            if is_over {
                return Ok(());
            }
            self.kills.fetch_add(1, Relaxed);
        }
    }

    /// So many batches, and perhaps a part of the next one.
    async fn live(&self, consumer: &mut Consumer, batches: u32, random: &mut Rng) -> Result<()> {
        let mut took = Duration::ZERO;
        for _ in 0..batches {
            let started = Instant::now();
            let duplicates = consumer.next_batch().await?.context("a consumer ended by itself")?;
            self.duplicates.fetch_add(duplicates, Relaxed);
            took = started.elapsed();
        }
        // Right now it has committed and is about to acknowledge. Later it is anywhere.
        if random.bool() {
            sleep(took.mul_f64(random.f64())).await;
        }
        Ok(())
    }
}

struct Consumer {
    process: Child,
    committed: Lines<BufReader<ChildStdout>>,
}

impl Consumer {
    fn start(how: &str, database_url: &str, nats_url: &str) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args([consumer::ROLE, how])
            .envs([("DATABASE_URL", database_url), ("NATS_URL", nats_url)])
            // It ends when the other end is closed.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = process.stdout.take().context("a consumer has no stdout")?;
        Ok(Self { process, committed: BufReader::new(stdout).lines() })
    }

    /// The number of duplicates in it. None when the consumer has ended.
    async fn next_batch(&mut self) -> Result<Option<usize>> {
        let line = self.committed.next_line().await?;
        // Who is killed may not have finished its line.
        Ok(line.and_then(|line| line.parse().ok()))
    }

    /// SIGKILL: no handler, no destructor, no goodbye to anybody.
    async fn kill(&mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}
