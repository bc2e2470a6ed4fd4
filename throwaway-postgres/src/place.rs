//! Where servers' folders are, and what they are called.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, ErrorKind};
use crate::folder::Folder;
use crate::search::Source;
use crate::settings::Settings;
use crate::user::User;
use crate::{keeper, leftovers};

/// Who runs a server, and where.
#[derive(Debug)]
pub(crate) struct Place {
    /// As whom the keeper and the server run. The folder belongs to that account.
    pub(crate) user: User,
    parent: PathBuf,
    /// How the names of all our folders begin. Ours: who started the process, not who runs the
    /// server.
    prefix: String,
}

impl Place {
    pub(crate) fn new(source: &Source) -> Result<Self, Error> {
        let us = User::current()?;
        let prefix = format!("throwaway-postgres-{}-", us.uid);
        let user = match source {
            Source::Programs(programs) | Source::Standby { programs, .. } => {
                let user = us.for_programs()?;
                if !user.can_reach(programs) {
                    return Err(Error::new(ErrorKind::Unusable, closed_to(&user, programs)));
                }
                user
            }
            _ => us,
        };
        Ok(Self { parent: user.temporary_folder(), prefix, user })
    }

    /// A folder that no other server has.
    pub(crate) fn private_folder(&self) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.folder(&format!("{}-{count}-{:08x}", process::id(), time.subsec_nanos()))
    }

    /// The folder of the server that all who ask for the same share. Another keeper's script is
    /// not the same: the folder's content may differ.
    pub(crate) fn shared_folder(&self, source: &Source, settings: &Settings) -> Folder {
        let mut hasher = DefaultHasher::new();
        (source, settings, keeper::script(source)).hash(&mut hasher);
        self.folder(&format!("shared-{:016x}", hasher.finish()))
    }

    fn folder(&self, name: &str) -> Folder {
        Folder::new(self.parent.join(format!("{}{name}", self.prefix)))
    }

    /// Removes what dead keepers have left here.
    pub(crate) fn sweep(&self) {
        leftovers::sweep(&self.parent, &self.prefix, self.user.uid);
    }
}

fn closed_to(user: &User, programs: &Path) -> String {
    let name = user.other.as_ref().map_or("this user", |(name, _)| name);
    format!(
        "PostgreSQL refuses to run as root, and the user `{name}` cannot reach its programs in {}",
        programs.display()
    )
}
