//! The operator's tool: the real program against real databases.

mod connection;
mod doctor;
mod document;
mod evict;
mod list;
mod migrate;
mod privileges;
mod purge;
mod scene;
mod shells;
mod show;
mod slots;
mod soundness;
mod standby;
mod stats;
#[path = "../support/mod.rs"]
mod support;
mod usage;
