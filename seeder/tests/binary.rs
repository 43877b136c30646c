//! The program itself: what it says, how it exits, and what a kill leaves.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use shoal_proto::Digest;

fn command(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-seeder"));
    command.args(args).arg("--data-dir").arg(dir).env("RUST_LOG", "info");
    command
}

fn run(args: &[&str], dir: &Path) -> (i32, String) {
    let Output { status, stdout, stderr } = command(args, dir).output().expect("the program starts");
    let text = [stdout, stderr].concat();
    (status.code().expect("it exits by itself"), String::from_utf8(text).expect("it writes text"))
}

/// A seeder in a process of its own, and where it listens.
struct Process {
    child: Child,
    addr: String,
}

impl Process {
    fn start(dir: &Path) -> Self {
        let args = ["serve", "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0", "--insecure-open"];
        let mut child = command(&args, dir).stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let mut said = String::new();
        let mut addr = None;
        // It says where it listens, and then, last, that it is open.
        while !said.contains("OPEN") {
            let line = lines.next().expect("it says so before it ends").expect("it writes text");
            addr = addr.or_else(|| {
                line.split_once("registry listens addr=")
                    .and_then(|(_, at)| Some(at.split_whitespace().next()?.to_owned()))
            });
            said.push_str(&line);
        }
        Self { child, addr: addr.expect("it said where") }
    }

    /// One request on a connection of its own; the whole response.
    fn ask(&self, head: &str, body: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.addr).expect("it listens");
        let length = body.len();
        let head = format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).expect("it reads");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).expect("it answers");
        response
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_over = self.child.kill();
        let _already_waited = self.child.wait();
    }
}

#[test]
fn bad_usage_and_configuration_exit_64_and_failures_1_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("seeder.toml");
    std::fs::write(&file, "listen_on = 1\n").unwrap();
    let file = file.to_str().unwrap();
    let data = dir.path().join("data");
    let cases: [(&[&str], i32, &str); 6] = [
        (&["serve", "--config", file], 64, "listen_on"),
        (&["serve", "--config", "/nowhere/x.toml"], 64, "/nowhere/x.toml"),
        (&["serve", "--listen", "0.0.0.0:0"], 64, "--insecure-open"),
        (&["serve", "--check-config", "--config", file], 64, "listen_on"),
        (&["serve", "--check-config"], 0, "good"),
        (&["status"], 1, "no seeder"),
    ];
    for (args, code, word) in cases {
        let (found, text) = run(args, &data);
        assert_eq!((found, text.lines().count()), (code, 1), "{args:?}: {text}");
        assert!(text.contains(word), "{args:?}: {text}");
    }
    for args in [&["serve", "--listen", "nowhere"], &["serve", "--unknown", "x"]] {
        assert_eq!(run(args, &data).0, 64, "{args:?}");
    }
    assert!(!data.exists(), "nothing is made before the configuration is good");
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let (small, large) = (vec![1u8; 100], vec![2u8; 3 << 20]);
    for content in [&small, &large] {
        let digest = Digest::of(content);
        let answer = process.ask(&format!("POST /v2/a/blobs/uploads/?digest={digest}"), content);
        assert!(answer.starts_with(b"HTTP/1.1 201"), "{}", String::from_utf8_lossy(&answer));
    }
    let second = run(&["serve", "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0"], dir.path());
    assert_eq!(second.0, 1);
    assert!(second.1.contains("another process uses") && second.1.lines().count() == 1, "{}", second.1);
    let (_, report) = run(&["status", "--json"], dir.path());
    assert!(report.contains("\"running\":true"), "{report}");
    // Drop kills.
    drop(process);
    let (_, report) = run(&["status", "--json"], dir.path());
    assert!(report.contains("\"running\":false"), "{report}");
    let process = Process::start(dir.path());
    for content in [&small, &large] {
        let answer = process.ask(&format!("GET /v2/a/blobs/{}", Digest::of(content)), b"");
        assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(content));
    }
}

#[test]
fn a_signal_stops_it_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    let pid = rustix::process::Pid::from_child(&process.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(&process.addr).is_err());
}
