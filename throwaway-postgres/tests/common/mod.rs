//! What the tests share: a tiny client, a folder for temporary files that must end up empty, and
//! children that can be killed.
#![allow(dead_code, reason = "not every test uses everything")]

pub(crate) mod client;
pub(crate) mod process;
pub(crate) mod sandbox;
