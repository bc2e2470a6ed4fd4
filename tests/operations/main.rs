//! What docs/operations.md promises to an operator, done: an upgrade, a restore, a tenant that moves, partitions.

mod document;
mod fifth;
mod former;
mod migrating;
mod night;
mod partitioned;
mod restore;
#[path = "../support/mod.rs"]
mod support;
mod tenant;
mod upgrade;
