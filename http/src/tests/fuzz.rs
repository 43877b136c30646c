//! A whole connection as a stranger bends it: the server answers in HTTP or not at all, and lives on.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream as StdStream},
    path::Path,
    sync::LazyLock,
};

use tokio::runtime::Runtime;

use super::*;

/// How long an answer may be awaited: a body that grows for ever has none.
const QUIET: Duration = Duration::from_millis(30);
/// How long the answer that must come may take on a loaded machine.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// Bytes of an answer that are looked at.
const ANSWER_LEN_MAX: usize = 64 << 10;

/// One server for all inputs.
static SERVER: LazyLock<(Runtime, Server)> = LazyLock::new(|| {
    let runtime = Runtime::new().expect("threads");
    let server = runtime.block_on(start());
    (runtime, server)
});

/// What comes back; `end` is what the client shuts down once it has said all.
fn answer(to: SocketAddr, request: &[u8], wait: Duration, end: Option<Shutdown>) -> Vec<u8> {
    let mut socket = StdStream::connect(to).expect("the server takes connections");
    socket.set_read_timeout(Some(wait)).expect("a time limit");
    // The server may close before it has read all.
    let _ = socket.write_all(request);
    if let Some(end) = end {
        let _ = socket.shutdown(end);
    }
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(len) = socket.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..len]);
        if len == 0 || answer.len() > ANSWER_LEN_MAX {
            break;
        }
    }
    answer
}

#[test]
fn fuzz_connection() {
    crate::mutate::fuzz("connection", Path::new("fuzz/corpus/connection"), &[], |data| {
        let answer = answer(SERVER.1.addr, data, QUIET, Some(Shutdown::Write));
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
    });
    // A client that has gone half may be hung up on before it is answered; this one listens.
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let after = answer(SERVER.1.addr, request, AFTERWARDS, None);
    assert!(after.starts_with(b"HTTP/1.1 200"), "it lives on");
}
