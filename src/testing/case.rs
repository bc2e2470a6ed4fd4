//! What can go wrong around a call: the cases of a sweep, and their names. Private.

use std::collections::HashMap;
use std::fmt;

use super::proxy::{Edge, Fault, Message, Side};
use crate::sql::CLOSE_AND_COMMIT;

/// One disturbance of one call.
pub(super) enum Case {
    /// None.
    Undisturbed,
    /// A fault at a message.
    Fault(Fault, Edge, Place),
    /// The caller gives up after so many polls. The place is the last one that was reached.
    Dropped(usize, Option<Place>),
    /// Several calls at the same moment, that are rejected or wait.
    Duplicates { wait: bool },
    /// A duplicate, while the first call is held up at its COMMIT.
    InFlight,
}

/// A message of the call, and the statement that it belongs to.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) message: Message,
    statement: String,
}

/// How often the same call is made at the same moment.
pub(super) const DUPLICATES: usize = 8;

/// How often that is tried, since each time is different.
const ROUNDS: usize = 3;

/// serialization_failure: pgonce runs the closure again. query_canceled: the call fails.
const REFUSALS: [&str; 2] = ["40001", "57014"];

/// All cases but the undisturbed one and the dropped ones, for a call that had this conversation; each disturbance at so many
/// places at most, from the call's beginning to its end.
pub(super) fn plan(conversation: &[Message], most: usize) -> Vec<Case> {
    let places = places(conversation);
    let chosen = |is_one: fn(&Place) -> bool| {
        let found: Vec<_> = places.iter().filter(|place| is_one(place)).collect();
        let step = found.len().div_ceil(most).max(1);
        found.into_iter().step_by(step)
    };
    let fault = |fault, edge, place: &Place| Case::Fault(fault, edge, place.clone());
    let cut = chosen(Place::begins_or_ends).map(|place| fault(Fault::Cut, Edge::Before, place));
    let lost = places.iter().filter(|place| place.statement == COMMIT).flat_map(|place| {
        let faults: &[Fault] =
            if is_commit(&place.message) { &[Fault::Cut, Fault::BlackHole] } else { &[Fault::Cut] };
        let edges = [Edge::Before, Edge::After];
        faults.iter().flat_map(move |what| edges.map(|edge| fault(*what, edge, place)))
    });
    let refused = chosen(Place::can_be_refused)
        .flat_map(|place| REFUSALS.map(|sqlstate| fault(Fault::Refuse(sqlstate), Edge::Before, place)));
    let rounds = [false, true].repeat(ROUNDS).into_iter().map(|wait| Case::Duplicates { wait });
    cut.chain(lost).chain(refused).chain(rounds).chain([Case::InFlight]).collect()
}

/// The messages of the call itself, without those that open a connection.
pub(super) fn places(conversation: &[Message]) -> Vec<Place> {
    let mut statements = HashMap::new();
    let mut places = Vec::new();
    for message in conversation {
        if let ("Query" | "Parse", sql) = message.parts() {
            let statement = if commits(sql) { COMMIT.to_owned() } else { shortened(sql) };
            statements.insert(message.connection, statement);
        }
        if let Some(statement) = statements.get(&message.connection) {
            places.push(Place { message: message.clone(), statement: statement.clone() });
        }
    }
    places
}

fn shortened(sql: &str) -> String {
    const LENGTH: usize = 72;
    match sql.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &sql[..end]),
        None => sql.to_owned(),
    }
}

impl Place {
    /// Whether the statement is begun by it or was run before it. That is what a closure can tell apart: a statement that
    /// did not get there, and one whose answer did not come back.
    fn begins_or_ends(&self) -> bool {
        matches!(self.message.parts().0, "Query" | "Parse" | "CommandComplete") && self.statement != COMMIT
    }

    /// Whether a message is at this place.
    pub(super) fn has(&self, message: &Message) -> bool {
        let place = |message: &Message| (message.connection, message.side, message.nth);
        place(message) == place(&self.message) && message.parts().0 == self.message.parts().0
    }

    /// Whether it runs a statement. sqlx's own around a nested transaction are left out, since it ends the outer one when one
    /// of them fails.
    fn can_be_refused(&self) -> bool {
        let first = self.statement.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        let ends = matches!(first.as_str(), "BEGIN" | "SAVEPOINT" | "RELEASE" | "ROLLBACK");
        self.message.side == Side::Client && matches!(self.message.parts().0, "Execute" | "Query") && !ends
    }
}

pub(super) fn is_commit(message: &Message) -> bool {
    message.side == Side::Client && matches!(message.parts(), ("Query", sql) if commits(sql))
}

/// Whether it is a COMMIT of pgonce's. That of a message comes with what proves that its transaction is alive.
fn commits(sql: &str) -> bool {
    sql == COMMIT || sql == CLOSE_AND_COMMIT
}

const COMMIT: &str = "COMMIT";

impl Case {
    /// For counting.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undisturbed => "undisturbed",
            Self::Fault(Fault::Refuse(_), ..) => "with a statement refused",
            Self::Fault(_, _, place) if place.statement == COMMIT => "with the COMMIT or its answer lost",
            Self::Fault(..) => "with the connection cut",
            Self::Dropped(..) => "dropped mid-way",
            Self::Duplicates { .. } | Self::InFlight => "with duplicates at the same time",
        }
    }
}

/// What was done to the call, as half a sentence.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undisturbed => f.write_str("the call was made, undisturbed"),
            Self::Fault(Fault::Refuse(sqlstate), _, Place { statement, .. }) => {
                write!(f, "the server refused the statement `{statement}` with SQLSTATE {sqlstate}, once")
            }
            Self::Fault(fault, edge, place) => {
                let what = match fault {
                    Fault::Cut => "the connection was cut",
                    _ => "the network swallowed everything from",
                };
                let edge = if *edge == Edge::Before { "before" } else { "after" };
                write!(f, "{what} just {edge} {place}")
            }
            Self::Dropped(polls, reached) => {
                write!(f, "the call's future was dropped after {polls} polls")?;
                reached.iter().try_for_each(|place| write!(f, ", the last message being {place}"))
            }
            Self::Duplicates { wait } => {
                let policy = if *wait { "InFlight::Wait" } else { "InFlight::Reject" };
                write!(f, "the call was made {DUPLICATES} times at the same moment, with `{policy}`")
            }
            Self::InFlight => f.write_str("a duplicate came while the call was held up before its COMMIT"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, statement } = self;
        match (message.side, message.parts()) {
            (_, ("Query" | "Parse", _)) => write!(f, "the client's `{statement}`"),
            (_, ("CommandComplete", tag)) => write!(f, "the server's answer `{tag}` to `{statement}`"),
            (Side::Client, _) => write!(f, "the client's message {} of `{statement}`", message.label),
            (Side::Server, _) => write!(f, "the server's message {} to `{statement}`", message.label),
        }
    }
}

impl Message {
    /// What stands before and after the colon of its label.
    fn parts(&self) -> (&str, &str) {
        self.label.split_once(": ").unwrap_or((&self.label, ""))
    }
}
