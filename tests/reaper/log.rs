//! What the reaper logs on a test's own thread, on which it runs as well.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Once;
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Begins to listen. One listener for the whole process: those that come and go miss events of each other's tests.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Registry::default().with(Listener)).unwrap());
}

/// How many events had this text since the test began.
pub fn count(text: &str) -> usize {
    LOG.with_borrow(|log| log.iter().filter(|line| line.contains(text)).count())
}

/// Waits until so many events had this text.
pub async fn wait_for(events: usize, text: &str) {
    let started = std::time::Instant::now();
    while count(text) < events {
        assert!(started.elapsed() < Duration::from_secs(30), "never logged: {text}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Listener;

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("pgonce::") {
            let mut line = String::new();
            event.record(&mut Fields(&mut line));
            LOG.with_borrow_mut(|log| log.push(line));
        }
    }
}
