//! The label `scope`, which only the user can give: [`Idempotency::with_scope_label`].

use crate::{Idempotency, Scope};

/// What to call a scope in the metrics, if anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScopeLabel(Option<fn(&Scope) -> &str>);

impl ScopeLabel {
    pub(crate) const NONE: Self = Self(None);

    pub(crate) fn of(self, scope: &Scope) -> Option<&str> {
        self.0.map(|label| label(scope))
    }
}

impl Idempotency {
    /// Adds the label `scope` to the metrics of calls, with what this function makes of the scope. By default there is no such
    /// label. Touches nothing in the database.
    ///
    /// Each value that it returns makes a set of time series of its own, for ever: let it return few, the operation and
    /// not the tenant for example.
    ///
    /// ```
    /// # fn example(idempotency: pgonce::Idempotency) {
    /// // acct_42/charges and acct_43/charges are both "charges".
    /// let idempotency = idempotency
    ///     .with_scope_label(|scope| scope.as_str().rsplit('/').next().unwrap_or_default());
    /// # }
    /// ```
    pub fn with_scope_label(mut self, label: fn(&Scope) -> &str) -> Self {
        self.scope_label = ScopeLabel(Some(label));
        self
    }
}
