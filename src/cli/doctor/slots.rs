//! Replication slots: they keep WAL on the disk, and dead rows in the tables, for a reader who may never come back.

use super::Check;
use crate::cli::exit::Failure;
use crate::cli::session::Session;
use crate::cli::words;
use crate::sql::operations::{self, Slot};

/// A reader who is at it may be so many transactions behind, as a long query on a standby is.
const TOLERATED_AGE: i64 = 1_000_000;

/// And so much WAL.
const TOLERATED_WAL: i64 = 10 * 1024 * 1024 * 1024;

pub(super) async fn checks(session: &mut Session) -> Result<Vec<Check>, Failure> {
    let mut transaction = session.read().await?;
    let slots = operations::slots(&mut transaction).await?;
    transaction.rollback().await?;
    let mut checks: Vec<_> = slots.iter().filter_map(judge).collect();
    if checks.is_empty() {
        let says = match slots.len() {
            0 => "there are no replication slots".to_owned(),
            1 => "the replication slot there is holds little back".to_owned(),
            count => format!("none of {count} replication slots holds much back"),
        };
        checks.push(Check::ok("slots", says));
    }
    Ok(checks)
}

fn judge(slot: &Slot) -> Option<Check> {
    let Slot { name, active_pid, rows, catalogs, wal } = slot;
    let holds: Vec<_> = [
        rows.map(|age| format!("the vacuum of all tables by {} transactions", words::number(age))),
        catalogs.map(|age| format!("the vacuum of the catalogs by {} transactions", words::number(age))),
        wal.map(|bytes| format!("{} of WAL", words::bytes(bytes))),
    ]
    .into_iter()
    .flatten()
    .collect();
    if [rows, catalogs, wal].iter().all(|held| held.unwrap_or_default() <= 0) {
        return None;
    }
    let holds = holds.join(", ");
    let Some(pid) = active_pid else {
        return Some(Check::warning(
            "slots",
            format!("nobody reads the replication slot {name}, and it holds back {holds}"),
            format!(
                "SELECT pg_drop_replication_slot({}); -- unless its reader comes back",
                words::sql_string(name)
            ),
        ));
    };
    let age = (*rows).max(*catalogs);
    (age > Some(TOLERATED_AGE) || *wal > Some(TOLERATED_WAL)).then(|| {
        Check::warning(
            "slots",
            format!("the reader of the replication slot {name} is far behind, and it holds back {holds}"),
            format!(
                "SELECT * FROM pg_stat_replication WHERE pid = {pid}; -- it is slow, or a query on a standby is long"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(slot: &Slot) -> Option<String> {
        judge(slot).map(|check| format!("{} {}", check.message, check.fix.unwrap_or_default()))
    }

    #[test]
    fn a_slot_that_nobody_reads_is_named_with_all_that_it_holds() {
        let name = || "old".to_owned();
        let nothing = Slot { name: name(), rows: Some(0), wal: Some(0), ..Slot::default() };
        assert_eq!(says(&nothing), None, "it holds nothing");
        let slot =
            Slot { name: name(), rows: Some(1234), catalogs: Some(7), wal: Some(2048), ..Slot::default() };
        assert_eq!(
            says(&slot).unwrap(),
            "nobody reads the replication slot old, and it holds back the vacuum of all tables by 1,234 transactions, the \
             vacuum of the catalogs by 7 transactions, 2.0 KiB of WAL SELECT pg_drop_replication_slot('old'); -- unless its \
             reader comes back"
        );
    }

    #[test]
    fn a_reader_may_be_a_little_behind() {
        let slot = |rows, catalogs, wal| Slot {
            name: "standby".into(),
            active_pid: Some(4711),
            rows: Some(rows),
            catalogs: Some(catalogs),
            wal: Some(wal),
        };
        assert_eq!(says(&slot(TOLERATED_AGE, TOLERATED_AGE, TOLERATED_WAL)), None);
        for behind in
            [slot(TOLERATED_AGE + 1, 0, 0), slot(0, TOLERATED_AGE + 1, 0), slot(0, 0, TOLERATED_WAL + 1)]
        {
            let said = says(&behind).unwrap();
            assert!(said.contains("standby is far behind") && said.contains("pid = 4711"), "{said}");
        }
    }
}
