//! What a newcomer pastes into a terminal.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::service::Service;

/// One bash, as the newcomer has it open.
struct Terminal {
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    _bash: Child,
}

impl Terminal {
    async fn open() -> Self {
        let curl = Command::new("curl").arg("--version").stdout(Stdio::null()).status().await;
        assert!(
            curl.is_ok_and(|status| status.success()),
            "this test needs curl, as the README's reader does"
        );
        let mut bash = Command::new("bash")
            .arg("-s")
            .env("NO_PROXY", "127.0.0.1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start bash");
        let stdin = bash.stdin.take().expect("its stdin");
        let stdout = BufReader::new(bash.stdout.take().expect("its stdout")).lines();
        Self { stdin, stdout, _bash: bash }
    }

    async fn paste(&mut self, commands: &str) {
        self.stdin.write_all(format!("{commands}\necho; echo {END}\n").as_bytes()).await.unwrap();
    }

    /// The next line of the output; None when the commands have ended. A terminal does not show carriage returns.
    async fn line(&mut self) -> Option<String> {
        let line = self.stdout.next_line().await.unwrap().expect("bash goes on");
        (line != END).then(|| line.replace('\r', ""))
    }

    /// The output of the commands, without the lines that `stop` and what is before it have taken.
    async fn rest(&mut self) -> String {
        let mut output = String::new();
        while let Some(line) = self.line().await {
            output += &line;
            output.push('\n');
        }
        // The empty line is ours.
        output.strip_suffix('\n').unwrap_or(&output).to_owned()
    }
}

const END: &str = "--- the commands have ended ---";

#[tokio::test]
async fn the_curl_session_of_the_readme_goes_as_it_shows() {
    let steps = session(include_str!("../../README.md"));
    assert_eq!(steps.len(), 4, "first call, retry, changed amount, duplicates");
    let service = Service::start().await;
    let mut terminal = Terminal::open().await;

    for (commands, shown) in steps {
        let pasted = commands.replace("http://127.0.0.1:3000", &service.url);
        assert!(pasted != commands || !pasted.contains("http"), "another address in {commands}");
        let output = if commands.contains(" & ") {
            duplicates(&service, &mut terminal, &pasted).await
        } else {
            terminal.paste(&pasted).await;
            terminal.rest().await
        };
        assert_eq!(output, shown, "after pasting\n{commands}");
    }
    assert_eq!(service.balance("alice").await, 50_000 - 2 * 4200);
    assert_eq!(service.count("charges").await, 2);
}

/// The first of them takes until the other one has its answer, however slow this machine is.
async fn duplicates(service: &Service, terminal: &mut Terminal, commands: &str) -> String {
    let held = service.hold().await;
    terminal.paste(commands).await;
    let first_line = terminal.line().await.expect("an answer");
    held.rollback().await.unwrap();
    format!("{first_line}\n{}", terminal.rest().await)
}

/// The commands and what they print, after those that start the service.
fn session(readme: &str) -> Vec<(String, String)> {
    let section = readme.split("\n## Idempotent HTTP endpoints\n").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("its end");
    let mut blocks = section.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let start = blocks.by_ref().find(|(language, _)| *language == "sh").expect("how to start it");
    assert_eq!(start.1, "cargo run --example payments_api --features axum");
    let mut steps = Vec::new();
    while let Some((language, commands)) = blocks.next() {
        assert_eq!(language, "sh");
        let (language, output) = blocks.next().expect("what they print");
        assert_eq!(language, "text");
        steps.push((commands.to_owned(), format!("{output}\n")));
    }
    steps
}

#[tokio::test]
async fn the_lines_that_the_service_prints_can_be_pasted() {
    let service = Service::start().await;
    let mut terminal = Terminal::open().await;
    let commands: Vec<_> = service.welcome.split("\n\n").filter(|text| text.starts_with("curl ")).collect();
    let [charge, look] = commands[..] else { panic!("{}", service.welcome) };

    terminal.paste(charge).await;
    let output = terminal.rest().await;
    assert!(output.starts_with("HTTP/1.1 201 Created\n"), "{output}");
    terminal.paste(look).await;
    let output = terminal.rest().await;
    assert!(output.contains(r#"{"id":"alice","balance":45800}"#), "{output}");
    assert!(output.contains(r#"[{"id":1,"account":"alice","amount":4200,"refunded":0}]"#), "{output}");
}
