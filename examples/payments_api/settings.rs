//! What can be set from outside: environment variables.

use std::env::{self, VarError};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};

pub struct Settings {
    /// `PORT`: 3000 unless it is set; 0 for any that is free.
    pub port: u16,
    /// `CARD_NETWORK_MILLIS`: how long the pretend card network takes. A second, so that a duplicate can be sent meanwhile by
    /// hand.
    pub card_network: Duration,
    /// `TIME_OUT_MILLIS`: how long a request may take.
    pub time_out: Duration,
}

impl Settings {
    pub fn from_environment() -> Result<Self> {
        Ok(Self {
            port: variable("PORT", 3000)?,
            card_network: Duration::from_millis(variable("CARD_NETWORK_MILLIS", 1_000)?),
            time_out: Duration::from_millis(variable("TIME_OUT_MILLIS", 10_000)?),
        })
    }
}

fn variable<T: FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Err(VarError::NotPresent) => Ok(default),
        value => value
            .ok()
            .and_then(|value| value.parse().ok())
            .with_context(|| format!("{name} is no valid number")),
    }
}
