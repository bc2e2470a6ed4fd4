//! The statements of docs/operations.md, so that the tests run what it says.

use std::path::Path;

/// A file of `docs/`.
pub fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The statement of the runbook that begins with these words, up to its semicolon.
pub fn statement(begins: &str) -> String {
    let runbook = read("operations.md");
    let mut found = runbook.match_indices(&format!("\n{begins}"));
    let (at, _) = found.next().unwrap_or_else(|| panic!("the runbook has no {begins}"));
    assert_eq!(found.next(), None, "the runbook has more than one {begins}");
    let statement = &runbook[at + 1..];
    statement[..statement.find(';').expect("a semicolon")].to_owned()
}
