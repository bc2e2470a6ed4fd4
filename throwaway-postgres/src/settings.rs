/// How a server is configured.
///
/// The default is [`Settings::fast`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    durable: bool,
    extra: Vec<(String, String)>,
}

impl Settings {
    /// Nothing waits for the disk: `fsync` and `full_page_writes` are off. Everything else is as
    /// in a real server, `synchronous_commit` too.
    pub fn fast() -> Self {
        Self { durable: false, extra: Vec::new() }
    }

    /// What was committed survives a crash of the server.
    pub fn durable() -> Self {
        Self { durable: true, extra: Vec::new() }
    }

    /// One more setting, as `-c name=value` on the server's command line. The last one of a name
    /// counts.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.extra.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn is_durable(&self) -> bool {
        self.durable
    }

    /// The server's arguments, valid for every supported version.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let safe = if self.durable { "on" } else { "off" };
        let standard = [
            ("fsync", safe),
            ("full_page_writes", safe),
            ("synchronous_commit", "on"),
            ("shared_buffers", "64MB"),
            ("max_connections", "300"),
            ("max_prepared_transactions", "10"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
        ];
        let extra = self.extra.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        standard
            .into_iter()
            .chain(extra)
            .flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")])
            .collect()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::fast()
    }
}
