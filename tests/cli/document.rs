//! The output in `docs/cli.md` is real.
