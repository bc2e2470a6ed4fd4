//! What a call of pgonce's may take, business included: `cargo bench --bench throughput -- --quick` fails when it takes more.
//!
//! A figure that has become smaller is to be lowered here, so that it stays so.

use anyhow::bail;

use crate::contender::Contender::{self, *};
use crate::scenario::cost::{Cost, Form};
use Form::*;

/// Most messages, bytes of WAL, and versions of rows: written, and dead.
type Most = (f64, f64, f64, f64);

const BUDGETS: &[(Contender, Form, Most)] = &[
    (Execute, Fresh, (8.0, 950.0, 4.0, 2.0)),
    (Execute, Replay, (6.0, 0.0, 0.0, 0.0)),
    (Optimistic, Fresh, (7.0, 768.0, 3.0, 1.0)),
    // The closure in vain, and a look.
    (Optimistic, Replay, (11.0, 592.0, 3.0, 1.0)),
    (LookFirst, Fresh, (9.0, 966.0, 4.0, 2.0)),
    (LookFirst, Replay, (3.0, 0.0, 0.0, 0.0)),
    (Recording, Fresh, (9.0, 976.0, 4.0, 2.0)),
    (Recording, Replay, (6.0, 0.0, 0.0, 0.0)),
    (Serializable, Fresh, (8.0, 1024.0, 4.0, 2.0)),
    (Serializable, Replay, (6.0, 0.0, 0.0, 0.0)),
    (Hardened, Fresh, (8.0, 950.0, 4.0, 2.0)),
    (Hardened, Replay, (6.0, 0.0, 0.0, 0.0)),
    (ExecuteIn, Fresh, (10.0, 1032.0, 4.0, 2.0)),
    (ExecuteIn, Replay, (8.0, 0.0, 0.0, 0.0)),
    (Claim, Fresh, (8.0, 952.0, 4.0, 2.0)),
    (Claim, Replay, (6.0, 0.0, 0.0, 0.0)),
    // The last message ends an empty transaction while the caller has its answer already.
    (Process, Fresh, (8.0, 762.0, 3.0, 1.0)),
    (Process, Replay, (6.0, 0.0, 0.0, 0.0)),
    // Of each message.
    (Batch(100), Fresh, (2.06, 734.0, 3.0, 1.0)),
    (Batch(100), Replay, (0.06, 0.0, 0.0, 0.0)),
    (Layer, Fresh, (9.0, 1054.0, 4.0, 2.0)),
    (Layer, Replay, (6.0, 0.0, 0.0, 0.0)),
];

/// Of the bytes. Pages split now and then.
const MARGIN: f64 = 1.1;

/// Bytes of a payment that may be nobody's: the server writes some by itself, now and then. Whoever writes, writes more.
const NOISE: f64 = 1.0;

/// Counted exactly, and rounded in the table above.
const ROUNDED: f64 = 0.005;

/// Names everything that has grown.
pub fn check(costs: &[Cost]) -> anyhow::Result<()> {
    let mut grown = Vec::new();
    for cost in costs.iter().filter(|cost| cost.contender.is_ours()) {
        let Cost { contender, form, .. } = *cost;
        let name = format!("{}, {form:?}", contender.title());
        let Some((_, _, most)) = BUDGETS.iter().find(|budget| (budget.0, budget.1) == (contender, form))
        else {
            grown.push(format!("{name}: no budget; it takes {cost:?}"));
            continue;
        };
        // What is sent without waiting for the answer, a replay's ROLLBACK, is now and then a message of its own. (A batch's are few, and
        // divided by its hundred.)
        let own = if matches!((contender, form), (Batch(_), _) | (_, Fresh)) { ROUNDED } else { 0.05 };
        let figures = [
            ("messages", cost.messages, most.0, 1.0, own),
            ("bytes of WAL", cost.wal, most.1, MARGIN, NOISE),
            ("row versions", cost.rows, most.2, 1.0, ROUNDED),
            ("dead row versions", cost.dead, most.3, 1.0, ROUNDED),
        ];
        for (what, is, most, margin, more) in figures {
            if is > most * margin + more {
                grown.push(format!("{name}: {is:.2} {what}, and the budget is {most}"));
            } else if is * margin < most - more {
                eprintln!("{name}: {is:.2} {what}; the budget, {most}, could be lowered");
            }
        }
    }
    if !grown.is_empty() {
        bail!("more than its budget in benches/throughput/budget.rs:\n{}", grown.join("\n"));
    }
    Ok(())
}
