//! What holds of every fingerprint, tried with arbitrary values and texts; `tests/fingerprint.rs` has the chosen ones.

mod model;
mod texts;
mod values;
