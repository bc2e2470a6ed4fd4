//! The transaction that is at a key, for people.

use chrono::{DateTime, Utc};

use crate::cli::terminal::{FAINT, Terminal};
use crate::cli::words;
use crate::sql::operations::Holder;

/// Who it is, what it does, and how to end it. Not its statement, which may hold what nobody else is to read.
pub(super) fn describe(holder: &Holder, now: DateTime<Utc>, terminal: &Terminal) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: String| {
        text += &format!("  {}{value}\n", terminal.paint(FAINT, &format!("{name:<13}")));
    };
    let since = holder
        .since
        .map(|since| format!(", for {}", words::span((now - since).to_std().unwrap_or_default())));
    let since = since.unwrap_or_default();
    if let Some(gid) = &holder.prepared {
        let gid = words::sql_string(gid);
        field("held by", format!("the prepared transaction {gid}{since}"));
        field("end it with", format!("COMMIT PREPARED {gid}, or ROLLBACK PREPARED {gid}"));
        return text;
    }
    let Some(pid) = holder.pid else {
        field("held by", format!("a prepared transaction{since}"));
        return text;
    };
    let who: Vec<_> = [
        holder.application.clone(),
        holder.role.as_ref().map(|role| format!("role {role}")),
        holder.client.as_ref().map(|client| format!("from {client}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    field("held by", format!("pid {pid}{}{}{since}", if who.is_empty() { "" } else { ": " }, who.join(", ")));
    match &holder.state {
        Some(state) => {
            let mut doing = state.clone();
            if let Some(at) = holder.state_since {
                doing += &format!(" for {}", words::span((now - at).to_std().unwrap_or_default()));
            }
            if let Some(wait) = &holder.wait {
                doing += &format!(", waits for {wait}");
            }
            field("it is", doing);
        }
        None => field("it is", "not for this role to see: GRANT pg_read_all_stats TO the role".into()),
    }
    if !holder.blocked_by.is_empty() {
        let pids: Vec<_> = holder.blocked_by.iter().map(ToString::to_string).collect();
        field("blocked by", format!("pid {}", pids.join(", ")));
    }
    field("look at it", format!("SELECT query FROM pg_stat_activity WHERE pid = {pid}"));
    if holder.waits_for_a_standby() {
        field("careful", words::WAITS_FOR_A_STANDBY.into());
    } else {
        field(
            "end it with",
            format!("SELECT pg_terminate_backend({pid}) -- undoes its work and frees the key"),
        );
    }
    text
}
