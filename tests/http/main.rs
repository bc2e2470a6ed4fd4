//! The HTTP layer, over a real socket with a real client. `docs/http.md` names these tests.

mod app;
mod replay;
#[path = "../support/mod.rs"]
mod support;
