//! As whom the server runs, and where it may write.

use std::env;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{self, Path, PathBuf};
use std::process::Command;

use crate::error::{Error, ErrorKind};
use crate::keeper;

/// An account that can run a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    /// Name and group, when it is not ourselves.
    pub(crate) other: Option<(String, u32)>,
}

impl User {
    /// Ourselves.
    pub(crate) fn current() -> Result<Self, Error> {
        // The standard library does not tell, and without unsafe code libc cannot be asked.
        let output = Command::new("id")
            .arg("-u")
            .env("PATH", keeper::search_path())
            .output()
            .map_err(|e| Error::io("cannot run `id -u`", e))?;
        let uid = String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse()
            .map_err(|_| Error::new(ErrorKind::Failed, "`id -u` did not print a number"))?;
        Ok(Self { uid, other: None })
    }

    /// Who runs PostgreSQL's programs for us: ourselves, but it refuses root.
    pub(crate) fn for_programs(self) -> Result<Self, Error> {
        if self.uid != 0 {
            return Ok(self);
        }
        let accounts =
            fs::read_to_string("/etc/passwd").map_err(|e| Error::io("cannot read /etc/passwd", e))?;
        ["postgres", "_postgres", "nobody"]
            .into_iter()
            .find_map(|name| Self::named(name, &accounts))
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::Unusable,
                    "PostgreSQL refuses to run as root, and there is neither a user `postgres` \
                     nor a user `nobody` to run it as",
                )
            })
    }

    fn named(name: &str, accounts: &str) -> Option<Self> {
        // name:password:uid:gid:…; macOS writes -2 for nobody.
        let fields: Vec<&str> = accounts
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&name))?;
        let id = |field: &str| field.parse::<i64>().ok().map(|id| id as u32);
        let (uid, gid) = (id(fields.get(2)?)?, id(fields.get(3)?)?);
        Some(Self { uid, other: Some((name.to_owned(), gid)) })
    }

    /// The folder for temporary files. The system's usual ones are tried as well when we run the
    /// server as somebody else: our own `TMPDIR` may be closed to that account.
    pub(crate) fn temporary_folder(&self) -> PathBuf {
        // The keeper works elsewhere.
        let ours = path::absolute(env::temp_dir()).unwrap_or_else(|_| env::temp_dir());
        if self.other.is_none() {
            return ours;
        }
        [ours.clone(), PathBuf::from("/tmp"), PathBuf::from("/var/tmp")]
            .into_iter()
            .find(|folder| self.can_reach(folder) && self.may(folder, 0o3))
            .unwrap_or(ours)
    }

    /// Whether the account may go into `folder` and all folders above it.
    pub(crate) fn can_reach(&self, folder: &Path) -> bool {
        match folder.canonicalize() {
            Ok(folder) => folder.ancestors().all(|folder| self.may(folder, 0o1)),
            Err(_) => false,
        }
    }

    /// Whether the account has these permission bits (of `rwx`) on `path`.
    fn may(&self, path: &Path, bits: u32) -> bool {
        let Ok(metadata) = fs::metadata(path) else { return false };
        let Some((_, gid)) = &self.other else { return true };
        let class = |metadata: &Metadata| match metadata {
            m if m.uid() == self.uid => 6,
            m if m.gid() == *gid => 3,
            _ => 0,
        };
        (metadata.mode() >> class(&metadata)) & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_runs_the_server_as_somebody_else() {
        let accounts = "root:x:0:0::/root:/bin/sh\nnobody:*:-2:-2::/:/bin/false\n";
        assert_eq!(User::named("postgres", accounts), None);
        let nobody = User::named("nobody", accounts).expect("it is there");
        assert_eq!(nobody.uid, u32::MAX - 1);
        assert_eq!(nobody.other, Some(("nobody".to_owned(), u32::MAX - 1)));
    }

    #[test]
    fn an_ordinary_user_runs_it_itself() {
        let me = User { uid: 1000, other: None };
        assert_eq!(me.clone().for_programs().ok(), Some(me));
    }
}
