//! Times, sizes and numbers as people read them; and no passwords.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// Why a session is not to be ended, and what to do instead.
pub(super) const WAITS_FOR_A_STANDBY: &str =
    "do not end it: its COMMIT waits for a standby (docs/failover.md)";

/// The two largest units: `3 h 25 min`.
pub(super) fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "min"), (1, "s")];
    let seconds = span.as_secs();
    let Some(largest) = UNITS.iter().position(|(size, _)| seconds >= *size) else {
        return format!("{} ms", span.as_millis());
    };
    let (size, name) = UNITS[largest];
    let mut text = format!("{} {name}", seconds / size);
    if let Some((smaller, name)) = UNITS.get(largest + 1) {
        let rest = seconds % size / smaller;
        // Nobody wants to know the hours of a month.
        if rest > 0 && seconds / size < 10 {
            text += &format!(" {rest} {name}");
        }
    }
    text
}

/// `3 h ago`, `in 21 h`, `just now`.
pub(super) fn relative(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    match ((now - at).to_std(), (at - now).to_std()) {
        (Ok(ago), _) if ago < Duration::from_secs(1) => "just now".into(),
        (Ok(ago), _) => format!("{} ago", span(ago)),
        (_, Ok(ahead)) => format!("in {}", span(ahead)),
        _ => String::new(),
    }
}

pub(super) fn absolute(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `1.4 MiB`.
pub(super) fn bytes(bytes: i64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

/// With separators: `12,345,678`.
pub(super) fn number(number: impl Into<i128>) -> String {
    let digits = number.into().to_string();
    let first = digits.len() % 3;
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && at % 3 == first {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 key`, `2 keys`.
pub(super) fn keys(count: impl Into<i128> + Copy) -> String {
    format!("{} key{}", number(count), if count.into() == 1 { "" } else { "s" })
}

/// `'it''s'`, for a statement that is to be pasted.
pub(super) fn sql_string(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// As PostgreSQL's `quote_ident`, for a statement that is to be pasted. Quotes a little more than is needed.
pub(super) fn identifier(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// As an argument that is to be pasted into a shell.
pub(super) fn argument(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Without the password of any URL in it, however it got there.
pub(super) fn without_passwords(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, address) = rest.split_at(at + "://".len());
        safe += before;
        let end = address.find(|c: char| c.is_whitespace() || "'\"`".contains(c)).unwrap_or(address.len());
        let (url, after) = address.split_at(end);
        match url.rfind('@').and_then(|at| Some((url[..at].find(':')?, at))) {
            Some((colon, at)) => safe.extend([&url[..colon], ":***", &without_parameter(&url[at..])]),
            None => safe += &without_parameter(url),
        }
        rest = after;
    }
    safe + rest
}

/// `?password=…`, as libpq's URLs may have it.
fn without_parameter(url: &str) -> String {
    let Some((before, after)) = url.split_once("password=") else { return url.to_owned() };
    let end = after.find('&').unwrap_or(after.len());
    format!("{before}password=***{}", &after[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0 ms"),
            (59, "59 s"),
            (60, "1 min"),
            (3 * 3600 + 25 * 60 + 7, "3 h 25 min"),
            (21 * 3600 + 59, "21 h"),
            (86400 + 3600, "1 d 1 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!(span(Duration::from_millis(120)), "120 ms");
    }

    #[test]
    fn numbers_and_sizes_are_readable() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1023, 1024, 1_500_000].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.4 MiB"]);
        assert_eq!([1, 2].map(keys), ["1 key", "2 keys"]);
    }

    #[test]
    fn what_is_to_be_pasted_is_quoted() {
        assert_eq!(argument("acct_42/charges"), "acct_42/charges");
        assert_eq!(argument("it's;rm"), r"'it'\''s;rm'");
        assert_eq!(sql_string("it's"), "'it''s'");
        assert_eq!(["app_1", "App", "a\"b"].map(identifier), ["app_1", "\"App\"", "\"a\"\"b\""]);
    }

    #[test]
    fn no_password_is_left() {
        for (text, safe) in [
            ("no url", "no url"),
            ("postgres://host/db", "postgres://host/db"),
            ("'postgres://app:secret@host/db' is", "'postgres://app:***@host/db' is"),
            ("postgres://app:s@cret@host/db", "postgres://app:***@host/db"),
            ("postgres:///db?user=a&password=secret&x=1 y", "postgres:///db?user=a&password=***&x=1 y"),
        ] {
            assert_eq!(without_passwords(text), safe);
        }
    }
}
