//! Requests that two programs could read in two ways, and a seeder that goes back in time.

use super::*;

/// Sends bytes as they are and reads until the server closes, or has been silent for a while.
async fn exchange(address: SocketAddr, bytes: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let quiet = Duration::from_secs(2);
    let mut buffer = [0; 4096];
    while let Ok(Ok(len)) = timeout(quiet, socket.read(&mut buffer)).await {
        if len == 0 {
            break;
        }
        answer.extend_from_slice(&buffer[..len]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of all answers.
fn statuses(answer: &str) -> Vec<&str> {
    answer.match_indices("HTTP/1.").filter_map(|(at, _)| answer.get(at + 9..at + 12)).collect()
}

/// A request that is hidden behind another.
const HIDDEN: &str = "GET /v2/hidden/tags/list HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_can_be_read_in_two_ways_is_answered_once_and_refused() {
    let bench = Bench::start(PLENTY).await;
    bench.stage.seeder.push("hidden", "v1", &[]);
    let head = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n";
    let post = "POST /v2/ HTTP/1.1\r\nHost: localhost\r\n";
    let length = HIDDEN.len();
    let cases = [
        ("CL and TE", format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        ("TE and CL", format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{HIDDEN}")),
        (
            "CL and TE of a push",
            format!("{post}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ),
        ("TE alone", format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        (
            "TE twice",
            format!("{head}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ),
        ("another TE", format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}")),
        (
            "TE in HTTP/1.0",
            format!("GET /v2/ HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ),
        ("two lengths", format!("{head}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{HIDDEN}")),
        ("a list of lengths", format!("{head}Content-Length: 0, {length}\r\n\r\n{HIDDEN}")),
        ("a signed length", format!("{head}Content-Length: +0\r\n\r\n{HIDDEN}")),
        ("a body of a GET", format!("{head}Content-Length: {length}\r\n\r\n{HIDDEN}")),
        ("a folded line", format!("{head}X: a\r\n Transfer-Encoding: chunked\r\n\r\n{HIDDEN}")),
        ("a space before the colon", format!("{head}Content-Length : 5\r\n\r\n{HIDDEN}")),
        ("a bare CR in a value", format!("{head}X: a\rTransfer-Encoding: chunked\r\n\r\n{HIDDEN}")),
        ("a NUL in a value", format!("{head}X: a\0b\r\n\r\n{HIDDEN}")),
        ("two hosts", format!("{head}Host: evil.example\r\n\r\n")),
        ("another host in the target", "GET http://evil.example/v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
    ];
    for (what, request) in cases {
        let answer = exchange(bench.address, &request).await;
        let found = statuses(&answer);
        assert!(found.len() == 1 && ["400", "403"].contains(&found[0]), "{what}: {answer}");
        assert!(!answer.contains("\"tags\""), "{what}: the hidden request was answered: {answer}");
    }
    // Two requests that are what they seem, on one connection; a line may end with LF alone, as RFC 9112 §2.2 allows, and
    // then does so for everybody.
    let twins = [
        format!("{head}\r\n{HIDDEN}"),
        format!("{head}Content-Length: 0\r\n\r\n{HIDDEN}"),
        format!("GET /v2/ HTTP/1.1\nHost: localhost\n\n{HIDDEN}"),
    ];
    for twin in twins {
        let answer = exchange(bench.address, &twin).await;
        assert_eq!(statuses(&answer), ["200", "200"], "{answer}");
        assert!(answer.contains("\"tags\""), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_tag_record_is_not_taken_for_the_newest() {
    let bench = Bench::start(PLENTY).await;
    let seeder = &bench.stage.seeder;
    seeder.push("app", "v1", &[content(1, 100)]);
    assert_eq!(bench.get("/v2/app/manifests/v1").await.0, StatusCode::OK);
    // The seeder, or who poses as it, says again what it said long ago: the tag as it was, under its old version.
    seeder.counter.store(0, Ordering::Relaxed);
    seeder.push("app", "v1", &[content(2, 100)]);
    seeder.counter.store(1, Ordering::Relaxed);
    let (status, _, body) = bench.get("/v2/app/manifests/v1").await;
    assert!(status.is_server_error(), "{status}: {}", String::from_utf8_lossy(&body));
    assert!(String::from_utf8_lossy(&body).contains("older"), "{}", String::from_utf8_lossy(&body));
    seeder.counter.store(9, Ordering::Relaxed);
    let moved = seeder.push("app", "v1", &[content(3, 100)]);
    let (status, headers, _) = bench.get("/v2/app/manifests/v1").await;
    assert_eq!(
        (status, headers["docker-content-digest"].to_str().unwrap()),
        (StatusCode::OK, moved.to_string().as_str())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_got_from_the_pinned_seeder_alone_and_is_good_for_whoever_holds_it() {
    let bench = Bench::start(PLENTY).await;
    let seeder = &bench.stage.seeder;
    seeder.push("team/app", "v1", &[content(1, 100)]);
    *lock(&seeder.password) = Some("Bearer good".into());
    let path = "/v2/team/app/manifests/v1";
    let challenges = |headers: &HeaderMap| {
        let all = headers.get_all("www-authenticate").iter();
        all.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let own = format!("Bearer realm=\"http://{}/token\",service=\"shoal\"", bench.stage.address);
    let foreign = "Bearer realm=\"http://evil.example/token\",service=\"shoal\"".to_owned();
    for (challenge, passed_on) in [(foreign, vec![]), (own.clone(), vec![own])] {
        *lock(&seeder.challenge) = challenge;
        // Another client each time: what the seeder said of one stands for a while.
        let shown = format!("Bearer wrong{}", passed_on.len());
        let (status, headers, _) = bench.get_with(path, &[("authorization", &shown)]).await;
        assert_eq!((status, challenges(&headers)), (StatusCode::UNAUTHORIZED, passed_on.clone()));
        // What is passed on from the seeder as it is, too.
        let (status, headers, _) = bench.get_with("/v2/team/app/tags/list", &[("authorization", &shown)]).await;
        assert_eq!((status, challenges(&headers)), (StatusCode::UNAUTHORIZED, passed_on));
    }
    assert_eq!(bench.get_with(path, &[("authorization", "Bearer good")]).await.0, StatusCode::OK);
    assert_eq!(bench.get_with(path, &[("authorization", "Bearer other")]).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(bench.get(path).await.0, StatusCode::UNAUTHORIZED, "stored here by now, and still not anybody's");
}
