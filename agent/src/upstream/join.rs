//! Membership: asked for at the start, renewed before it ends.

use std::{
    io,
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use http::Method;
use shoal_proto::{
    api::{Join, Joined, Meet, Met, REPLY_LEN_MAX, Revocations, SERVICE_ACCOUNT_LEN_MAX, Shown, join_bytes},
    codec,
    envelope::Envelope,
    member::{Caller, caller_bytes},
    message::{PEERS_MAX, PeerInfo},
    signed::{Labels, Membership, NodeId, UnixSeconds},
};
use tokio::{io::AsyncReadExt as _, sync::watch, time::timeout};

use super::{Credentials, Upstream, UpstreamError};
use crate::{config::JoinBy, identity::Identity};

/// How long a request waits for a new membership that it needs.
const RENEWAL_MAX: Duration = Duration::from_secs(10);

/// This node's membership.
#[derive(Debug, Clone)]
pub struct Member {
    /// As signed: what peers are shown.
    pub envelope: Envelope,
    /// What it says.
    pub membership: Membership,
    identity: Identity,
}

impl Member {
    /// Says to the seeder whose request this is.
    pub(super) fn caller(&self, root: &VerifyingKey, path: &str, body: &[u8]) -> Caller {
        let (node, time) = (self.membership.node, now());
        let signature = self.identity.sign(&caller_bytes(root.as_bytes(), &node, time, path, body));
        Caller { node, membership: self.envelope.clone(), time, signature }
    }
}

impl Upstream {
    /// Joins the fleet, or renews: the membership is shown at every pull from then on.
    ///
    /// # Errors
    /// As all requests; a membership of another node is [`UpstreamError::Protocol`].
    pub async fn join(&self, identity: &Identity, labels: &Labels) -> Result<Arc<Member>, UpstreamError> {
        let path = "/v2/_shoal/join";
        let (node, time) = (identity.node(), now());
        let shown = self.shown(&node, time).await?;
        let signature = identity.sign(&join_bytes(&self.trust.root().to_bytes(), &node, time));
        let join = Join { node, time, labels: labels.clone(), shown, signature };
        let body = Bytes::from(codec::encode(&join));
        let request = self.client.request_with(Method::POST, path, &Credentials::none(), body);
        let bytes = self.client.fetch(&request, REPLY_LEN_MAX).await?;
        let wrong = |error: String| self.client.protocol(path, &error);
        let joined = codec::decode::<Joined, REPLY_LEN_MAX>(&bytes).map_err(|error| wrong(error.to_string()))?;
        let membership: Membership = self.open(&joined.membership).await.map_err(|error| wrong(error.to_string()))?;
        if membership.node != node {
            return Err(wrong("the membership is another node's".into()));
        }
        if let Some(list) = joined.revocations {
            self.trust.accept_revocations(&list).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(self.set_member(Member { envelope: joined.membership, membership, identity: identity.clone() }))
    }

    /// By what this node joins now.
    async fn shown(&self, node: &NodeId, time: UnixSeconds) -> Result<Shown, UpstreamError> {
        match &*self.join_by {
            JoinBy::Nothing => Ok(Shown::Nothing),
            JoinBy::Token(token) => Ok(Shown::Token(token.show(node, time))),
            JoinBy::ServiceAccount(path) => {
                let text = service_account(path).await;
                text.map(Shown::ServiceAccount)
                    .map_err(|error| UpstreamError::ServiceAccount { path: path.clone(), error: error.to_string() })
            }
        }
    }

    /// Asks for the newest key set and revocation list, and takes them; gives the seconds after which to ask again.
    ///
    /// # Errors
    /// As all requests; what the fleet has not signed is [`UpstreamError::Protocol`].
    pub async fn revocations(&self) -> Result<u32, UpstreamError> {
        let path = "/v2/_shoal/revocations";
        let request = self.client.request(Method::GET, path, &Credentials::none());
        let bytes = self.client.fetch(&request, REPLY_LEN_MAX).await?;
        let wrong = |error: String| self.client.protocol(path, &error);
        // The keys first: they may be newer than the list, never older.
        let info = self.client.info().await?;
        self.trust.accept(&info).map_err(|error| wrong(error.to_string()))?;
        let asked = codec::decode::<Revocations, REPLY_LEN_MAX>(&bytes).map_err(|error| wrong(error.to_string()))?;
        if let Some(list) = asked.list {
            self.trust.accept_revocations(&list).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(asked.again_in_s)
    }

    /// Tells the seeder where this node is found, and hears of others of the fleet.
    ///
    /// # Errors
    /// As all requests; [`UpstreamError::Protocol`] while the node's own addresses are not known.
    pub async fn meet(&self) -> Result<Vec<PeerInfo>, UpstreamError> {
        let path = "/v2/_shoal/members";
        let me = self.me.read().unwrap_or_else(PoisonError::into_inner).clone();
        let me = me.ok_or_else(|| self.client.protocol(path, "this node's own addresses are not known yet"))?;
        let body = Bytes::from(codec::encode(&Meet { me }));
        let bytes = self.ask_as_member(path, &Credentials::none(), body).await?;
        let met = codec::decode::<Met, REPLY_LEN_MAX>(&bytes);
        let mut introductions = met.map_err(|error| self.client.protocol(path, &error.to_string()))?.introductions;
        introductions.truncate(PEERS_MAX);
        Ok(introductions)
    }

    /// Takes a membership that was kept from before; false if it has ended.
    pub async fn resume(&self, identity: &Identity, envelope: Envelope) -> bool {
        let Ok(membership) = self.open::<Membership>(&envelope).await else { return false };
        let holds = membership.node == identity.node() && membership.not_after > now();
        if holds {
            self.set_member(Member { envelope, membership, identity: identity.clone() });
        }
        holds
    }

    /// A request in which this node says who it is. Should the seeder no longer let its membership count, the request waits a
    /// moment for the renewal that this sets off, and is sent once more.
    pub(super) async fn ask_as_member(
        &self,
        path: &str,
        credentials: &Credentials,
        body: Bytes,
    ) -> Result<Bytes, UpstreamError> {
        let mut member = self.member();
        let first = self.client.fetch(&self.call(path, credentials, body.clone()), REPLY_LEN_MAX).await;
        if !first.as_ref().err().is_some_and(UpstreamError::wants_renewal) {
            return first;
        }
        self.refused.notify_one();
        match timeout(RENEWAL_MAX, member.changed()).await {
            Ok(Ok(())) => self.client.fetch(&self.call(path, credentials, body), REPLY_LEN_MAX).await,
            Ok(Err(_)) | Err(_) => first,
        }
    }

    /// Waits until the seeder has refused this node's membership for a reason that a renewal takes away. One waits at a
    /// time. Cancel-safe.
    pub(crate) async fn refused(&self) {
        self.refused.notified().await;
    }

    /// Whether the membership is signed by a key that still counts.
    pub(crate) fn member_holds(&self) -> bool {
        let member = self.member.borrow().clone();
        member.is_some_and(|member| member.envelope.open::<Membership>(&*self.trust.keys()).is_ok())
    }

    fn set_member(&self, member: Member) -> Arc<Member> {
        let member = Arc::new(member);
        self.member.send_replace(Some(member.clone()));
        member
    }

    /// The membership, and every later one; `None` before the first.
    #[must_use]
    pub fn member(&self) -> watch::Receiver<Option<Arc<Member>>> {
        self.member.subscribe()
    }
}

/// What the file holds now, as far as it can be a token.
async fn service_account(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let limit = u64::try_from(SERVICE_ACCOUNT_LEN_MAX).expect("a few KiB");
    tokio::fs::File::open(path).await?.take(limit).read_to_string(&mut text).await?;
    Ok(text.trim().to_owned())
}

pub(super) fn now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
