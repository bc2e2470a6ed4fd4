//! What is logged on a test's own thread, on which its server runs as well.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Once;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

thread_local! {
    static HEARD: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Begins to listen: to every span and event with its fields, of all crates, at all levels.
pub fn listen() {
    static ONCE: Once = Once::new();
    // Not `set_default`: callsites that another thread meets first would stay silent.
    ONCE.call_once(|| tracing::subscriber::set_global_default(Registry::default().with(Listener)).unwrap());
    HEARD.set(Some(String::new()));
}

/// What was logged since then.
pub fn heard() -> String {
    HEARD.take().expect("`listen` comes first")
}

struct Listener;

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

fn line(target: &str, record: impl FnOnce(&mut Fields<'_>)) {
    HEARD.with_borrow_mut(|heard| {
        if let Some(text) = heard {
            text.push_str(target);
            record(&mut Fields(text));
            text.push('\n');
        }
    });
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        line(attributes.metadata().target(), |fields| attributes.record(fields));
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        line("recorded", |fields| values.record(fields));
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        line(event.metadata().target(), |fields| event.record(fields));
    }
}
