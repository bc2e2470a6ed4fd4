//! A folder for temporary files, for children: when they are gone, nothing may be left of them.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Sandbox(PathBuf);

impl Sandbox {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tp-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a folder of our own");
        // As /tmp: whoever runs the server can write into it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).expect("it is ours");
        Self(path.canonicalize().expect("it exists"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The folders of servers.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).expect("it exists").flatten().map(|entry| entry.path()).collect()
    }

    /// The processes that work here.
    pub(crate) fn processes(&self) -> Vec<Process> {
        processes(&self.0.to_string_lossy())
    }

    /// What is there now, of both.
    pub(crate) fn contents(&self) -> Vec<String> {
        let folders = self.folders().into_iter().map(|folder| folder.display().to_string());
        folders.chain(self.processes().into_iter().map(|p| p.to_string())).collect()
    }

    /// Waits until `condition` holds for what is there.
    pub(crate) fn wait_until(&self, what: &str, mut condition: impl FnMut(&[String]) -> bool) -> Duration {
        let begin = Instant::now();
        loop {
            let contents = self.contents();
            if condition(&contents) {
                return begin.elapsed();
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{what}; there is {contents:#?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn wait_until_empty(&self) -> Duration {
        self.wait_until("something stayed behind", |contents| contents.is_empty())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A failing test has said already what was wrong.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) command: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The keeper's command line begins with its whole script.
        let from = self.command.len().saturating_sub(200);
        let end = self.command.get(from..).unwrap_or(&self.command);
        write!(f, "process {}: {end}", self.id)
    }
}

/// The processes whose command line or working directory mentions `text`.
fn processes(text: &str) -> Vec<Process> {
    if Path::new("/proc/self").exists() { from_proc(text) } else { from_ps(text) }
}

fn from_proc(text: &str) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("it exists").flatten();
    let processes = entries.filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let folder = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let mentioned = command.contains(text) || folder.to_string_lossy().contains(text);
        mentioned.then_some(Process { id, command })
    });
    processes.collect()
}

fn from_ps(text: &str) -> Vec<Process> {
    let output = Command::new("ps").args(["-axww", "-o", "pid=,command="]).output();
    let listing = output.expect("ps runs").stdout;
    String::from_utf8_lossy(&listing)
        .lines()
        .filter_map(|line| {
            let (id, command) = line.trim_start().split_once(' ')?;
            let id = id.parse().ok()?;
            command.contains(text).then(|| Process { id, command: command.to_owned() })
        })
        .collect()
}
