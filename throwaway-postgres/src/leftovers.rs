//! Folders whose keeper was killed, or died with the machine. The next start removes them.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::folder::{Door, Folder, same};

/// Removes what dead keepers left in `parent` under names that begin with `name`, if it belongs
/// to `owner`. Failures are nobody's concern: the next one may be luckier.
pub(crate) fn sweep(parent: &Path, name: &str, owner: u32) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(name) {
            remove_if_dead(&Folder::new(entry.path()), owner);
        }
    }
}

/// Removes a folder when it is certain that its keeper is dead.
pub(crate) fn remove_if_dead(folder: &Folder, owner: u32) {
    // Two processes may have seen the same dead folder. Without the lock, the slower one would
    // remove the new server that the faster one has already put in its place.
    let Ok(handle) = File::open(folder.path()) else { return };
    if handle.try_lock().is_err() {
        return;
    }
    match (handle.metadata(), fs::symlink_metadata(folder.path())) {
        (Ok(ours), Ok(there)) if same(&ours, &there) && there.uid() == owner => {}
        _ => return,
    }
    if !matches!(folder.look(), Ok(Door::Abandoned)) {
        return;
    }
    stop_orphan(folder);
    let mut grave = folder.path().as_os_str().to_owned();
    grave.push(format!(".dead-{}", std::process::id()));
    if fs::rename(folder.path(), &grave).is_ok() {
        // A server that is just ending may still write into it.
        for _ in 0..100 {
            if fs::remove_dir_all(&grave).is_ok() || !Path::new(&grave).exists() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Somebody killed the keeper, but not its server.
fn stop_orphan(folder: &Folder) {
    if let Some(container) = folder.first_line("container") {
        let _ = silent(Command::new("docker").args(["rm", "-f", "-v", &container]));
    }
    if let Some(process) = folder.first_line("data/postmaster.pid")
        && process.parse::<u32>().is_ok()
        && command_line(&process).contains(&*folder.path().to_string_lossy())
    {
        let _ = silent(Command::new("/bin/sh").args(["-c", "kill -QUIT \"$0\"", &process]));
    }
}

fn silent(command: &mut Command) -> std::io::Result<std::process::ExitStatus> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
}

/// Empty when there is no such process. (After a restart of the machine its number may have gone
/// to another one.)
fn command_line(process: &str) -> String {
    let text = match fs::read(format!("/proc/{process}/cmdline")) {
        Ok(text) => text,
        Err(_) => match Command::new("ps").args(["-p", process, "-o", "command="]).output() {
            Ok(output) => output.stdout,
            Err(_) => return String::new(),
        },
    };
    String::from_utf8_lossy(&text).into_owned()
}
