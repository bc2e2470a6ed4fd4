//! Starting a keeper, and telling it what to do. What it does is in `keeper.sh`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::folder::Folder;
use crate::search::Source;
use crate::settings::Settings;
use crate::user::User;

/// The keeper's exit status when the folder already exists.
const TAKEN: i32 = 3;

/// A keeper that we started. It works until this value is gone, however it goes.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: Child,
    line: ChildStdin,
}

/// How a keeper is doing.
pub(crate) enum State {
    Working,
    /// The folder already exists, and is not its own.
    Taken,
}

/// The text of the keeper for a source: what all have in common comes last.
pub(crate) fn script(source: &Source) -> String {
    let special = match source {
        Source::Docker(_) => include_str!("docker.sh"),
        _ => include_str!("programs.sh"),
    };
    format!("{special}\n{}", include_str!("keeper.sh"))
}

/// `PATH` with the folders of the standard utilities, for our own needs.
pub(crate) fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/bin:/bin");
    path
}

impl Keeper {
    /// Starts a keeper for a server in `folder`, which it makes itself: had we made it, it would
    /// stay behind when we are killed right afterwards.
    pub(crate) fn start(
        folder: &Folder,
        linger: Duration,
        source: &Source,
        settings: &Settings,
        user: &User,
    ) -> Result<Self, Error> {
        let failed = |e| Error::io("cannot start the keeper of the server", e);
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &script(source), "throwaway-postgres"])
            .arg(folder.path())
            .arg(linger.as_secs_f64().to_string())
            .arg(free_ports().map_err(|e| Error::io("no free port", e))?)
            .args(arguments(source, settings, folder.path()))
            // Out of reach of the terminal's signals.
            .process_group(0)
            .current_dir("/")
            .env("PATH", search_path())
            // The log is searched for a message.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        for (name, _) in env::vars_os().filter(|(name, _)| is_for_clients(name)) {
            command.env_remove(name);
        }
        if let Some((_, gid)) = user.other {
            command.uid(user.uid).gid(gid);
        }
        let mut process = command.spawn().map_err(failed)?;
        let line = process.stdin.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        let mut keeper = Self { process, line };
        keeper.tell("start")?;
        Ok(keeper)
    }

    /// Gives the keeper an order: `start`, `stop`, `crash` or `copy`. It obeys one after the other.
    pub(crate) fn tell(&mut self, order: &str) -> Result<(), Error> {
        writeln!(self.line, "{order}").map_err(|e| Error::io("the server's keeper is gone", e))
    }

    /// An error when the keeper could not do its work.
    pub(crate) fn state(&mut self) -> Result<State, Error> {
        let status = self.process.try_wait().map_err(|e| Error::io("lost the keeper", e))?;
        match status {
            None => Ok(State::Working),
            Some(status) if status.code() == Some(TAKEN) => Ok(State::Taken),
            Some(status) => Err(self.complaint(status)),
        }
    }

    fn complaint(&mut self, status: ExitStatus) -> Error {
        let mut text = String::new();
        if let Some(mut complaint) = self.process.stderr.take() {
            // Half a message is better than none.
            let _ = complaint.read_to_string(&mut text);
        }
        let message = format!("the server's keeper ended ({status}): {}", text.trim_end());
        Error::new(ErrorKind::Failed, message)
    }

    /// Lets go, and waits until the server and its folder are gone.
    pub(crate) fn finish(self) {
        let Self { mut process, line } = self;
        drop(line);
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(30) && matches!(process.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Lets go, without waiting. Others may still use the server.
    pub(crate) fn leave_to_others(self) {
        let Self { mut process, line } = self;
        drop(line);
        // Only so that no zombie stays.
        thread::spawn(move || process.wait());
    }
}

/// What `programs.sh` or `docker.sh` wants to know.
fn arguments(source: &Source, settings: &Settings, folder: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = match source {
        Source::Url(_) => unreachable!("a server that we do not start has no keeper"),
        Source::Programs(programs) => vec![programs.into(), OsString::new()],
        Source::Standby { programs, primary } => vec![programs.into(), primary.into()],
        Source::Docker(image) => {
            let name = folder.file_name().unwrap_or_default().to_owned();
            let storage = if settings.is_durable() { "" } else { "--tmpfs=/var/lib/throwaway" };
            vec![image.into(), name, storage.into()]
        }
    };
    arguments.extend(settings.arguments().into_iter().map(OsString::from));
    arguments
}

/// Variables that are meant for the user's clients and would change the server.
fn is_for_clients(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("PG")
}

/// Three ports that are free just now; another process may take one before the server does.
fn free_ports() -> io::Result<String> {
    let listeners: Vec<TcpListener> =
        (0..3).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<io::Result<_>>()?;
    let ports: Vec<String> = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port().to_string()))
        .collect::<io::Result<_>>()?;
    Ok(ports.join(" "))
}
