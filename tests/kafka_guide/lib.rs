//! The code of `docs/kafka.md`, which shows the three files as they are here.

pub mod common;
pub mod ids;
pub mod positions;
