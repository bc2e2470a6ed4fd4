//! Children: this test binary again, with one "test" that plays a role.

use std::env;
use std::io::{BufRead, BufReader, Lines, Read};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::sandbox::Sandbox;

const ROLE: &str = "THROWAWAY_TEST_ROLE";

/// The role of this process, when it is a child.
pub(crate) fn role() -> Option<String> {
    env::var(ROLE).ok()
}

/// A command that runs the role: the test of this name in this binary.
pub(crate) fn command(test: &str, role: &str, sandbox: &Sandbox) -> Command {
    let mut command = Command::new(env::current_exe().expect("we are running"));
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env("TMPDIR", sandbox.path())
        .env_remove("DATABASE_URL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// A running child. It ends when it is dropped, or killed.
pub(crate) struct Actor {
    process: Child,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Actor {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut process = command.spawn().expect("the child starts");
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().expect("it is piped");
        Self { process, stdin, lines: BufReader::new(stdout).lines() }
    }

    /// What the child says next, with [`say`].
    pub(crate) fn hear(&mut self) -> String {
        for line in self.lines.by_ref() {
            // The test harness prints too, without an end of line.
            if let Some((_, word)) = line.expect("readable").split_once("@@") {
                return word.to_owned();
            }
        }
        panic!("the child ended without a word");
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it is ours");
    }

    /// Lets the child go on after [`wait_for_parent`].
    pub(crate) fn release(&mut self) {
        self.stdin.take();
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn wait(&mut self) {
        self.process.wait().expect("it is ours");
    }

    /// Lets the child go on, and waits until it is gone.
    pub(crate) fn finish(mut self) -> bool {
        self.release();
        self.process.wait().expect("it is ours").success()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.process.wait();
    }
}

/// Sends a signal to a process, or with a minus to a group.
pub(crate) fn signal(name: &str, process: &str) {
    let command = format!("kill -{name} {process}");
    // It may be gone already; the tests look at what is left.
    Command::new("/bin/sh").args(["-c", &command]).status().expect("a shell");
}

/// In the child: tells the parent something.
pub(crate) fn say(word: &str) {
    println!("@@{word}");
}

/// In the child: waits until the parent has no more use for it.
pub(crate) fn wait_for_parent() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
