//! The gate: memberships are shown inside the security upgrade, before yamux, identify or Kademlia can be spoken.
//!
//! Right after Noise has proven who is who, both sides send their membership at once, judge the other's, and tell each
//! other the verdict. A node that is not let in has reached nothing: no protocol of ours has seen a byte of it, and it has
//! learnt that a member is here, and why it is none.
//!
//! On the wire each side writes `length (u32 LE) ‖ Option<Envelope>`, then one byte: 0 for welcome, else a `Verdict`.

use std::{fmt, io, pin::Pin, sync::Arc};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt};
use libp2p::{
    PeerId,
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
    noise,
};
use shoal_proto::{codec, envelope::Envelope, member::NotAdmitted, message::CloseReason, signed::NodeId};

use super::node_id;

/// The security upgrade's name: a stranger that knows only libp2p's own finds nothing to talk to.
const PROTOCOL: &str = "/shoal/noise/1";
/// Longest membership on the wire: it is a few hundred bytes. What claims to be larger is not read.
const SHOWN_LEN_MAX: usize = 4 << 10;

/// What connections must know of the fleet.
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// This node's membership, to be shown.
    fn membership(&self) -> Option<Envelope>;
    /// Whether `node`, which has proven its key and shows `membership`, is let in.
    ///
    /// # Errors
    /// It is not.
    fn admit(&self, node: &NodeId, membership: Option<&Envelope>) -> Result<(), NotAdmitted>;
    /// Whether a node that was let in may stay.
    fn may_stay(&self, node: &NodeId) -> bool;
}

/// Why a connection did not get through the gate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// Noise failed.
    #[error(transparent)]
    Noise(#[from] noise::Error),
    /// The socket broke, or what came is none of ours.
    #[error("the gate: {0}")]
    Io(#[from] io::Error),
    /// The far end's key is no node's: another kind than Ed25519.
    #[error("{0} is no node")]
    NoNode(PeerId),
    /// The far end is not let in here.
    #[error("{node:?} is not let in: {reason}")]
    NotAdmitted {
        /// Who.
        node: NodeId,
        /// Why.
        reason: NotAdmitted,
    },
    /// The far end does not let this node in.
    #[error("the far end does not let this node in: {0:?}")]
    Refused(CloseReason),
}

/// A verdict as its byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict(u8);

impl Verdict {
    const WELCOME: Self = Self(0);

    const fn of(reason: CloseReason) -> Self {
        match reason {
            CloseReason::Expired => Self(2),
            CloseReason::Revoked => Self(3),
            CloseReason::NotAMember
            | CloseReason::Shutdown
            | CloseReason::Version
            | CloseReason::Protocol
            | CloseReason::Limit
            | CloseReason::Duplicate
            | CloseReason::Idle
            | CloseReason::Banned => Self(1),
        }
    }

    const fn reason(self) -> CloseReason {
        match self.0 {
            2 => CloseReason::Expired,
            3 => CloseReason::Revoked,
            _ => CloseReason::NotAMember,
        }
    }
}

/// The security upgrade: Noise, then memberships.
#[derive(Clone)]
pub struct Gated {
    noise: noise::Config,
    gate: Arc<dyn Gate>,
}

impl fmt::Debug for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl Gated {
    /// Noise under a gate.
    #[must_use]
    pub fn new(noise: noise::Config, gate: Arc<dyn Gate>) -> Self {
        Self { noise, gate }
    }
}

impl UpgradeInfo for Gated {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

type Passed<C> = (PeerId, noise::Output<C>);
type Passing<C> = Pin<Box<dyn Future<Output = Result<Passed<C>, GateError>> + Send>>;

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<C> for Gated {
    type Output = Passed<C>;
    type Error = GateError;
    type Future = Passing<C>;

    fn upgrade_inbound(self, socket: C, info: Self::Info) -> Self::Future {
        let Self { noise, gate } = self;
        async move { pass(noise.upgrade_inbound(socket, info).await?, &*gate).await }.boxed()
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<C> for Gated {
    type Output = Passed<C>;
    type Error = GateError;
    type Future = Passing<C>;

    fn upgrade_outbound(self, socket: C, info: Self::Info) -> Self::Future {
        let Self { noise, gate } = self;
        async move { pass(noise.upgrade_outbound(socket, info).await?, &*gate).await }.boxed()
    }
}

async fn pass<C>((peer, mut io): Passed<C>, gate: &dyn Gate) -> Result<Passed<C>, GateError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let node = node_id(&peer).ok_or(GateError::NoNode(peer))?;
    let mine = codec::encode(&gate.membership());
    let len = u32::try_from(mine.len()).expect("a membership is a few hundred bytes");
    io.write_all(&[&len.to_le_bytes(), mine.as_slice()].concat()).await?;
    io.flush().await?;
    let shown = read_shown(&mut io).await?;
    let judged = gate.admit(&node, shown.as_ref());
    let verdict = judged.as_ref().map_or_else(|reason| Verdict::of(reason.close_reason()), |()| Verdict::WELCOME);
    io.write_all(&[verdict.0]).await?;
    io.flush().await?;
    if let Err(reason) = judged {
        // Said, and not to be waited for.
        let _ = io.close().await;
        return Err(GateError::NotAdmitted { node, reason });
    }
    let mut theirs = [0; 1];
    io.read_exact(&mut theirs).await?;
    match Verdict(theirs[0]) {
        Verdict::WELCOME => Ok((peer, io)),
        refused => Err(GateError::Refused(refused.reason())),
    }
}

async fn read_shown<S: AsyncRead + Unpin>(io: &mut S) -> Result<Option<Envelope>, GateError> {
    let garbage = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut len = [0; 4];
    io.read_exact(&mut len).await?;
    let len = u32::from_le_bytes(len) as usize;
    if len > SHOWN_LEN_MAX {
        return Err(garbage("the membership is too long").into());
    }
    let mut bytes = vec![0; len];
    io.read_exact(&mut bytes).await?;
    let shown = codec::decode::<Option<Envelope>, SHOWN_LEN_MAX>(&bytes);
    Ok(shown.map_err(|error| garbage(&error.to_string()))?)
}
