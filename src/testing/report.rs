//! What a sweep found.

use std::fmt;
use std::panic::Location;

use crate::IdempotencyKey;

/// What a sweep tried: the effect happened once in every case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    kinds: Vec<(&'static str, usize)>,
}

impl Report {
    /// How many cases there were.
    pub fn cases(&self) -> usize {
        self.kinds.iter().map(|(_, count)| count).sum()
    }

    pub(super) fn count(&mut self, kind: &'static str) {
        match self.kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => self.kinds.push((kind, 1)),
        }
    }
}

/// In one line: how many cases of which kind.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        write!(f, "once in each of {} cases: {}", self.cases(), kinds.join(", "))
    }
}

/// A case in which something is wrong.
pub(super) struct Finding {
    pub(super) wrong: Wrong,
    /// What was done.
    pub(super) case: String,
    /// What the calls said.
    pub(super) said: Vec<String>,
    pub(super) key: IdempotencyKey,
    pub(super) passed: usize,
    pub(super) caller: &'static Location<'static>,
}

/// What is wrong.
pub(super) enum Wrong {
    /// The sweep cannot be made.
    Unusable(String),
    /// A call fails that nothing disturbs.
    Fails,
    /// An undisturbed call does not change the number.
    NoEffect(String),
    /// So often.
    NotOnce(String, f64),
    /// The atomicity violation is the last thing that was said.
    Violation,
    /// Nobody gets an answer.
    Unanswered,
    /// Not all get the same answer.
    AnswersDiffer,
}

impl Wrong {
    /// What was found; then what it usually means, and what to do.
    fn texts(&self) -> (String, &'static str) {
        match self {
            Self::Unusable(why) => (format!("the sweep cannot be made: {why}"), ""),
            Self::Fails => (
                "the call fails though nothing disturbs it".to_owned(),
                "A call that succeeds is needed to begin with. Where it works once and then no more (a number that \
                 must be unique, an account that runs empty), put things back with `before_each`. Where only the same call, made \
                 again, fails: it must be the same request, with the key and the parameters that it had.",
            ),
            Self::NoEffect(effect) => (
                format!("an undisturbed call does not change {effect}"),
                "The query does not see what the call does, or the call does nothing. Choose one that counts it.",
            ),
            Self::NotOnce(effect, times) => {
                let found = format!("the effect happened {}: {effect}", self::times(*times));
                (found, if *times < 1.0 { TOO_SELDOM } else { TOO_OFTEN })
            }
            Self::Violation => (
                "the closure does not keep to its transaction".to_owned(),
                "It ends the transaction itself, or a statement failed in it and it went on as if it had not; the last error \
                 says which. pgonce commits nothing of that. Leave BEGIN, COMMIT and ROLLBACK to pgonce. Return the error, \
                 or put what may fail into a nested `begin()`.",
            ),
            Self::Unanswered => (
                "the same call, made again and again, is not answered".to_owned(),
                "Something outside of the transaction stays when a call fails, and stands in the way of the next one: a \
                 lock, a row that was written through another connection, a flag in memory. Or the call hangs.",
            ),
            Self::AnswersDiffer => (
                "not every call got the same answer".to_owned(),
                "What a retry gets was stored as JSON. A field that serde skips or fills in is not the same afterwards, nor is \
                 a float that is not a number: store all of it. Nor is what the handler adds to each answer itself: let the \
                 closure return the whole answer.",
            ),
        }
    }
}

const TOO_OFTEN: &str = "Something is done outside of the transaction, where a rollback does not undo it and the key does \
    not guard it: through another connection or pool than the closure's, in another system, or beside the `execute`. \
    Write through the connection that the closure is given, call `execute` with the key that the handler is given, and give a \
    call to another system the key `operation.derived_key(\"…\")`, by which that system recognises it.";
const TOO_SELDOM: &str = "The call was answered as done, and it is not, or not all of it. An error was swallowed, \
    perhaps in a nested transaction; or it is done after the COMMIT, and the caller was gone by then. Return the error, and \
    do inside of the closure what must not be missing.";

fn times(times: f64) -> String {
    match times {
        0.0 => "not at all".to_owned(),
        1.0 => "once".to_owned(),
        _ => format!("{times} times, and not once"),
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wrong, case, said, key, passed, caller } = self;
        let (found, advice) = wrong.texts();
        let mut paragraphs = vec![found];
        if !advice.is_empty() {
            paragraphs.extend([
                format!("What was done: {case}. Then the same call was made again, as by a client."),
                format!("What the calls said, in turn: {}.", said.join("; ")),
                format!("What it usually means: {advice}"),
            ]);
        }
        paragraphs
            .push(format!("(The sweep of {caller}; right cases before this one: {passed}; its key: {key}.)"));
        f.write_str(&paragraphs.iter().map(|paragraph| wrapped(paragraph)).collect::<Vec<_>>().join("\n\n"))
    }
}

/// In lines that fit a terminal.
fn wrapped(paragraph: &str) -> String {
    const WIDTH: usize = 100;
    let mut text = String::new();
    let mut column = 0;
    for word in paragraph.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text
}
