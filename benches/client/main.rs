//! What a call costs the client: allocations and CPU of pgonce itself.
//!
//!     cargo bench --bench client               # everything, some minutes
//!     cargo bench --bench client -- table      # allocations and times side by side, some seconds
//!     cargo bench --bench client -- execute    # a whole call, some seconds
//!     cargo bench --bench client -- of_json    # criterion's statistics of some of them (its other options, too)
//!
//! The allocator counts, which adds some nanoseconds to each allocation. `execute` starts a PostgreSQL server of its own.

mod cases;
mod execute;
#[path = "../support/figures.rs"]
mod figures;
mod payload;
mod table;

use criterion::Criterion;

use crate::cases::Group;

fn main() -> anyhow::Result<()> {
    let groups = cases::all();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.first().map(String::as_str) {
        Some("table") => table::print(&groups),
        Some("execute") => execute::print()?,
        Some(_) => measure(&groups),
        None => {
            measure(&groups);
            table::print(&groups);
            execute::print()?;
        }
    }
    Ok(())
}

fn measure(groups: &[Group]) {
    let mut criterion = Criterion::default().configure_from_args();
    for group in groups {
        let mut measured = criterion.benchmark_group(&group.name);
        for case in &group.cases {
            measured.bench_function(case.name, |bencher| bencher.iter(&case.call));
        }
        measured.finish();
    }
    criterion.final_summary();
}
