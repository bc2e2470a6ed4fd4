//! How a process comes to a server.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::folder::{Door, Folder};
use crate::keeper::{Keeper, State};
use crate::leftovers;
use crate::origin::Origin;
use crate::place::Place;
use crate::search::{Source, Surroundings};
use crate::server::{Hold, Server};
use crate::settings::Settings;
use crate::url;

/// How long a shared server waits for the next user after the last one is gone.
const LINGER: Duration = Duration::from_secs(1);

/// A server of this process's own.
///
/// When `DATABASE_URL` is set, it is that server instead, and nothing is started.
///
/// # Errors
///
/// [`ErrorKind::NothingFound`] when there is nothing to make a server from; the message says what
/// helps. [`ErrorKind::Failed`] when it did not start; the message has the end of its log.
pub fn private() -> Result<Server, Error> {
    private_with(&Settings::default())
}

/// A server of this process's own, configured by `settings`.
///
/// With other settings than [`Settings::default`] it is always a new one, even when
/// `DATABASE_URL` is set: that server cannot be configured, and must not be crashed.
///
/// # Errors
///
/// As for [`private`].
pub fn private_with(settings: &Settings) -> Result<Server, Error> {
    let surroundings = Surroundings::from_environment();
    let source =
        if *settings == Settings::default() { surroundings.find()? } else { surroundings.find_own()? };
    own(source, settings)
}

/// A server of this process's own, made from `source`.
pub(crate) fn own(source: Source, settings: &Settings) -> Result<Server, Error> {
    if let Source::Url(url) = source {
        return Ok(Server::new(url, Origin::DatabaseUrl, Hold::External));
    }
    let place = Place::new(&source)?;
    place.sweep();
    let folder = place.private_folder();
    let mut keeper = Keeper::start(&folder, Duration::ZERO, &source, settings, &place.user)?;
    match wait_until_ready(&mut keeper, &folder, patience(&source)) {
        Ok(url) => {
            let origin = origin(source, &folder);
            Ok(Server::new(url, origin, Hold::Private(Some(keeper), folder, settings.clone())))
        }
        Err(error) => {
            keeper.finish();
            Err(error)
        }
    }
}

/// A server that all processes of this user share. The first one starts it, the others join.
///
/// Joining takes a few milliseconds. The server goes one or two seconds after its last user, so
/// that test binaries that run one after the other use the same one. Keep the value for as long
/// as the server is needed, in tests in a static `OnceLock`.
///
/// When `DATABASE_URL` is set, it is that server instead, and nothing is started.
///
/// # Errors
///
/// As for [`private`], and [`ErrorKind::Unusable`] when somebody else has taken the name of the
/// server's folder.
pub fn shared() -> Result<Server, Error> {
    shared_lingering(LINGER)
}

/// [`shared`] with another time to linger if this call starts the server, for our own tests.
#[doc(hidden)]
pub fn shared_lingering(linger: Duration) -> Result<Server, Error> {
    let source = Surroundings::from_environment().find()?;
    if let Source::Url(url) = source {
        return Ok(Server::new(url, Origin::DatabaseUrl, Hold::External));
    }
    let settings = Settings::fast();
    let place = Place::new(&source)?;
    let folder = place.shared_folder(&source, &settings);
    let deadline = Instant::now() + patience(&source);
    // Our own keeper, from its start until we have joined like everybody else.
    let mut keeper = None;
    while Instant::now() < deadline {
        folder.check_owner(place.user.uid)?;
        match folder.join()? {
            Door::NoFolder if keeper.is_none() => {
                place.sweep();
                keeper = Some(Keeper::start(&folder, linger, &source, &settings, &place.user)?);
            }
            Door::NoFolder | Door::NotNow => {}
            Door::Abandoned => leftovers::remove_if_dead(&folder, place.user.uid),
            Door::Open(door) => {
                if let Some(url) = wait_behind(&door, &folder, deadline)? {
                    if let Some(keeper) = keeper {
                        keeper.leave_to_others();
                    }
                    let origin = origin(source, &folder);
                    return Ok(Server::new(url, origin, Hold::Shared { _door: door }));
                }
            }
        }
        // Another process was faster than our keeper: join that one's.
        if let Some(State::Taken) = keeper.as_mut().map(Keeper::state).transpose()? {
            keeper = None;
        }
        pause();
    }
    Err(too_late(&folder))
}

/// The URL of the shared server behind `door`, or nothing when the folder is gone.
fn wait_behind(door: &File, folder: &Folder, deadline: Instant) -> Result<Option<String>, Error> {
    while folder.is_behind(door) {
        if let Some((port, password)) = folder.access()? {
            return Ok(Some(url::of_server(port, &password)));
        }
        if Instant::now() >= deadline {
            return Err(too_late(folder));
        }
        pause();
    }
    Ok(None)
}

/// The URL of our own server, when it takes connections.
pub(crate) fn wait_until_ready(
    keeper: &mut Keeper,
    folder: &Folder,
    patience: Duration,
) -> Result<String, Error> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some((port, password)) = folder.access()? {
            return Ok(url::of_server(port, &password));
        }
        if let State::Taken = keeper.state()? {
            let message = format!("{} already exists", folder.path().display());
            return Err(Error::new(ErrorKind::Unusable, message));
        }
        pause();
    }
    Err(too_late(folder))
}

fn pause() {
    thread::sleep(Duration::from_millis(5));
}

/// A machine can be slow, and an image may have to be pulled first.
fn patience(source: &Source) -> Duration {
    Duration::from_secs(if matches!(source, Source::Docker(_)) { 600 } else { 60 })
}

fn too_late(folder: &Folder) -> Error {
    let log = folder.end_of_log();
    Error::new(ErrorKind::Failed, format!("the PostgreSQL server did not start in time:\n{log}"))
}

fn origin(source: Source, folder: &Folder) -> Origin {
    match source {
        Source::Url(_) => Origin::DatabaseUrl,
        Source::Programs(programs) | Source::Standby { programs, .. } => {
            Origin::Programs { version: folder.version().unwrap_or_default(), folder: programs }
        }
        Source::Docker(image) => Origin::Docker { image },
    }
}
