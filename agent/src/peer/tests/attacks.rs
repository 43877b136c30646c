//! Greetings of mode `plain` that were overheard, and are said again by somebody else.

use tokio::net::TcpSocket;

use super::*;

/// Opens a connection from an address of this machine.
async fn from(ip: [u8; 4], to: SocketAddr) -> Raw {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((ip, 0))).unwrap();
    Raw { socket: socket.connect(to).await.unwrap() }
}

fn hello() -> Message {
    let info = PeerInfo { node: identity(9).node(), peer: vec![], libp2p: vec![], labels: Labels::default() };
    let membership = Some(Envelope::sign(&membership(9), &seeder_key()));
    Message::Hello { protocol: PROTOCOL, me: info, nonce: [5; 32], membership }
}

/// Node 9 greets as it should; gives all that it said.
async fn greet(raw: &mut Raw) -> [Message; 2] {
    let hello = hello();
    raw.say(&hello).await;
    let Message::Hello { me: peer, nonce: theirs, .. } = raw.hear().await else { panic!("a hello comes") };
    let (me, nonce) = (identity(9), [5; 32]);
    let proof = Message::Proof { signature: me.sign(&proof_bytes(&me.node(), &peer.node, &theirs, &nonce)) };
    raw.say(&proof).await;
    assert!(matches!(raw.hear().await, Message::Proof { .. }));
    [hello, proof]
}

/// Says what was overheard, and gives the last word of the far end.
async fn replay(raw: &mut Raw, overheard: &[Message]) -> Message {
    for message in overheard {
        raw.say(message).await;
    }
    loop {
        match raw.hear().await {
            Message::Hello { .. } | Message::Proof { .. } => {}
            last => return last,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overheard_greeting_is_of_no_use_from_another_address_or_to_another_node() {
    let (mut a, mut b) = (Side::new(1, Mode::Plain).await, Side::new(2, Mode::Plain).await);
    let mut honest = from([127, 0, 0, 1], a.address).await;
    let overheard = greet(&mut honest).await;
    assert_eq!(a.up().await.peer.node, identity(9).node());
    // From elsewhere, from the same address, and to another member.
    for (ip, side) in [([127, 0, 0, 2], &mut a), ([127, 0, 0, 1], &mut b)] {
        let mut thief = from(ip, side.address).await;
        assert_eq!(replay(&mut thief, &overheard).await, Message::Close { reason: CloseReason::Protocol });
        side.wait_refused(Refused::WrongNode).await;
        assert!(side.events.try_recv().is_err(), "nobody came up");
    }
    // Once more to the node that heard it, from the very address that said it.
    let mut again = from([127, 0, 0, 1], a.address).await;
    assert_eq!(replay(&mut again, &overheard).await, Message::Close { reason: CloseReason::Protocol });
    // The hello alone, with a proof by the thief's own key.
    let mut thief = from([127, 0, 0, 2], a.address).await;
    let forged = Message::Proof { signature: identity(66).sign(b"anything") };
    assert_eq!(replay(&mut thief, &[hello(), forged]).await, Message::Close { reason: CloseReason::Protocol });
    // The node itself may come from wherever it likes.
    let mut moved = from([127, 0, 0, 3], a.address).await;
    greet(&mut moved).await;
    assert_eq!(a.up().await.peer.node, identity(9).node());
    drop(honest);
}
