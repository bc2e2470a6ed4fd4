//! What the processes have computed, to the nanosecond where Linux tells. Elsewhere there is nothing.

use std::fs;

/// Seconds on a processor since some moment: of this process, and of the servers.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    pub client: f64,
    pub servers: f64,
}

/// Whose time counts as the servers'.
#[derive(Clone, Debug)]
pub struct Servers {
    /// PostgreSQL's first process. All others are its children.
    pub postmaster: u32,
    pub redis: Option<u32>,
}

impl Servers {
    /// PostgreSQL's, by one of its children; none when that is in a container, or not on Linux.
    pub fn of(backend: i32, redis: Option<u32>) -> Option<Self> {
        let postmaster = parent(&backend.to_string())?;
        let command = fs::read_to_string(format!("/proc/{postmaster}/comm")).ok()?;
        command.starts_with("postgres").then_some(Self { postmaster, redis })
    }

    /// What each has computed until now. Whoever has ended takes its share away: no session may end in between.
    pub fn now(&self) -> Option<Cpu> {
        let mut servers = 0.0;
        for entry in fs::read_dir("/proc").ok()?.flatten() {
            let name = entry.file_name();
            let Some(process) = name.to_str().filter(|name| name.as_bytes()[0].is_ascii_digit()) else {
                continue;
            };
            let number: u32 = process.parse().ok()?;
            if Some(number) == self.redis || parent(process) == Some(self.postmaster) {
                servers += seconds(number).unwrap_or(0.0);
            }
        }
        Some(Cpu { client: seconds(std::process::id())?, servers })
    }
}

fn parent(process: &str) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may have spaces in it.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Of all its threads.
fn seconds(process: u32) -> Option<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten() {
        // One that ends meanwhile.
        let Ok(statistics) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
        nanoseconds += statistics.split(' ').next()?.parse::<f64>().ok()?;
    }
    Some(nanoseconds / 1e9)
}
