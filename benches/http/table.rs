//! The result, as a table for `docs/http.md`.

use crate::app::Variant;
use crate::figures::{median, spread};
use crate::load::{CONNECTIONS, Load};

pub fn of(title: &str, rounds: &[[Load; 4]]) -> String {
    let mut text = format!(
        "{CONNECTIONS} connections, {} rounds; {title}. Median (least to most).\n\n\
         | | requests/s | against (a) | p50, ms | p99, ms |\n| --- | --- | --- | --- | --- |\n",
        rounds.len()
    );
    for (n, variant) in Variant::ALL.into_iter().enumerate() {
        let each = |measure: &dyn Fn(&[Load; 4]) -> f64| rounds.iter().map(measure).collect::<Vec<_>>();
        let ratio = match variant {
            Variant::Plain => "1".into(),
            // Of the same round, so that what else runs on the machine falls on both.
            _ => spread(each(&|round| round[n].per_second() / round[0].per_second()), 2),
        };
        text += &format!(
            "| {} | {} | {ratio} | {:.1} | {:.1} |\n",
            variant.title(),
            spread(each(&|round| round[n].per_second()), 0),
            median(each(&|round| round[n].p50 / 1e3)),
            median(each(&|round| round[n].p99 / 1e3)),
        );
    }
    text
}
