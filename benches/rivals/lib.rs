//! Nothing: what is here is a benchmark. See `Cargo.toml`.
