//! Does it really happen once? A test kit for your own closures and handlers (feature `testing`).
//!
#![doc = include_str!("../../docs/testing.md")]

mod bench;
mod case;
mod disturb;
mod effect;
mod frames;
mod handler;
mod once;
mod proxy;
mod report;
mod sweep;
mod trial;

pub use once::{Sweep, once, once_per_key};
pub use proxy::{Edge, Fault, Message, Proxy, Side};
pub use report::Report;
