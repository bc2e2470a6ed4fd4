//! Faults on demand, for tests (feature `testing`).

mod frames;
mod proxy;

pub use proxy::{Edge, Fault, Message, Proxy, Side};
