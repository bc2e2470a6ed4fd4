//! What a run does, decided by its seed alone.
//!
//! Which call is under way when a connection is cut is decided by the machine's clock and cannot be repeated.

use std::time::Duration;

use fastrand::Rng;
use pgonce::testing::{Edge, Fault};
use pgonce::{InFlight, Isolation, Mode};
use serde::{Deserialize, Serialize};

pub const CLIENTS: usize = 6;
pub const TASKS: u64 = 4;
pub const ACCOUNTS: u64 = 64;
const SCOPES: [&str; 2] = ["acct_1/payments", "acct_2/payments"];

/// A generator for this part of the run.
fn part(seed: u64, path: &[u64]) -> Rng {
    path.iter().fold(Rng::with_seed(seed), |mut rng, step| Rng::with_seed(rng.u64(..).wrapping_add(*step)))
}

/// What a client process is like.
pub struct Character {
    pub hardened: bool,
    /// Of its pool: more or fewer than its tasks.
    pub connections: u32,
    pub commit_timeout: Duration,
}

impl Character {
    pub fn of(seed: u64, client: u64, life: u64) -> Self {
        let mut rng = part(seed, &[1, client, life]);
        Self { hardened: rng.bool(), connections: rng.u32(3..7), commit_timeout: millis(&mut rng, 250..1000) }
    }
}

/// What a client wants done: it tries until it has an answer.
pub struct Request {
    pub scope: &'static str,
    pub key: Key,
    pub retention: Duration,
    /// The user has clicked twice.
    pub twice: bool,
    /// How often it is sent again after it was answered.
    pub replays: u64,
    pub pause: Duration,
    tries: Rng,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// This request's own.
    Cold(String),
    /// One of a few that all clients use at the time.
    Hot(u64),
    /// One of a few that everybody uses, and that expire soon.
    Brief(u64),
}

impl Request {
    pub fn of(seed: u64, client: u64, life: u64, task: u64, number: u64) -> Self {
        let mut rng = part(seed, &[2, client, life, task, number]);
        let day = Duration::from_secs(24 * 60 * 60);
        let (key, retention) = match rng.u64(0..100) {
            0..40 => (Key::Hot(rng.u64(0..3)), day),
            40..70 => (Key::Brief(rng.u64(0..8)), millis(&mut rng, 150..1200)),
            _ => (Key::Cold(format!("cold-{client}-{life}-{task}-{number}")), day),
        };
        Self {
            scope: SCOPES[rng.usize(0..SCOPES.len())],
            key,
            retention,
            twice: rng.u64(0..100) < 15,
            replays: [0, 0, 0, 1, 3][rng.usize(0..5)],
            pause: millis(&mut rng, 0..20),
            tries: rng.fork(),
        }
    }

    pub fn next_try(&mut self) -> Try {
        Try::of(&mut self.tries)
    }
}

/// One call of the library.
#[derive(Clone, Debug, PartialEq)]
pub struct Try {
    pub api: Api,
    pub deed: Deed,
    pub isolation: Isolation,
    pub mode: Mode,
    pub in_flight: InFlight,
    /// Which of two requests it is that use the same key: 0, as a rule.
    pub variant: u8,
    /// The caller drops the future after this time.
    pub cancel: Option<Duration>,
    /// How long the closure takes.
    pub dawdle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Api {
    Execute,
    ExecuteRecording,
    ExecuteOnce,
    ExecuteIn,
    Claim,
    Find,
    Purge,
}

/// What the closure does. It always moves money first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Deed {
    Pays,
    /// The same in a nested transaction, after another one that it rolls back.
    PaysNested,
    /// Ends in a final failure; where none can be recorded, in an error.
    Declines,
    Fails,
    Panics,
    /// Ignores that a statement failed.
    Swallows,
    /// Ends the transaction and goes on.
    RollsBack,
    Commits,
}

impl Try {
    fn of(rng: &mut Rng) -> Self {
        let api = match rng.u64(0..100) {
            0..44 => Api::Execute,
            44..58 => Api::ExecuteRecording,
            58..68 => Api::ExecuteOnce,
            68..78 => Api::ExecuteIn,
            78..92 => Api::Claim,
            92..97 => Api::Find,
            _ => Api::Purge,
        };
        let deed = match rng.u64(0..100) {
            0..66 => Deed::Pays,
            66..73 => Deed::PaysNested,
            73..84 => Deed::Declines,
            84..88 => Deed::Fails,
            88..91 => Deed::Panics,
            91..94 => Deed::Swallows,
            94..97 => Deed::RollsBack,
            _ => Deed::Commits,
        };
        let isolation = match rng.u64(0..10) {
            0..6 => Isolation::ReadCommitted,
            6..8 => Isolation::RepeatableRead,
            _ => Isolation::Serializable,
        };
        let mode = match rng.u64(0..10) {
            0..5 => Mode::ClaimFirst,
            5..7 => Mode::LookFirst,
            _ => Mode::Optimistic,
        };
        let wait = millis(rng, 50..800);
        let in_flight = if rng.bool() { InFlight::Wait(wait) } else { InFlight::Reject };
        let variant = u8::from(rng.u64(0..100) < 4);
        let after = millis(rng, 0..40);
        let cancel = (rng.u64(0..100) < 10).then_some(after);
        let dawdle = if rng.u64(0..100) < 30 { millis(rng, 0..40) } else { Duration::ZERO };
        Self { api, deed, isolation, mode, in_flight, variant, cancel, dawdle }
    }

    /// An ordinary call, at the end of the run.
    pub fn plain() -> Self {
        Self {
            api: Api::Execute,
            deed: Deed::Pays,
            isolation: Isolation::ReadCommitted,
            mode: Mode::ClaimFirst,
            in_flight: InFlight::Reject,
            variant: 0,
            cancel: None,
            dawdle: Duration::ZERO,
        }
    }
}

/// What happens to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blow {
    /// SIGKILL for this client.
    Kill(usize),
    /// Sessions on the server are terminated; which ones, this number decides.
    Terminate(i32),
    /// The server crashes and recovers.
    Restart,
}

/// The blows, one after the other, each with the pause before it: in each round all of them.
pub fn blows(seed: u64) -> impl Iterator<Item = (Duration, Blow)> {
    rounds(part(seed, &[3]), |rng| {
        let mut round =
            vec![Blow::Kill(rng.usize(0..CLIENTS)), Blow::Kill(rng.usize(0..CLIENTS)), Blow::Restart];
        round.extend((0..4).map(|_| Blow::Terminate(rng.i32(..))));
        round
    })
    .map(|(mut rng, blow)| (millis(&mut rng, 200..900), blow))
}

/// What happens to the connections of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    pub pause: Duration,
    pub fault: Fault,
    pub edge: Edge,
    pub place: Place,
    /// How long it lasts.
    pub hold: Duration,
}

/// At which message it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Commit,
    CommitsAnswer,
    /// So many messages from now.
    Anywhere(u64),
}

/// The disturbances of one client's connections: first each fault once, then rounds with every fault at COMMIT, at its
/// answer, and elsewhere.
pub fn disturbances(seed: u64, client: u64) -> impl Iterator<Item = Disturbance> {
    let mut rng = part(seed, &[4, client]);
    let mut opening = FAULTS.map(|fault| (fault, [Place::Commit, Place::CommitsAnswer][rng.usize(0..2)]));
    // Not the same one for all clients: a short run has them all.
    opening.rotate_left(client as usize % FAULTS.len());
    let opening: Vec<_> = opening.into_iter().map(|disturbance| (rng.fork(), disturbance)).collect();
    let rounds = rounds(rng, |rng| {
        let places = [Place::Commit, Place::CommitsAnswer, Place::Anywhere(rng.u64(0..100))];
        let mut round: Vec<_> = FAULTS.iter().flat_map(|fault| places.map(|place| (*fault, place))).collect();
        // The worst cases: given up, asked about, and committed after that; or committed, expired and purged before.
        round.extend([(Fault::Stall, Place::Commit); 7]);
        round.extend([(Fault::Stall, Place::CommitsAnswer); 3]);
        round
    });
    opening.into_iter().chain(rounds).map(|(mut rng, (fault, place))| Disturbance {
        pause: millis(&mut rng, 50..400),
        fault,
        edge: match place {
            Place::Anywhere(_) if rng.bool() => Edge::After,
            _ => Edge::Before,
        },
        place,
        // Often longer than a COMMIT is waited for and asked about.
        hold: millis(&mut rng, if fault == Fault::Stall { 600..2200 } else { 50..1000 }),
    })
}

const FAULTS: [Fault; 5] =
    [Fault::Cut, Fault::Outage, Fault::BlackHole, Fault::Stall, Fault::Delay(Duration::from_millis(200))];

/// Shuffled rounds without end, each item with a generator of its own.
fn rounds<T>(mut rng: Rng, deal: impl Fn(&mut Rng) -> Vec<T>) -> impl Iterator<Item = (Rng, T)> {
    std::iter::repeat_with(move || {
        let mut round = deal(&mut rng);
        rng.shuffle(&mut round);
        round.into_iter().map(|item| (rng.fork(), item)).collect::<Vec<_>>()
    })
    .flatten()
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

#[test]
fn a_seed_makes_the_same_plan_each_time_and_another_seed_another_one() {
    let plan = |seed| {
        let requests = (0..50).map(|number| {
            let mut request = Request::of(seed, 1, 2, 3, number);
            let tries: Vec<_> = (0..5).map(|_| request.next_try()).collect();
            (request.scope, request.key, request.retention, request.replays, tries)
        });
        let requests: Vec<_> = requests.collect();
        let blows: Vec<_> = blows(seed).take(50).collect();
        let disturbances: Vec<_> = disturbances(seed, 0).take(50).collect();
        (requests, blows, disturbances)
    };
    assert_eq!(plan(42), plan(42));
    assert_ne!(plan(42).0, plan(43).0);
    assert_ne!(plan(42).1, plan(43).1);
    assert_ne!(plan(42).2, plan(43).2);
    let clients = [0, 1].map(|client| disturbances(42, client).take(50).collect::<Vec<_>>());
    assert_ne!(clients[0], clients[1]);
}
