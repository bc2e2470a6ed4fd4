//! `examples/payments_api`, as a process of its own: what the README shows of it, what its description says, how it ends.

mod calls;
mod description;
mod end;
mod logged;
#[path = "../support/program.rs"]
mod program;
mod seen;
mod service;
mod terminal;
