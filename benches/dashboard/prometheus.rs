//! A Prometheus of our own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// Scrapes us, until it is dropped.
pub struct Prometheus {
    child: Child,
    url: String,
    folder: std::path::PathBuf,
}

pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl Prometheus {
    pub fn start(port: u16, rules: &Path) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("pgonce-dashboard-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let config = folder.join("prometheus.yml");
        std::fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  \
                 - job_name: payments\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n",
                rules.display()
            ),
        )?;
        // Free a moment ago.
        let own = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let program = std::env::var("PROMETHEUS_BIN").unwrap_or_else(|_| "prometheus".into());
        let child = Command::new(&program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={own}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("cannot start {program}: install Debian's package prometheus, or set PROMETHEUS_BIN")
            })?;
        Ok(Self { child, url: format!("http://{own}/api/v1"), folder })
    }

    /// Waits until it has scraped us.
    pub async fn answers(&self) -> anyhow::Result<()> {
        for _ in 0..300 {
            if let Ok(found) = self.get("query", &[("query", "up == 1")]).await
                && found["result"].as_array().is_some_and(|up| !up.is_empty())
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("Prometheus has not scraped anything for half a minute")
    }

    /// The series of an expression, with a value for each second.
    pub async fn range(&self, expression: &str, from: f64, to: f64) -> anyhow::Result<Vec<Value>> {
        let (from, to) = (from.to_string(), to.to_string());
        let query = [("query", expression), ("start", &from), ("end", &to), ("step", "1")];
        let found = self.get("query_range", &query).await.with_context(|| expression.to_owned())?;
        Ok(found["result"].as_array().cloned().unwrap_or_default())
    }

    pub async fn alerts(&self) -> anyhow::Result<Vec<String>> {
        let found = self.get("alerts", &[]).await?;
        let alerts = found["alerts"].as_array().cloned().unwrap_or_default();
        Ok(alerts
            .iter()
            .filter_map(|alert| Some(alert["labels"]["alertname"].as_str()?.to_owned()))
            .collect())
    }

    async fn get(&self, what: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let url = format!("{}/{what}", self.url);
        let answer: Value = reqwest::Client::new().get(url).query(query).send().await?.json().await?;
        ensure!(answer["status"] == "success", "Prometheus says: {}", answer["error"]);
        Ok(answer["data"].clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
