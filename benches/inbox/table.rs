//! The result, as a table for `docs/inbox.md`.

use crate::figures::spread;
use crate::variant::Variant;
use crate::{CONSUMERS, Round};

pub fn of(title: &str, rounds: &[Round]) -> String {
    let mut text = format!(
        "{CONSUMERS} consumers, {} rounds; {title}. Median (least to most).\n\n\
         | | messages/s | against no inbox | against `process` |\n| --- | --- | --- | --- |\n",
        rounds.len()
    );
    for (n, variant) in Variant::ALL.into_iter().enumerate() {
        // Of the same round, so that what else runs on the machine falls on both.
        let against = |other: Option<Variant>| {
            let place = other.and_then(|other| Variant::ALL.iter().position(|variant| *variant == other));
            place.map_or(String::new(), |other| {
                spread(rounds.iter().map(|round| round[n] / round[other]).collect(), 2)
            })
        };
        let batch = matches!(variant, Variant::Batch(..)).then_some(Variant::Single);
        text += &format!(
            "| {} | {} | {} | {} |\n",
            variant.title(),
            spread(rounds.iter().map(|round| round[n]).collect(), 0),
            against(variant.baseline()),
            against(batch),
        );
    }
    text
}
