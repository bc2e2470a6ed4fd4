//! Tables, as they stand in `docs/benchmarks.md`.

use crate::contender::Contender;
use crate::figures::{median, spread};
use crate::load::Load;
use crate::rounds::Rounds;

/// Throughput, against these, times, and what it computes.
pub fn of_loads(title: &str, rounds: &Rounds<Load>, against: &[(Contender, &str)]) -> String {
    let mut text = format!("{title}; {} rounds.\n\n| | per second |", rounds.count());
    for (_, name) in against {
        text += &format!(" against {name} |");
    }
    text += " p50, ms | p99, ms | client's CPU, µs | servers' CPU, µs |\n| --- |";
    text += &" --- |".repeat(against.len() + 5);
    text.push('\n');
    for (n, contender) in rounds.contenders.iter().enumerate() {
        text += &format!("| {} | {} |", contender.title(), spread(rounds.each(n, |load| load.per_second), 0));
        for (other, _) in against {
            text += &format!(" {} |", ratio(rounds, n, *other, |load| load.per_second));
        }
        text += &format!(
            " {:.2} | {:.2} | {} | {} |\n",
            median(rounds.each(n, |load| load.p50)),
            median(rounds.each(n, |load| load.p99)),
            cpu(rounds.each(n, |load| load.client.unwrap_or(f64::NAN))),
            cpu(rounds.each(n, |load| load.servers.unwrap_or(f64::NAN))),
        );
    }
    text
}

/// Against the other one, of the same round.
pub fn ratio<T>(rounds: &Rounds<T>, n: usize, other: Contender, figure: impl Fn(&T) -> f64) -> String {
    match rounds.against(n, other, figure) {
        Some(_) if rounds.contenders[n] == other => "1".into(),
        Some(ratios) => spread(ratios, 2),
        None => "–".into(),
    }
}

fn cpu(microseconds: Vec<f64>) -> String {
    let middle = median(microseconds);
    if middle.is_nan() { "–".into() } else { format!("{middle:.0}") }
}
