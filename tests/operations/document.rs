//! The statements of docs/operations.md, so that the tests run what it says.

use std::path::Path;

/// A file of `docs/`.
pub fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All statements of the runbook's blocks of SQL.
pub fn statements() -> Vec<String> {
    let runbook = read("operations.md");
    let blocks = runbook.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let statements = blocks.flat_map(|block| block.split(';')).map(|statement| {
        statement.lines().map(str::trim_start).collect::<Vec<_>>().join("\n").trim().to_owned()
    });
    statements.filter(|statement| !statement.is_empty()).collect()
}

/// The statements in the runbook's tables and sentences, those with something to be filled in left out.
pub fn inline_statements() -> Vec<String> {
    let runbook = read("operations.md");
    // The blocks have marks of the same kind.
    let prose: String = runbook.split("```").step_by(2).collect();
    let code = prose.split('`').skip(1).step_by(2);
    let statements = code.map(|code| code.split_whitespace().collect::<Vec<_>>().join(" "));
    let is_statement = |code: &String| {
        let begins = ["SELECT ", "UPDATE ", "DELETE ", "ALTER TABLE ", "VACUUM ", "ANALYZE "];
        begins.iter().any(|begin| code.starts_with(begin)) && !code.contains('…') && !code.contains("(pid)")
    };
    statements.filter(is_statement).collect()
}

/// The one that begins with these words.
pub fn statement(begins: &str) -> String {
    let mut found: Vec<String> =
        statements().into_iter().filter(|statement| statement.starts_with(begins)).collect();
    assert_eq!(found.len(), 1, "the runbook has not one {begins}: {found:?}");
    found.remove(0)
}
