//! What the command line asks for.

use std::env;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

pub const USAGE: &str = "\
usage: inbox_nats [--events N] [--consumers N] [--seed N] [--without-inbox]

  --events N       how many payment events, by default 20000
  --consumers N    how many consumer processes, by default 4
  --seed N         the events, and who is killed after how many batches; by default another one each time
  --without-inbox  apply whatever is delivered, to see what that comes to";

pub struct Options {
    pub events: usize,
    pub consumers: usize,
    pub seed: u64,
    pub with_inbox: bool,
}

impl Options {
    /// None when help was asked for.
    pub fn from_arguments() -> Result<Option<Self>> {
        let mut options =
            Self { events: 20_000, consumers: 4, seed: fastrand::u64(..1_000_000), with_inbox: true };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--events" => options.events = number(&argument, arguments.next())?,
                "--consumers" => options.consumers = number(&argument, arguments.next())?,
                "--seed" => options.seed = number(&argument, arguments.next())?,
                "--without-inbox" => options.with_inbox = false,
                "--help" | "-h" => return Ok(None),
                _ => bail!("there is no {argument}\n{USAGE}"),
            }
        }
        ensure!(
            options.events >= 1_000,
            "--events: with fewer than 1000 there is hardly time to kill anybody"
        );
        ensure!((1..=50).contains(&options.consumers), "--consumers: 1 to 50");
        Ok(Some(options))
    }
}

fn number<N: FromStr>(option: &str, value: Option<String>) -> Result<N> {
    let value = value.with_context(|| format!("{option}: which number?"))?;
    value.parse().ok().with_context(|| format!("{option}: {value:?} is no such number"))
}
