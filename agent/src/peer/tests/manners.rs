//! What is asked for can be taken back, who does not read is not waited for, and nobody is waited for in vain.

use std::net::TcpStream as StdStream;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_taken_back_ends_in_mid_piece() {
    for mode in [Mode::Tls, Mode::Plain] {
        // A piece takes a second or more.
        let data = bytes(2 * PIECE);
        let len = Layout::new(data.len() as u64).unwrap().piece_len();
        let slow = EndpointConfig { mode, upload_bytes_per_s: Some(len), ..EndpointConfig::default() };
        let a = Side::configured(1, slow, fleet(&membership(1), &seeder_key())).await;
        let (mut a, up_a, mut b, up_b) = connected(a, Side::new(2, mode).await).await;
        let (full, empty) = (a.full_blob(&data), b.blob(&data));
        let piece = full.layout().piece(0).unwrap();
        let partial = Partial::new(empty.writer(piece).unwrap());
        up_b.link.fetch(Fetch { request: request(1), partial, priority: Priority::Normal }).unwrap();
        let Heard::Request { id, offset, .. } = a.heard().await else { panic!("a request comes") };
        let (upload, blob) = (UploadId::new(id, 0), full.clone());
        up_a.link.serve(Serve { upload, request: id, blob, piece, offset, priority: Priority::Normal }).unwrap();
        let Event::Heard { heard: Heard::Progress { .. }, .. } = b.event().await else { panic!("bytes come") };
        drop(up_b.link.take_back(request(1)).unwrap());
        assert!(matches!(a.heard().await, Heard::Cancel { id: of } if of == id));
        up_a.link.stop_serving(upload).unwrap();
        let Heard::UploadEnded { bytes, .. } = a.heard().await else { panic!("the upload ends") };
        assert!(bytes > 0 && bytes < len, "{bytes} of {len} bytes were sent");
        // The connection goes on, and the piece where it stopped.
        let TakenBack::Over = up_b.link.take_back(request(1)).unwrap() else { panic!("it is over") };
        up_b.link.send(Message::Cancel { id: 77 }).unwrap();
        assert!(matches!(a.heard().await, Heard::Cancel { id: 77 }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_take_what_it_hears_slows_its_peers_and_holds_a_bounded_number_of_their_words() {
    // The loop of `b` takes nothing.
    let (_a, up_a, mut b, _up_b) = pair(Mode::Plain).await;
    // More than its queue and the kernel's buffers hold.
    let most = 200_000;
    let mut said = 0;
    while said < most {
        match up_a.link.send(Message::Cancel { id: said }) {
            Ok(()) => said += 1,
            Err(Overflow) => break,
        }
        if said % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(said < most, "{said} words were taken for a peer that reads none");
    for id in 0..u32::try_from(EVENTS_MAX).unwrap() {
        assert!(matches!(b.heard().await, Heard::Cancel { id: heard } if heard == id), "none is lost");
    }
}

/// A port whose connections are neither taken nor refused. It stays so while what is returned lives.
fn black_hole() -> (SocketAddr, socket2::Socket, Vec<StdStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = StdStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (address, socket, waiting)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_costs_a_head_start_and_no_more() {
    let (mut a, b) = (Side::new(1, Mode::Tls).await, Side::new(2, Mode::Tls).await);
    let holes = [(); 3].map(|()| black_hole());
    let mut addresses: Vec<SocketAddr> = holes.iter().map(|hole| hole.0).collect();
    addresses.push(b.address);
    let start = std::time::Instant::now();
    a.endpoint.dial(1, addresses.clone(), Some(identity(2).node()));
    let up = a.up().await;
    assert_eq!(up.peer.node, identity(2).node());
    assert!(start.elapsed() < CONNECT_TIMEOUT, "{:?}", start.elapsed());
    // Without anybody behind them they fail together, not one after the other.
    addresses.pop();
    a.endpoint.dial(2, addresses, Some(identity(2).node()));
    assert!(matches!(a.dial_failed().await, GreetError::Timeout));
    assert!(start.elapsed() < 3 * CONNECT_TIMEOUT, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_the_limit_are_closed_with_that_reason() {
    let few = EndpointConfig { mode: Mode::Plain, incoming_max: Some(4), ..EndpointConfig::default() };
    let mut a = Side::configured(1, few, fleet(&membership(1), &seeder_key())).await;
    let (mut raws, mut ups) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        raws.push(Raw::connect(a.address, PROTOCOL).await);
        ups.push(a.up().await);
    }
    let limit = Message::Close { reason: CloseReason::Limit };
    for refused in 1..=20 {
        let mut raw = Raw::connect(a.address, PROTOCOL).await;
        assert!(matches!(raw.hear().await, Message::Proof { .. }));
        assert_eq!(timeout(SOON, raw.hear()).await.unwrap(), limit);
        assert_eq!(a.endpoint.counters().refused(Refused::Limit), refused);
    }
    assert!(a.events.try_recv().is_err(), "the loop heard of none of them");
    assert_eq!(a.endpoint.counters().connections_now(), 4);
    // There is room again.
    raws.pop();
    a.down().await;
    let _raw = Raw::connect(a.address, PROTOCOL).await;
    // The place is free a moment after the loop has heard.
    let up = async {
        loop {
            if let Ok(Event::Up(up)) = a.events.try_recv() {
                return up;
            }
            drop(Raw::connect(a.address, PROTOCOL).await);
        }
    };
    timeout(SOON, up).await.expect("one is taken");
}
