//! The reaper: what it deletes, its races, its end, and outages.

#[path = "../support/mod.rs"]
mod support;

mod deletes;
mod elected;
mod function;
mod log;
mod outage;
mod races;
mod scene;
mod size;
mod stop;
mod walk;
