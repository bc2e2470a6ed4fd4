use std::fmt;
use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::folder::Folder;
use crate::keeper::Keeper;
use crate::origin::Origin;
use crate::search::Source;
use crate::settings::Settings;
use crate::{start, url};

/// A running PostgreSQL server, for as long as this value lives.
///
/// A private server is gone, with its folder, when `drop` returns. When the process ends without
/// a drop ([`std::process::exit`], an abort, SIGKILL) it is gone shortly after. A shared one goes one
/// or two seconds after its last user.
pub struct Server {
    url: String,
    origin: Origin,
    hold: Hold,
}

/// What keeps the server alive.
pub(crate) enum Hold {
    /// Somebody else.
    External,
    /// Its keeper, until it is dropped.
    Private(Option<Keeper>, Folder, Settings),
    /// The open door. Never read: it is enough that it is open.
    Shared { _door: File },
}

impl Server {
    pub(crate) fn new(url: String, origin: Origin, hold: Hold) -> Self {
        Self { url, origin, hold }
    }

    /// The URL of the database `postgres`, or `DATABASE_URL` as it is. It begins with
    /// `postgres://user:password@127.0.0.1:port/` unless it is from `DATABASE_URL`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of another database of the same server, with the query parameters of
    /// [`url`](Self::url). The database does not have to exist.
    pub fn url_of(&self, database: &str) -> String {
        url::with_database(&self.url, database)
    }

    /// Whether the server is the one in `DATABASE_URL`, which was not started here and will not
    /// be stopped here.
    pub fn is_external(&self) -> bool {
        matches!(self.hold, Hold::External)
    }

    /// Where the server comes from, for messages.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Ends a private server at once, without a checkpoint, as a crash would. Its clients lose
    /// their connections. Returns when the server is gone.
    ///
    /// What was committed is there after [`start_again`](Self::start_again) if the server was
    /// started with [`Settings::durable`](crate::Settings::durable).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotOurs`](crate::ErrorKind::NotOurs) when the server is shared or external.
    pub fn stop_immediately(&mut self) -> Result<(), Error> {
        self.stop("crash")
    }

    /// Ends a private server as `pg_ctl stop --mode=fast` does: its clients lose their connections,
    /// their transactions are rolled back, and everything is written to the disk. Returns when the
    /// server is gone; [`start_again`](Self::start_again) starts it again.
    ///
    /// # Errors
    ///
    /// As for [`stop_immediately`](Self::stop_immediately).
    pub fn stop_fast(&mut self) -> Result<(), Error> {
        self.stop("stop")
    }

    fn stop(&mut self, order: &str) -> Result<(), Error> {
        let (keeper, folder, _) = self.own()?;
        keeper.tell(order)?;
        let begin = Instant::now();
        while !folder.has_ended() {
            keeper.state()?;
            if begin.elapsed() > Duration::from_secs(30) {
                return Err(Error::new(ErrorKind::Failed, "the server does not stop"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts the server again after [`stop_immediately`](Self::stop_immediately) or
    /// [`stop_fast`](Self::stop_fast): the same data, the same port, the same password. Returns when it takes connections.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotOurs`](crate::ErrorKind::NotOurs) when the server is shared or external; [`ErrorKind::Failed`] when
    /// it has not been stopped, or does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        let (keeper, folder, _) = self.own()?;
        if !folder.has_ended() {
            return Err(Error::new(ErrorKind::Failed, "the server has not been stopped"));
        }
        folder.expect_another_run();
        keeper.tell("start")?;
        start::wait_until_ready(keeper, folder, Duration::from_secs(60)).map(drop)
    }

    /// A streaming standby of a private server, with the same settings, users and password, and a
    /// folder and a keeper of its own. It takes connections, and it is promoted by
    /// `SELECT pg_promote()`.
    ///
    /// **This restarts the server**, as [`stop_immediately`](Self::stop_immediately) and
    /// [`start_again`](Self::start_again) do: its data is copied while it is down. Replication is
    /// asynchronous until `synchronous_standby_names` is set.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotOurs`](crate::ErrorKind::NotOurs) when the server is shared or external;
    /// [`ErrorKind::Unusable`](crate::ErrorKind::Unusable) when it runs in a container;
    /// [`ErrorKind::Failed`](crate::ErrorKind::Failed) when one of the two does not start.
    pub fn standby(&mut self) -> Result<Server, Error> {
        let (_, folder, settings) = self.own()?;
        let (primary, settings) = (folder.path().to_owned(), settings.clone());
        let Origin::Programs { folder: programs, .. } = &self.origin else {
            let message = "a standby is made by installed programs, and this server runs in a container";
            return Err(Error::new(ErrorKind::Unusable, message));
        };
        let source = Source::Standby { programs: programs.clone(), primary };
        self.stop_immediately()?;
        let (keeper, ..) = self.own()?;
        keeper.tell("copy")?;
        self.start_again()?;
        start::own(source, &settings)
    }

    fn own(&mut self) -> Result<(&mut Keeper, &mut Folder, &Settings), Error> {
        match &mut self.hold {
            Hold::Private(Some(keeper), folder, settings) => Ok((keeper, folder, settings)),
            _ => {
                Err(Error::new(ErrorKind::NotOurs, "only a private server can be stopped and started again"))
            }
        }
    }
}

/// Without the URL: there is a password in it.
impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Hold::Private(keeper, ..) = &mut self.hold
            && let Some(keeper) = keeper.take()
        {
            keeper.finish();
        }
    }
}
