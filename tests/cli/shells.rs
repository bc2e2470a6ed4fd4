//! Help, completions and the manual.

use std::process::{Command, Stdio};

use tempfolder::Folder;

use crate::scene::{program, said};

const COMMANDS: [&str; 10] =
    ["doctor", "show", "list", "stats", "evict", "evictions", "purge", "migrate", "completions", "man"];

async fn alone(args: &[&str]) -> crate::scene::Said {
    said(program(args).output().await.unwrap()).ending(0)
}

/// Whether the program takes this input without a word (groff ends well whatever it has to complain about). None when it is
/// not installed: then the test has shown nothing of it. `.ci/run tests` installs zsh, fish and groff where it can, and warns
/// where it cannot.
fn accepts(program: &str, args: &[&str], input: &str) -> Option<bool> {
    use std::io::Write;
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.ok()?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some(output.status.success() && output.stderr.is_empty())
}

#[tokio::test]
async fn the_help_is_as_it_was() {
    let mut help = alone(&["--help"]).await.out;
    for command in COMMANDS {
        help += &format!("\n=== pgonce {command} ===\n\n{}", alone(&[command, "--help"]).await.out);
    }
    // Trailing spaces are an accident of the wrapping.
    let help: String = help.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/cli_help.txt");
    if std::env::var_os("PGONCE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &help).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        help, expected,
        "scripts depend on it: run this test with PGONCE_UPDATE_SNAPSHOTS=1 if that is what you want"
    );
}

#[tokio::test]
async fn the_version_is_that_of_the_crate() {
    assert_eq!(alone(&["--version"]).await.out, format!("pgonce {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn shells_accept_their_completions() {
    for (shell, args) in [("bash", &["-n"][..]), ("zsh", &["-n"]), ("fish", &["--no-execute"])] {
        let script = alone(&["completions", shell]).await.out;
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} knows no {command}");
        }
        assert_ne!(accepts(shell, args, &script), Some(false), "{shell} refuses it");
    }
    // What bash offers.
    let script = alone(&["completions", "bash"]).await.out
        + "\nCOMP_WORDS=(pgonce evicti) COMP_CWORD=1; _pgonce pgonce evicti pgonce; [ \"${COMPREPLY[*]}\" = evictions ]";
    if let Some(accepted) = accepts("bash", &["-s"], &script) {
        assert!(accepted, "bash does not complete `pgonce evicti`");
    }
    let refused = said(program(&["completions", "cmd.exe"]).output().await.unwrap());
    refused.ending(2);
}

#[tokio::test]
async fn the_manual_can_be_read() {
    let page = alone(&["man"]).await.out;
    assert!(page.contains(".TH pgonce 1"), "{page}");
    assert!(page.contains("Exit codes") && page.contains("DATABASE_URL"), "{page}");
    if let Some(accepted) = accepts("groff", &["-man", "-Tutf8", "-wmac"], &page) {
        assert!(accepted);
    }
    let folder = Folder::new();
    alone(&["man", folder.path()]).await;
    for command in COMMANDS {
        let page = std::fs::read_to_string(format!("{}/pgonce-{command}.1", folder.path())).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
    }
    let nowhere = said(program(&["man", "/dev/null/folder"]).output().await.unwrap());
    nowhere.ending(7).says("cannot write into /dev/null/folder");
}

mod tempfolder {
    /// A folder that goes with the value.
    pub struct Folder(std::path::PathBuf);

    impl Folder {
        pub fn new() -> Self {
            Self(std::env::temp_dir().join(format!("pgonce_man_{}", uuid::Uuid::new_v4().simple())))
        }

        pub fn path(&self) -> &str {
            self.0.to_str().unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
