//! A PostgreSQL server for one run: of an example, a test binary, a benchmark.
//!
//! ```no_run
//! let server = throwaway_postgres::private()?;
//! println!("{} ({})", server.url(), server.origin());
//! # Ok::<(), throwaway_postgres::Error>(())
//! ```
//!
//! # Where it comes from
//!
//! The first of these that is there:
//!
//! 1. `DATABASE_URL`: that server is used as it is, and nothing is started.
//! 2. Installed programs (`initdb` and `postgres`): in the folder `THROWAWAY_POSTGRES_BIN`, on
//!    `PATH`, where `pg_config --bindir` points, where packages put them (newest version first).
//!    When `THROWAWAY_POSTGRES_BIN` is set, nothing else is tried.
//! 3. Docker, with the image `THROWAWAY_POSTGRES_IMAGE` or else `postgres:18`. When
//!    `THROWAWAY_POSTGRES_IMAGE` is set (and `THROWAWAY_POSTGRES_BIN` is not), installed programs
//!    are not tried.
//!
//! When none is found, the [`Error`] says what can be done.
//!
//! # A standby
//!
//! [`Server::standby`] makes a streaming standby of a private server, for tests of a failover. It
//! needs installed programs (`initdb` and `postgres`, nothing more).
//!
//! # What is safe
//!
//! The server listens on 127.0.0.1 only, with a random password, in a folder that only its user
//! can read. When this process is root, the server runs as `postgres` or `nobody`.
//!
//! # Nothing stays behind
//!
//! A small shell process, the keeper, outlives the process that uses the server. It ends the
//! server and removes the folder or the container as soon as nobody holds on to it any more, also
//! when the user was killed at any moment. If the keeper itself is killed, the next start cleans
//! up.

#[cfg(not(unix))]
compile_error!("throwaway-postgres works on Unix only");

mod error;
mod folder;
mod keeper;
mod leftovers;
mod login;
mod origin;
mod place;
mod search;
mod server;
mod settings;
mod start;
mod url;
mod user;

pub use error::{Error, ErrorKind};
pub use origin::Origin;
pub use server::Server;
pub use settings::Settings;
#[doc(hidden)]
pub use start::shared_lingering;
pub use start::{private, private_with, shared};
