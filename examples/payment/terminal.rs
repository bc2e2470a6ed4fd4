//! How the story looks: 80 columns, and colours only where they are welcome.

use std::env;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use crate::bank::{Account, Books};

const WIDTH: usize = 78;
const LABEL: usize = 12;

const BOLD: &str = "1";
const DIM: &str = "2";
pub const RED: &str = "31";
pub const GREEN: &str = "32";
pub const YELLOW: &str = "33";
pub const CYAN: &str = "36";

/// See <https://no-color.org>.
static COLOUR: LazyLock<bool> = LazyLock::new(|| {
    io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|no_colour| no_colour.is_empty())
});

fn paint(style: &str, text: impl Display) -> String {
    if *COLOUR { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_string() }
}

/// Like `println!`, except that the story goes on when nobody reads it any more (`| head`).
fn print(line: impl Display) {
    let _ = writeln!(io::stdout(), "{line}");
}

pub fn title(text: &str) {
    print(format_args!("\n{}\n{}", paint(BOLD, text), paint(DIM, "═".repeat(WIDTH))));
}

pub fn act(number: u32, title: &str) {
    let heading = paint(BOLD, format_args!("{number}. {title}"));
    print(format_args!("\n{heading}\n{}", paint(DIM, "─".repeat(WIDTH))));
}

pub fn empty_line() {
    print("");
}

/// A paragraph.
pub fn say(text: &str) {
    for line in wrapped(text, WIDTH - 2) {
        print(format_args!("  {line}"));
    }
    empty_line();
}

/// A line that begins with a label.
pub fn line(style: &str, label: &str, text: &str) {
    let mut label = paint(style, format!("{label:LABEL$}"));
    for line in wrapped(text, WIDTH - 2 - LABEL) {
        print(format_args!("  {label}{line}"));
        label = " ".repeat(LABEL);
    }
}

/// What a client sends.
pub fn sends(key: &str, request: &str) {
    line(DIM, "shop sends", &format!("key {key}, {request}"));
}

/// The books, and below them what has changed.
pub fn books(before: &Books, after: &Books) {
    let columns = [
        ("alice", 8, before.alice, after.alice, money as fn(i64) -> String),
        ("bob", 10, before.bob, after.bob, money),
        ("shop", 10, before.shop, after.shop, money),
        ("ledger rows", 14, before.ledger, after.ledger, plain),
        ("keys", 8, before.keys, after.keys, plain),
        ("card calls", 14, before.card_calls, after.card_calls, plain),
    ];
    let [mut names, mut values, mut changes] = [const { String::new() }; 3];
    for (name, width, before, after, show) in columns {
        let change = match after - before {
            0 => String::new(),
            up @ 1.. => format!("+{}", show(up)),
            down => show(down),
        };
        names += &format!("{name:>width$}");
        values += &format!("{:>width$}", show(after));
        changes += &format!("{change:>width$}");
    }
    if before == after {
        changes = " no change".into();
    }
    let (names, values, changes) = (paint(DIM, names), paint(BOLD, values), paint(CYAN, changes.trim_end()));
    print(format_args!("\n  {names}\n  {values}\n  {changes}\n"));
}

/// The accounts, as the ledger explains them.
pub fn accounts(accounts: &[Account], together: &Account) {
    let heads = ["account", "opening", "paid", "received", "balance"].map(str::to_owned);
    print(format_args!("  {}", paint(DIM, row(heads))));
    for account in accounts {
        print(format_args!("  {}", row(cells(account))));
    }
    print(format_args!("  {}\n", paint(BOLD, row(cells(together)))));
}

fn cells(Account { name, opening, paid, received, balance }: &Account) -> [String; 5] {
    [name.clone(), money(*opening), money(-paid), money(*received), money(*balance)]
}

fn row([first, rest @ ..]: [String; 5]) -> String {
    rest.iter().fold(format!("{first:LABEL$}"), |row, cell| row + &format!("{cell:>12}"))
}

/// The last line.
pub fn curtain(text: &str) {
    print(format_args!("  {text}\n"));
}

/// Cents as a person writes them.
pub fn money(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}

fn plain(number: i64) -> String {
    number.to_string()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if lines[last].is_empty() {
            lines[last] = word.to_owned();
        } else if lines[last].chars().count() + 1 + word.chars().count() <= width {
            lines[last] += &format!(" {word}");
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
