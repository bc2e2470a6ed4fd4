//! A PostgreSQL server for one run.
