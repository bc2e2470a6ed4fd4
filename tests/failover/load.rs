//! Clients that call without a pause, and write down what they were told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgonce::{Error, Idempotency, InFlight};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, call_until_answered, note, operation, transfer};

const CLIENTS: usize = 6;

/// What a caller was told.
#[derive(Clone, Debug)]
pub struct Answer {
    pub key: String,
    pub run: String,
    /// By the first primary.
    pub before_the_kill: bool,
}

pub struct Load {
    clients: JoinSet<()>,
    client: Client,
}

#[derive(Clone)]
struct Client {
    idempotency: Idempotency,
    progress: watch::Sender<Progress>,
    answers: Arc<Mutex<Vec<Answer>>>,
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Progress {
    Starts,
    /// There is an open transaction that its closure does not end before the kill.
    OneIsOpen,
    Killed,
    Ends,
}

impl Load {
    /// Returns when it is running: everybody had an answer or two, and one transaction is held open.
    pub async fn start(cluster: &Cluster) -> Self {
        let client = Client {
            // A hot key in flight is waited for.
            idempotency: cluster.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(30))),
            progress: watch::Sender::new(Progress::Starts),
            answers: Arc::default(),
        };
        let mut clients = JoinSet::new();
        clients.spawn(client.clone().call_slowly("slow"));
        client
            .progress
            .subscribe()
            .wait_for(|progress| *progress >= Progress::OneIsOpen)
            .await
            .expect("it sends");
        for number in 0..CLIENTS {
            clients.spawn(client.clone().call_and_call(number));
        }
        while client.answers.lock().expect("no panic").len() < 10 * CLIENTS {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Self { clients, client }
    }

    /// The primary is dead: what is answered from now on is not its answer.
    pub fn killed(&self) {
        self.client.progress.send_replace(Progress::Killed);
    }

    /// Every client ends when its last call is answered.
    pub async fn end(self) -> Vec<Answer> {
        self.client.progress.send_replace(Progress::Ends);
        self.clients.join_all().await;
        self.client.answers.lock().expect("no panic").clone()
    }
}

impl Client {
    /// Calls keys that all clients call, and keys of its own.
    async fn call_and_call(self, number: usize) {
        for round in 0.. {
            for key in [format!("hot-{round}"), format!("cold-{number}-{round}")] {
                if *self.progress.borrow() == Progress::Ends {
                    return;
                }
                let run = call_until_answered(&self.idempotency, &key).await.into_inner();
                self.write_down(key, run);
            }
        }
    }

    /// With a closure that, in its first run, is in the middle of its writes when the primary is killed.
    async fn call_slowly(self, key: &'static str) {
        loop {
            let progress = &self.progress;
            let called = self
                .idempotency
                .execute(&operation(key), async |conn| {
                    let run = note(conn, key).await?;
                    progress.send_if_modified(|now| {
                        let first = *now == Progress::Starts;
                        *now = if first { Progress::OneIsOpen } else { *now };
                        first
                    });
                    progress.subscribe().wait_for(|now| *now >= Progress::Killed).await.expect("it sends");
                    transfer(conn, key).await?;
                    Ok::<_, Error>(run)
                })
                .await;
            match called {
                Ok(outcome) => return self.write_down(key.to_owned(), outcome.into_inner()),
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn write_down(&self, key: String, run: String) {
        let before_the_kill = *self.progress.borrow() < Progress::Killed;
        self.answers.lock().expect("no panic").push(Answer { key, run, before_the_kill });
    }
}
