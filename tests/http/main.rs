//! The HTTP layer, over a real socket with a real client. `docs/http.md` names these tests.

mod app;
mod conflicts;
mod document;
mod endings;
mod faults;
mod fingerprint;
mod fingerprint_properties;
mod flaky;
mod header;
mod in_flight;
mod interrupted;
mod killed;
mod log;
mod problems;
mod replay;
mod request_body;
mod retries;
mod retrying_client;
mod runs;
mod scene;
mod security;
mod streaming;
#[path = "../support/mod.rs"]
mod support;
mod swept;
mod taking;
mod transaction;
mod violations;
mod waiting;
