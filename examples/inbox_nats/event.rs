//! What is published: payment events.

use serde::{Deserialize, Serialize};

use crate::options::Options;

pub const ACCOUNTS: i64 = 500;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// The publisher's own: whoever publishes the event again, has the same one.
    pub id: String,
    pub account: i64,
    pub amount: i64,
}

impl Event {
    /// The same ones for the same seed.
    pub fn all(options: &Options) -> Vec<Self> {
        let mut random = fastrand::Rng::with_seed(options.seed);
        (1..=options.events)
            .map(|number| Self {
                id: format!("evt_{number}"),
                account: random.i64(1..=ACCOUNTS),
                amount: random.i64(1..=100_000),
            })
            .collect()
    }
}
