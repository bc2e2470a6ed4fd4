//! The table for `docs/client-cost.md`: allocations, and times that are compared within one round.

use std::hint::black_box;
use std::time::Instant;

use crate::cases::{Case, Group};
use crate::figures::median;

const ROUNDS: usize = 301;

pub fn print(groups: &[Group]) {
    for group in groups {
        println!("{}", of(group));
    }
}

fn of(group: &Group) -> String {
    let against = if group.is_compared { " against the first |" } else { "" };
    let rule = if group.is_compared { " --- |" } else { "" };
    let mut text =
        format!("| {} | allocations | bytes | ns |{against}\n| --- | --- | --- | --- |{rule}\n", group.name);
    let rounds = rounds(&group.cases);
    for (n, case) in group.cases.iter().enumerate() {
        let allocated = allocation_counter::measure(&case.call);
        let time = median(rounds.iter().map(|round| round[n]).collect());
        text +=
            &format!("| {} | {} | {} | {time:.0} |", case.name, allocated.count_total, allocated.bytes_total);
        if group.is_compared {
            text += &format!(" {} |", quartiles(rounds.iter().map(|round| round[n] / round[0]).collect()));
        }
        text.push('\n');
    }
    text
}

/// The median, and what half of the rounds lie between: single rounds are interrupted.
fn quartiles(mut of: Vec<f64>) -> String {
    of.sort_by(f64::total_cmp);
    let at = |quarter: usize| of[(of.len() - 1) * quarter / 4];
    format!("{:.2} ({:.2} to {:.2})", at(2), at(1), at(3))
}

/// Nanoseconds of each case, in each round. A round is so short that it mostly has a core for itself.
fn rounds(cases: &[Case]) -> Vec<Vec<f64>> {
    let calls: Vec<u32> = cases.iter().map(calls_in_a_turn).collect();
    let round = || cases.iter().zip(&calls).map(|(case, calls)| nanoseconds(case, *calls)).collect();
    (0..ROUNDS).map(|_| round()).collect()
}

/// A fifth of a millisecond.
fn calls_in_a_turn(case: &Case) -> u32 {
    let once = nanoseconds(case, 100);
    (200_000. / once).ceil() as u32
}

fn nanoseconds(case: &Case, calls: u32) -> f64 {
    let begun = Instant::now();
    for _ in 0..calls {
        black_box(&case.call)();
    }
    begun.elapsed().as_nanos() as f64 / f64::from(calls)
}
