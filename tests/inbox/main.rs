//! Messages: each once, alone and in batches.

mod batch;
mod cancelled;
mod escapes;
mod faults;
mod in_flight;
mod isolation;
mod overlap;
mod payload;
mod poison;
mod retention;
mod scene;
mod single;
#[path = "../support/mod.rs"]
mod support;
