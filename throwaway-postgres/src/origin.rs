use std::fmt;
use std::path::PathBuf;

/// Where a [`Server`](crate::Server) comes from. Made for messages: it implements
/// [`Display`](fmt::Display).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The variable `DATABASE_URL` names it.
    DatabaseUrl,
    /// It was started from installed programs.
    Programs {
        /// The server's major version.
        version: String,
        /// The folder of the programs.
        folder: PathBuf,
    },
    /// It runs in a container.
    Docker {
        /// The container's image.
        image: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DatabaseUrl => f.write_str("DATABASE_URL"),
            Self::Programs { version, folder } => {
                write!(f, "PostgreSQL {version} programs in {}", folder.display())
            }
            Self::Docker { image } => write!(f, "Docker image {image}"),
        }
    }
}
