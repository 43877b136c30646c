//! Membership: asked for at the start, renewed before it ends.

use std::{
    sync::{Arc, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use http::Method;
use shoal_proto::{
    api::{Join, Joined, Meet, Met, REPLY_LEN_MAX, join_bytes},
    codec,
    envelope::Envelope,
    message::{PEERS_MAX, PeerInfo},
    signed::{Labels, Membership, RevocationList, UnixSeconds},
};
use tokio::sync::watch;

use super::{Credentials, Upstream, UpstreamError};
use crate::identity::Identity;

/// This node's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As signed: what peers are shown.
    pub envelope: Envelope,
    /// What it says.
    pub membership: Membership,
    /// The newest revocation list that the seeder gave, as signed and opened.
    pub revocations: Option<(Envelope, RevocationList)>,
}

impl Upstream {
    /// Joins the fleet, or renews: the membership is shown at every pull from then on.
    ///
    /// # Errors
    /// As all requests; a membership of another node is [`UpstreamError::Protocol`].
    pub async fn join(&self, identity: &Identity, labels: &Labels) -> Result<Arc<Member>, UpstreamError> {
        let path = "/v2/_shoal/join";
        let (node, time) = (identity.node(), now());
        let signature = identity.sign(&join_bytes(&self.trust.root().to_bytes(), &node, time));
        let join = Join { node, time, labels: labels.clone(), token: None, signature };
        let body = Bytes::from(codec::encode(&join));
        let request = self.client.request_with(Method::POST, path, &Credentials::none(), body);
        let bytes = self.client.fetch(&request, REPLY_LEN_MAX).await?;
        let wrong = |error: String| self.client.protocol(path, &error);
        let joined = codec::decode::<Joined, REPLY_LEN_MAX>(&bytes).map_err(|error| wrong(error.to_string()))?;
        let membership: Membership = self.open(&joined.membership).await.map_err(|error| wrong(error.to_string()))?;
        if membership.node != node {
            return Err(wrong("the membership is another node's".into()));
        }
        let revocations = match joined.revocations {
            None => None,
            Some(envelope) => {
                let list = self.open(&envelope).await.map_err(|error| wrong(error.to_string()))?;
                Some((envelope, list))
            }
        };
        let member = Member { envelope: joined.membership, membership, revocations };
        Ok(self.set_member(member))
    }

    /// Tells the seeder where this node is found, and hears of others of the fleet.
    ///
    /// # Errors
    /// As all requests; [`UpstreamError::Protocol`] while the node's own addresses are not known.
    pub async fn meet(&self) -> Result<Vec<PeerInfo>, UpstreamError> {
        let path = "/v2/_shoal/members";
        let me = self.me.read().unwrap_or_else(PoisonError::into_inner).clone();
        let membership = self.member.borrow().as_ref().map(|member| member.envelope.clone());
        let me = me.ok_or_else(|| self.client.protocol(path, "this node's own addresses are not known yet"))?;
        let body = Bytes::from(codec::encode(&Meet { membership, me }));
        let request = self.client.request_with(Method::POST, path, &Credentials::none(), body);
        let bytes = self.client.fetch(&request, REPLY_LEN_MAX).await?;
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
            self.set_member(Member { envelope, membership, revocations: None });
        }
        holds
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

pub(super) fn now() -> UnixSeconds {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
