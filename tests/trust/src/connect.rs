//! The security upgrade of libp2p's connections, with memberships and without.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context as Task, Poll, ready},
};

use anyhow::{Context as _, Result};
use ed25519_dalek::SigningKey;
use libp2p::{
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    identity::Keypair,
    noise,
};
use serde_json::{Value, json};
use shoal_dht::gate::{Gate, Gated};
use shoal_proto::{
    envelope::Envelope,
    member::{NotAdmitted, admit},
    signed::{KeySet, Labels, Membership, NodeId, Purpose, Version},
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use crate::{cpu, median};

/// Handshakes of one half of a pair: a second of CPU, of which the kernel's step of 10 ms is little.
const HANDSHAKES: usize = 1500;
/// What a pipe holds: more than a handshake.
const PIPE_LEN: usize = 64 << 10;
/// The moment at which all memberships hold.
const NOW: u64 = 1000;

/// One end of a pipe in memory, as libp2p takes it.
struct Pipe(DuplexStream);

impl futures::AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut read = ReadBuf::new(buf);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(read.filled().len()))
    }
}

impl futures::AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Task<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A fleet of which all are members.
#[derive(Debug)]
struct Fleet {
    keys: KeySet,
    mine: Envelope,
}

impl Gate for Fleet {
    fn membership(&self) -> Option<Envelope> {
        Some(self.mine.clone())
    }

    fn admit(&self, node: &NodeId, membership: Option<&Envelope>) -> Result<(), NotAdmitted> {
        admit(membership, node, &self.keys, |_| false, NOW).map(|_| ())
    }

    fn may_stay(&self, _: &NodeId) -> bool {
        true
    }
}

/// A node's side of the upgrade, without and with the gate.
fn side(n: u8) -> Result<(noise::Config, Gated)> {
    let fleet = SigningKey::from_bytes(&[200; 32]);
    let node = NodeId(SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes());
    let labels = Labels { region: "eu".parse().ok(), zone: "a".parse().ok(), site: None };
    let membership = Membership { node, labels, not_before: 0, not_after: 2 * NOW, serial: u64::from(n) };
    // Three generations, as after rotations: the key that signed is the last to be looked at.
    let key = |n: u8| SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes();
    let keys = [90, 91, 200].map(|n| (Purpose::Member, key(n))).to_vec();
    let keys = KeySet { version: Version::default(), keys };
    let gate = Arc::new(Fleet { keys, mine: Envelope::sign(&membership, &fleet) });
    let pair = Keypair::ed25519_from_bytes([n; 32]).context("a node's key")?;
    let noise = noise::Config::new(&pair).context("noise")?;
    Ok((noise.clone(), Gated::new(noise, gate)))
}

/// CPU seconds of many handshakes over `upgrade` at both ends.
async fn cost<U>(inbound: &U, outbound: &U, name: &'static str) -> Result<f64>
where
    U: InboundConnectionUpgrade<Pipe, Info = &'static str>
        + OutboundConnectionUpgrade<Pipe, Info = &'static str>
        + Clone,
    <U as InboundConnectionUpgrade<Pipe>>::Error: std::error::Error + Send + Sync + 'static,
    <U as OutboundConnectionUpgrade<Pipe>>::Error: std::error::Error + Send + Sync + 'static,
{
    let begun = cpu()?;
    for _ in 0..HANDSHAKES {
        let (one, two) = duplex(PIPE_LEN);
        let ends =
            (inbound.clone().upgrade_inbound(Pipe(one), name), outbound.clone().upgrade_outbound(Pipe(two), name));
        let (one, two) = futures::join!(ends.0, ends.1);
        one?;
        two?;
    }
    Ok(cpu()? - begun)
}

pub(crate) async fn measure(rounds: usize) -> Result<(f64, Value)> {
    let (one, two) = (side(1)?, side(2)?);
    let (mut ratios, mut pairs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let bare = cost(&one.0, &two.0, "/noise").await?;
        let gated = cost(&one.1, &two.1, "/shoal/noise/1").await?;
        ratios.push(gated / bare);
        pairs.push(json!({ "bare_cpu_s": bare, "with_memberships_cpu_s": gated }));
    }
    Ok((median(ratios), json!({ "handshakes": HANDSHAKES, "rounds": pairs })))
}
