//! What a key costs, against the same payment without one and against what people would take instead:
//!
//!     cargo bench --bench throughput --all-features               # everything, a quarter of an hour
//!     cargo bench --bench throughput --all-features -- fresh      # one of: fresh replay storm mixed latency statements cost
//!     cargo bench --bench throughput --all-features -- --write    # the same, into docs/benchmarks.md and its pictures
//!     cargo bench --bench throughput --all-features -- draw       # the pictures from the tables of docs/benchmarks.md
//!     cargo bench --bench throughput --all-features -- --quick    # everything for a moment, and the budgets; a minute
//!     cargo bench --bench throughput --all-features -- fresh --only unkeyed,byhand,execute --rounds 15
//!
//! It starts PostgreSQL servers of its own, and Redis: `$REDIS_SERVER_BIN`, or the `redis-server` of the path
//! (`apt-get install redis-server`). Without one it leaves Redis out, and without the feature `axum` the layer.
//!
//! It fails when a payment was made twice or not at all, and, with `--quick` or for `cost`, when a call of pgonce's takes
//! more statements, WAL or rows than `budget.rs` allows. It never fails for being slow.

mod budget;
mod business;
mod contender;
mod cpu;
#[path = "../support/figures.rs"]
mod figures;
mod load;
mod plan;
mod plot;
mod proxy;
mod report;
mod rounds;
mod scenario;
mod stage;
mod table;

use std::time::Instant;

use crate::contender::Field;
use crate::contender::redis::RedisServer;
use crate::plan::Plan;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let plan = Plan::of(std::env::args().skip(1))?;
    if plan.draw {
        return plot::draw();
    }
    let redis = RedisServer::start()?.is_some();
    if !redis {
        eprintln!("Without Redis: no redis-server is on the path, and none in $REDIS_SERVER_BIN.");
    }
    let field = Field::of(&plan.only, redis);
    for name in &plan.scenarios {
        let begun = Instant::now();
        let text = scenario::run(name, &plan, &field).await?;
        eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
        println!("\n## {name}\n\n{text}");
        if plan.write {
            report::write(name, &text)?;
        }
    }
    if plan.write && !cfg!(feature = "durare") {
        plot::draw()?;
    }
    Ok(())
}
