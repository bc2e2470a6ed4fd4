//! The tests of the promise in [`pgonce::Mode::Optimistic`], and what is different in it.
#![allow(
    clippy::duplicate_mod,
    reason = "each module is a test binary elsewhere, and brings what that needs"
)]

#[path = "../cancellation.rs"]
mod cancellation;
#[path = "../conflicts.rs"]
mod conflicts;
mod differs;
#[path = "../execute.rs"]
mod execute;
#[path = "../guards.rs"]
mod guards;
#[path = "../lost_commit.rs"]
mod lost_commit;
#[path = "../lost_connection.rs"]
mod lost_connection;
#[path = "../recording.rs"]
mod recording;
#[path = "../retention.rs"]
mod retention;
