//! What a server can be made from, and how it is found.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};

/// What a server can be made from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    Url(String),
    Programs(PathBuf),
    /// The copy of another server, made by the same programs.
    Standby {
        programs: PathBuf,
        /// The folder of the other server.
        primary: PathBuf,
    },
    Docker(String),
}

/// Everything the search depends on.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    /// `DATABASE_URL`
    pub(crate) database_url: Option<OsString>,
    /// `THROWAWAY_POSTGRES_BIN`
    pub(crate) programs: Option<OsString>,
    /// `THROWAWAY_POSTGRES_IMAGE`
    pub(crate) image: Option<OsString>,
    /// `PATH`
    pub(crate) path: OsString,
    /// Where packages put the programs: a folder with one entry per version, how those entries'
    /// names begin, and the programs' folder below.
    pub(crate) usual: Vec<(PathBuf, &'static str, &'static str)>,
}

const DEFAULT_IMAGE: &str = "postgres:18";

impl Surroundings {
    pub(crate) fn from_environment() -> Self {
        let variable = |name| env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let usual = [
            ("/usr/lib/postgresql", "", "bin"),
            ("/usr", "pgsql-", "bin"),
            ("/opt/homebrew/opt", "postgresql", "bin"),
            ("/usr/local/opt", "postgresql", "bin"),
            ("/Library/PostgreSQL", "", "bin"),
            ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
        ];
        Self {
            database_url: variable("DATABASE_URL"),
            programs: variable("THROWAWAY_POSTGRES_BIN"),
            image: variable("THROWAWAY_POSTGRES_IMAGE"),
            path: variable("PATH").unwrap_or_default(),
            usual: usual.map(|(parent, name, below)| (parent.into(), name, below)).into(),
        }
    }

    /// The first that is there: `DATABASE_URL`, installed programs, Docker.
    pub(crate) fn find(&self) -> Result<Source, Error> {
        match &self.database_url {
            Some(url) => database_url(url),
            None => self.find_own(),
        }
    }

    /// The same for a server that must be our own: without `DATABASE_URL`.
    pub(crate) fn find_own(&self) -> Result<Source, Error> {
        if let Some(folder) = &self.programs {
            return programs_asked_for(Path::new(folder)).map(Source::Programs);
        }
        if let Some(image) = &self.image {
            let asked_for = |problem| {
                let message = format!("THROWAWAY_POSTGRES_IMAGE is set, but {problem}");
                Error::new(ErrorKind::Unusable, message)
            };
            self.reach_docker().map_err(asked_for)?;
            return Ok(Source::Docker(image.to_string_lossy().into_owned()));
        }
        let found = self.programs_on_path().or_else(|| self.programs_of_pg_config());
        if let Some(folder) = found.or_else(|| self.programs_in_usual_places()) {
            return Ok(Source::Programs(folder));
        }
        match self.reach_docker() {
            Ok(()) => Ok(Source::Docker(DEFAULT_IMAGE.to_owned())),
            Err(problem) => Err(Error::new(ErrorKind::NothingFound, self.nothing_found(problem))),
        }
    }

    fn programs_on_path(&self) -> Option<PathBuf> {
        env::split_paths(&self.path).find_map(|folder| {
            // A link leads to the folder where all the programs are.
            let initdb = executable(&folder.join("initdb"))?.canonicalize().ok()?;
            programs_in(&folder).or_else(|| programs_in(initdb.parent()?))
        })
    }

    fn programs_of_pg_config(&self) -> Option<PathBuf> {
        let output = Command::new(self.on_path("pg_config")?).arg("--bindir").output().ok()?;
        programs_in(Path::new(String::from_utf8(output.stdout).ok()?.trim_end()))
    }

    fn programs_in_usual_places(&self) -> Option<PathBuf> {
        let mut found = Vec::new();
        for (parent, beginning, below) in &self.usual {
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if let Some(rest) = name.strip_prefix(beginning)
                    && let Some(folder) = programs_in(&entry.path().join(below))
                {
                    found.push((version(rest), folder));
                }
            }
        }
        found.into_iter().max().map(|(_, folder)| folder)
    }

    /// Whether there is an engine that answers.
    fn reach_docker(&self) -> Result<(), &'static str> {
        let client = self.on_path("docker").ok_or("there is no `docker` on PATH")?;
        match succeeds_soon(Command::new(client).args(["version", "--format", "{{.Server.Version}}"])) {
            true => Ok(()),
            false => Err("`docker version` reaches no engine"),
        }
    }

    fn on_path(&self, program: &str) -> Option<PathBuf> {
        env::split_paths(&self.path).find_map(|folder| executable(&folder.join(program)))
    }

    fn nothing_found(&self, docker: &str) -> String {
        let usual: Vec<String> = self
            .usual
            .iter()
            .map(|(parent, name, below)| format!("{}/{name}*/{below}", parent.display()))
            .collect();
        format!(
            "no PostgreSQL server to be found. One of these helps:\n\
             - set DATABASE_URL to a server where databases may be created, as in\n  \
               postgres://user:password@localhost:5432/postgres\n\
             - install PostgreSQL's server programs (`apt-get install postgresql`, \
               `brew install postgresql@18`), or set\n  \
               THROWAWAY_POSTGRES_BIN to the folder that has `initdb` and `postgres`\n\
             - start Docker: the image {DEFAULT_IMAGE} is used, or the one in \
               THROWAWAY_POSTGRES_IMAGE\n\
             What was tried: DATABASE_URL and THROWAWAY_POSTGRES_BIN are not set; no `initdb` \
             with `postgres` beside it on PATH, where `pg_config --bindir` points, or in {}; \
             {docker}",
            usual.join(", "),
        )
    }
}

fn programs_asked_for(folder: &Path) -> Result<PathBuf, Error> {
    programs_in(folder).ok_or_else(|| {
        Error::new(
            ErrorKind::Unusable,
            format!(
                "THROWAWAY_POSTGRES_BIN is {}, but the programs `initdb` and `postgres` are not in \
                 that folder",
                folder.display()
            ),
        )
    })
}

fn database_url(url: &OsString) -> Result<Source, Error> {
    match url.to_str() {
        Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            Ok(Source::Url(url.to_owned()))
        }
        // Without its value: there may be a password in it.
        _ => Err(Error::new(
            ErrorKind::Unusable,
            "DATABASE_URL is set, but does not begin with postgres:// or postgresql://",
        )),
    }
}

/// The absolute path of `folder`, when it has what a server needs.
fn programs_in(folder: &Path) -> Option<PathBuf> {
    executable(&folder.join("initdb"))?;
    let postgres = executable(&folder.join("postgres"))?.canonicalize().ok()?;
    // Both may be links, as in /usr/local/bin. The files beside them are looked for from there.
    let real = postgres.parent()?;
    match executable(&real.join("initdb")) {
        Some(_) => Some(real.to_owned()),
        None => folder.canonicalize().ok(),
    }
}

fn executable(path: &Path) -> Option<PathBuf> {
    let metadata = fs::metadata(path).ok()?;
    (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then(|| path.to_owned())
}

/// The numbers in a name: `@16` is more than `-9.6`, and both are more than none.
fn version(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// A Docker client can wait for a long time for an engine that hangs.
fn succeeds_soon(command: &mut Command) -> bool {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = silent.spawn() else { return false };
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(_) => break,
        }
    }
    // It is dead or dying; the result is the same when this fails.
    let _ = child.kill().and_then(|()| child.wait());
    false
}

#[cfg(test)]
mod tests;
