//! The metrics: each call is counted once, with what it came to; and what the documents say is what the code emits.

#[path = "../support/mod.rs"]
mod support;

mod batches;
mod commits;
mod documents;
mod dropped;
mod durations;
mod keys;
mod meter;
mod modes;
mod outcomes;
mod promql;
mod requests;

use std::pin::Pin;

use meter::Meter;

/// Something that is counted.
type Scenario = for<'m> fn(&'m Meter) -> Pin<Box<dyn Future<Output = ()> + 'm>>;

/// Scenarios of a file: a test runs them, and another one runs those of all files, for what is to be true of all.
macro_rules! scenarios {
    ($test:ident: $($name:ident),+ $(,)?) => {
        pub const ALL: &[crate::Scenario] = &[$(|meter| Box::pin($name(meter))),+];

        #[tokio::test]
        async fn $test() {
            let meter = crate::meter::Meter::start();
            for scenario in ALL {
                scenario(&meter).await;
            }
        }
    };
}
pub(crate) use scenarios;

/// Everything that there is, with one recorder.
async fn everything(meter: &Meter) {
    let all = [
        outcomes::ALL,
        modes::ALL,
        batches::ALL,
        commits::ALL,
        requests::ALL,
        durations::ALL,
        keys::ALL,
        dropped::ALL,
    ];
    for scenario in all.into_iter().flatten() {
        scenario(meter).await;
    }
}
