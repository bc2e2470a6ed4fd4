//! Connection URLs.

use std::fmt::Write;

pub(crate) fn of_server(port: u16, password: &str) -> String {
    format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres")
}

/// `url` with another database.
pub(crate) fn with_database(url: &str, database: &str) -> String {
    let (address, query) = match url.find('?') {
        Some(at) => url.split_at(at),
        None => (url, ""),
    };
    let host = address.find("://").map_or(0, |at| at + "://".len());
    let server = match address[host..].find('/') {
        Some(at) => &address[..host + at],
        None => address,
    };
    format!("{server}/{}{query}", encode(database))
}

fn encode(name: &str) -> String {
    name.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            // Writing to a string does not fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_database_changes() {
        for (url, expected) in [
            ("postgres://u:p@h:1/postgres", "postgres://u:p@h:1/new"),
            ("postgres://u:p@h:1/postgres?sslmode=require&a=b", "postgres://u:p@h:1/new?sslmode=require&a=b"),
            ("postgresql://h", "postgresql://h/new"),
            ("postgres://h?sslmode=disable", "postgres://h/new?sslmode=disable"),
            ("postgres:///old?host=/var/run/postgresql", "postgres:///new?host=/var/run/postgresql"),
        ] {
            assert_eq!(with_database(url, "new"), expected);
        }
    }

    #[test]
    fn a_name_cannot_break_out_of_its_place() {
        assert_eq!(with_database("postgres://h/a", "b/c?d é"), "postgres://h/b%2Fc%3Fd%20%C3%A9");
    }
}
