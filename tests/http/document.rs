//! `docs/http.md` says what is so.

use std::collections::BTreeSet;
use std::path::Path;

use pgonce::http::{IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_EXPIRES, IDEMPOTENT_REPLAYED, KEPT_HEADERS};

use crate::problems::KINDS;

const DOCUMENT: &str = include_str!("../../docs/http.md");

/// What stands between backticks, in lines that begin with this.
fn quoted<'a>(document: &'a str, start: &str) -> impl Iterator<Item = &'a str> {
    let lines = document.lines().filter(move |line| line.starts_with(start));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_kind_of_problem_has_its_heading() {
    for (kind, name, status, title) in KINDS {
        // The heading is the target of the `type` URI, so it is the name and nothing else.
        let section =
            DOCUMENT.split_once(&format!("\n## {name}\n\n")).unwrap_or_else(|| panic!("no {kind:?}")).1;
        assert!(section.starts_with(&format!("**{status} {title}.**")), "{name}");
    }
}

#[test]
fn the_kept_headers_are_listed() {
    let list =
        DOCUMENT.split_once("<!-- kept headers -->\n\n").unwrap().1.split_once("\n\n<!-- end -->").unwrap().0;
    let listed: BTreeSet<_> = quoted(list, "`").map(str::to_ascii_lowercase).collect();
    assert_eq!(listed, KEPT_HEADERS.iter().map(|name| name.to_string()).collect());
    for name in [IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED, IDEMPOTENCY_KEY_EXPIRES] {
        assert!(DOCUMENT.to_ascii_lowercase().contains(&format!("| `{name}` |")), "{name}");
    }
}

/// The tests of one file, as `file::test`.
fn tests_in(file: &Path) -> Vec<String> {
    let module = file.file_stem().unwrap().to_str().unwrap();
    let source = std::fs::read_to_string(file).unwrap();
    let (mut tests, mut marked) = (Vec::new(), false);
    for line in source.lines().map(str::trim_start) {
        let function =
            line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        if let (true, Some(name)) = (marked, function) {
            tests.push(format!("{module}::{name}"));
        }
        // Attributes may stand between.
        marked = line.starts_with("#[test]")
            || line.starts_with("#[tokio::test")
            || marked && line.starts_with("#[");
    }
    tests
}

#[test]
fn every_test_that_is_named_exists_and_none_is_missing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let exist: BTreeSet<_> = files.flat_map(|file| tests_in(&file)).collect();
    let conformance =
        DOCUMENT.split_once("\n## Conformance\n").unwrap().1.split_once("\n## Cost\n").unwrap().0;
    let last_cells = conformance.lines().filter_map(|row| row.strip_suffix(" |")?.rsplit_once("| "));
    let mut named = BTreeSet::new();
    for (_, cell) in last_cells.filter(|(_, cell)| !["test", "---"].contains(cell)) {
        let tests: Vec<_> = cell.split(", ").map(|test| test.trim_matches('`').to_owned()).collect();
        named.extend(tests);
    }
    assert!(named.len() > 50);
    let strangers: Vec<_> = named.difference(&exist).collect();
    assert!(strangers.is_empty(), "no tests: {strangers:#?}");
    let missing: Vec<_> = exist.difference(&named).collect();
    assert!(missing.is_empty(), "not in the document: {missing:#?}");
}
