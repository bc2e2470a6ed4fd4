//! What one look came to: [`Check`].

use serde::Serialize;

/// From good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    /// It may hurt some day.
    Warning,
    /// The promise may be broken, or calls fail.
    Problem,
}

/// One line.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// What was looked at. Scripts depend on the names.
    pub(super) check: &'static str,
    pub(super) status: Status,
    pub(super) message: String,
    /// To paste where it can be.
    pub(super) fix: Option<String>,
}

impl Check {
    pub(super) fn ok(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, message: message.into(), fix: None }
    }

    pub(super) fn warning(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Warning, message: message.into(), fix: Some(fix.into()) }
    }

    pub(super) fn problem(check: &'static str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, status: Status::Problem, message: message.into(), fix: Some(fix.into()) }
    }
}
