//! The folder of one server. Its keeper makes it, fills it and removes it (see `keeper.sh`);
//! here is what the processes that use the server see of it.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind::NotFound, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::login;

/// Opening a FIFO for writing fails with this error, instead of waiting, when nobody reads it.
const ENXIO: i32 = 6;
#[cfg(any(target_os = "linux", target_os = "android"))]
const O_NONBLOCK: i32 = 0o4000;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const O_NONBLOCK: i32 = 0x0004;

/// A folder that has no door yet gets one within milliseconds. After this it never will.
const BIRTH: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// How often the server has been started.
    runs: u32,
}

/// What there is where a folder's door should be.
pub(crate) enum Door {
    /// No folder.
    NoFolder,
    /// A folder that is being made, or removed.
    NotNow,
    /// The keeper is dead.
    Abandoned,
    /// The keeper has noticed us, and keeps the server for as long as the file is open.
    Open(File),
}

impl Folder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, runs: 1 }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The names of shared folders can be guessed: one that belongs to somebody else is a trap.
    pub(crate) fn check_owner(&self, uid: u32) -> Result<(), Error> {
        match fs::symlink_metadata(&self.path) {
            Ok(folder) if folder.is_dir() && folder.uid() == uid && folder.mode() & 0o077 == 0 => Ok(()),
            Ok(_) => Err(Error::new(
                ErrorKind::Unusable,
                format!("{} is not ours: somebody else has made it", self.path.display()),
            )),
            Err(e) if e.kind() == NotFound => Ok(()),
            Err(e) => Err(Error::io(format!("cannot look at {}", self.path.display()), e)),
        }
    }

    /// Joins the server's users.
    pub(crate) fn join(&self) -> Result<Door, Error> {
        let door = self.look()?;
        if let Door::Open(mut file) = door {
            // A full FIFO tells the keeper as much as one byte more.
            match file.write_all(b".") {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Door::Abandoned),
                _ => {}
            }
            // The keeper takes the door away before it looks for users for the last time. So
            // either it sees us, or we see here that the door is gone.
            return Ok(if self.is_behind(&file) { Door::Open(file) } else { Door::NotNow });
        }
        Ok(door)
    }

    /// Whether there is a keeper, without joining.
    pub(crate) fn look(&self) -> Result<Door, Error> {
        let path = self.path.join("door");
        match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(&path) {
            Ok(file) => Ok(Door::Open(file)),
            Err(e) if e.raw_os_error() == Some(ENXIO) => Ok(Door::Abandoned),
            Err(e) if e.kind() == NotFound => match self.path.symlink_metadata() {
                Ok(folder) if age(&folder) > BIRTH => Ok(Door::Abandoned),
                Ok(_) => Ok(Door::NotNow),
                Err(_) => Ok(Door::NoFolder),
            },
            Err(e) => Err(Error::io(format!("cannot open {}", path.display()), e)),
        }
    }

    /// Whether `door` is the door of the folder that has this name now.
    pub(crate) fn is_behind(&self, door: &File) -> bool {
        match (door.metadata(), fs::symlink_metadata(self.path.join("door"))) {
            (Ok(ours), Ok(there)) => same(&ours, &there),
            _ => false,
        }
    }

    /// Port and password, as soon as the server lets us in with them. An error when it will not.
    pub(crate) fn access(&self) -> Result<Option<(u16, String)>, Error> {
        if self.has_ended() {
            let message = format!("the PostgreSQL server is not running:\n{}", self.end_of_log());
            return Err(Error::new(ErrorKind::Failed, message));
        }
        let Some(port) = self.first_line("port").and_then(|port| port.parse().ok()) else {
            return Ok(None);
        };
        let Some(password) = self.first_line("password") else { return Ok(None) };
        // Why it failed is of no interest: the server is starting.
        Ok(login::log_in(port, &password).ok().map(|()| (port, password)))
    }

    /// The server is not running.
    pub(crate) fn has_ended(&self) -> bool {
        self.path.join(format!("ended-{}", self.runs)).exists()
    }

    /// The server is about to be started again.
    pub(crate) fn expect_another_run(&mut self) {
        self.runs += 1;
    }

    /// The major version, for a server from installed programs.
    pub(crate) fn version(&self) -> Option<String> {
        self.first_line("data/PG_VERSION")
    }

    pub(crate) fn first_line(&self, file: &str) -> Option<String> {
        let text = fs::read_to_string(self.path.join(file)).ok()?;
        text.lines().next().map(str::to_owned)
    }

    pub(crate) fn end_of_log(&self) -> String {
        let log = fs::read(self.path.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn age(metadata: &Metadata) -> Duration {
    metadata.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default()
}

pub(crate) fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
