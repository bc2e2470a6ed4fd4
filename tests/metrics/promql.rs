//! What an expression in PromQL asks for.

use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};

use crate::meter::{Scrape, Series};

/// Of the target that is scraped, not of the metrics.
const OF_THE_TARGET: [&str; 2] = ["job", "instance"];

/// What an expression asks for.
#[derive(Default)]
pub struct Asked {
    pub selectors: Vec<VectorSelector>,
    /// The labels by which something is grouped, with how many of the selectors come before.
    grouped: Vec<(Vec<String>, usize, usize)>,
}

impl Asked {
    /// Panics where it is no PromQL. Grafana's variables are replaced.
    pub fn by(expression: &str) -> Self {
        let expression = expression.replace("$__rate_interval", "5m").replace("$job", ".*");
        let parsed = parser::parse(&expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let mut asked = Self::default();
        walk_expr(&mut asked, &parsed).expect("it never fails");
        asked
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.selectors.iter().filter_map(|selector| selector.name.as_deref())
    }

    /// The labels that its result may have.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.grouped.iter().flat_map(|(labels, ..)| labels.iter().map(String::as_str))
    }

    /// Panics unless everything that it asks for has been emitted: names, labels and their values.
    pub fn assert_emitted(&self, emitted: &Scrape, place: &str) {
        for selector in &self.selectors {
            let name =
                selector.name.as_deref().unwrap_or_else(|| panic!("{place}: a selector without a name"));
            let series: Vec<&Series> = emitted.0.keys().filter(|series| series.name == name).collect();
            assert!(!series.is_empty(), "{place}: {name} is never emitted");
            for matcher in &selector.matchers.matchers {
                assert_label(&series, matcher, place);
            }
        }
        for (labels, from, to) in &self.grouped {
            for selector in &self.selectors[*from..*to] {
                let name = selector.name.as_deref().unwrap_or_default();
                for label in labels.iter().filter(|label| !OF_THE_TARGET.contains(&label.as_str())) {
                    let has = |series: &Series| series.name == name && series.labels.contains_key(label);
                    assert!(emitted.0.keys().any(has), "{place}: {name} has no label {label}");
                }
            }
        }
    }
}

impl ExprVisitor for Asked {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expression: &Expr) -> Result<bool, Self::Error> {
        match expression {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(aggregate) => {
                let mut inside = Self::default();
                walk_expr(&mut inside, &aggregate.expr)?;
                let labels = aggregate.modifier.as_ref().map(|modifier| modifier.labels().labels.clone());
                let from = self.selectors.len();
                self.grouped.push((labels.unwrap_or_default(), from, from + inside.selectors.len()));
            }
            _ => {}
        }
        Ok(true)
    }
}

/// Each value that it names is one that was emitted.
fn assert_label(series: &[&Series], matcher: &Matcher, place: &str) {
    if OF_THE_TARGET.contains(&matcher.name.as_str()) {
        return;
    }
    let values: Vec<_> = match &matcher.op {
        MatchOp::Equal | MatchOp::NotEqual => vec![matcher.value.as_str()],
        MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
    };
    for value in values {
        let is = |series: &&Series| series.labels.get(&matcher.name).is_some_and(|found| found == value);
        let name = &series[0].name;
        assert!(series.iter().any(is), "{place}: {name} is never emitted with {}=\"{value}\"", matcher.name);
    }
}
