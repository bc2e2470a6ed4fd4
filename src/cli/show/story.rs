//! What happened, and what a retry gets, in plain words: [`Story`].

use super::Found;
use crate::cli::words;

/// The words `status` and `retry` are part of the JSON: scripts depend on them.
#[derive(Debug)]
pub(in crate::cli) struct Story {
    pub(in crate::cli) status: &'static str,
    /// `replayed`, `duplicate`, `in_flight`, `executed` or `refused`.
    pub(in crate::cli) retry: &'static str,
    pub(in crate::cli) lines: Vec<String>,
}

const IN_FLIGHT: &str =
    "A retry now gets InFlight (over HTTP 409), or waits if it was told to. It neither runs nor replays.";
const UNTIL_IT_ENDS: &str =
    "If that commits, retries get its result; if it rolls back or dies, the key is free at once.";
/// What takes no lock of its key before its last statement, or none at all.
pub(in crate::cli) const UNSEEN: &str =
    "A call in optimistic mode that is running now, or a batch with this message,";
const OTHER_PARAMETERS: &str = "With other parameters it is refused (FingerprintMismatch, over HTTP 422).";

impl Story {
    pub(in crate::cli) fn of(found: &Found) -> Self {
        let mut story = match &found.row {
            None => Self::without_row(found),
            Some(row) if row.state == "pending" => Self::pending(),
            Some(row) if row.expired => Self::expired(found),
            Some(_) => Self::live(found),
        };
        if found.standby {
            story.lines.push(
                "This is a standby: the primary may know more, and only it knows what is in flight.".into(),
            );
        }
        story
    }

    fn new<const N: usize>(status: &'static str, retry: &'static str, lines: [String; N]) -> Self {
        Self { status, retry, lines: lines.into() }
    }

    fn live(found: &Found) -> Self {
        let Some(row) = &found.row else { return Self::without_row(found) };
        let when = words::relative(row.completed_at.unwrap_or(row.created_at), found.now);
        let mut story = if row.message {
            Self::new(
                "processed",
                "duplicate",
                [
                    format!("A message, processed {when}: its effects and this row were committed together."),
                    "Another delivery is a Duplicate: nothing runs, and it can be acknowledged.".into(),
                ],
            )
        } else if row.state == "failed" {
            Self::new(
                "failed",
                "replayed",
                [
                    format!(
                        "A final failure was recorded {when}. The business writes of that execution were undone."
                    ),
                    "A retry with the same parameters gets the same failure, and runs nothing.".into(),
                    OTHER_PARAMETERS.into(),
                ],
            )
        } else {
            Self::new(
                "completed",
                "replayed",
                [
                    format!("Executed {when}: its writes, this key and the result were committed together."),
                    "A retry with the same parameters gets the stored result, and runs nothing.".into(),
                    OTHER_PARAMETERS.into(),
                ],
            )
        };
        if found.holder.is_some() {
            story.lines.push("Another transaction is at the row in this moment: look again.".into());
        }
        story
    }

    fn expired(found: &Found) -> Self {
        let Some(row) = &found.row else { return Self::without_row(found) };
        let ended = words::relative(row.expires_at, found.now);
        if found.holder.is_some() {
            return Self::new(
                "in_flight",
                "in_flight",
                [
                    format!(
                        "The retention of an earlier execution ended {ended}, and a new one is running now."
                    ),
                    IN_FLIGHT.into(),
                    UNTIL_IT_ENDS.into(),
                ],
            );
        }
        let what = match (row.message, row.state.as_str()) {
            (true, _) => "A message was processed",
            (_, "failed") => "A final failure was recorded",
            _ => "It was executed",
        };
        Self::new(
            "expired",
            "executed",
            [
                format!("{what}, but its retention ended {ended}: it is forgotten, and waits to be purged."),
                "A retry is a new request: it runs the operation again.".into(),
            ],
        )
    }

    fn pending() -> Self {
        Self::new(
            "committed_pending",
            "refused",
            [
                "A pending key is committed, which no correct run can leave: its guard was dropped or disabled, or a".into(),
                "partial dump was restored. Nobody can tell from here whether the operation took effect.".into(),
                "A retry is refused with AtomicityViolation, and runs nothing.".into(),
                "Look into your own tables. If it took effect, leave the key or tell the client; if not, evict it".into(),
                "(pgonce evict), so that a retry runs. And see pgonce doctor, for the guard.".into(),
            ],
        )
    }

    fn without_row(found: &Found) -> Self {
        if found.holder.is_some() {
            return Self::new(
                "in_flight",
                "in_flight",
                [
                    "The first execution is running now; nothing of it is committed yet.".into(),
                    IN_FLIGHT.into(),
                    UNTIL_IT_ENDS.into(),
                ],
            );
        }
        let why = if found.evictions.is_empty() {
            "it never came, it was rolled back, or its retention ended and it was purged."
        } else {
            "it was evicted, see below, and has not been executed since."
        };
        Self::new(
            "unknown",
            "executed",
            [
                format!("Nothing is stored for this key: {why}"),
                format!("A retry runs the operation. ({UNSEEN} cannot be seen.)"),
            ],
        )
    }
}
