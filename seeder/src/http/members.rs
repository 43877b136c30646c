//! Who asks: joins, the check of every request that a member sends, and where members are found.

use std::{net::IpAddr, time::Instant};

use ed25519_dalek::{Signature, VerifyingKey};
use http::StatusCode;
use shoal_http::{ApiError, Reply, RequestBody, body::collect};
use shoal_proto::{
    api::{Join, Joined, Meet, Met, REQUEST_LEN_MAX, Revocations, Shown, join_bytes},
    codec::{self, CodecError},
    member::{BadCaller, CALLER_HEADER, CLOCK_SKEW_MAX_S, Caller, NotAdmitted},
    message::PeerInfo,
    oci::ErrorCode,
    signed::{Labels, Membership, NodeId},
};

use super::{
    Answer, Asked, Registry, busy, store_failed,
    vendor::{encoded, invalid},
};
use crate::{
    events::Event,
    keys::valid_for,
    kubernetes::NotVouched,
    members::{JoinError, MEMBERSHIP_S},
    time::{unix_ms, unix_seconds},
};

/// A refusal with a word that programs can tell it by.
fn denied(reason: &str, message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::Denied, message).detail(serde_json::json!({ "reason": reason }))
}

fn decode<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, ApiError> {
    codec::decode::<T, REQUEST_LEN_MAX>(bytes).map_err(|error: CodecError| invalid(&error.to_string()))
}

fn not_joined(error: JoinError) -> ApiError {
    match &error {
        JoinError::Store(error) => store_failed(error),
        JoinError::Busy => busy("too many nodes join at once"),
        JoinError::TokenNeeded
        | JoinError::TokenUnknown
        | JoinError::TokenEnded
        | JoinError::TokenUsedUp
        | JoinError::AccountNeeded
        | JoinError::AccountUsed
        | JoinError::Revoked => denied(error.as_str(), error.to_string()),
        JoinError::Random => ApiError::internal(error.to_string()),
    }
}

fn not_vouched(error: NotVouched) -> ApiError {
    if matches!(error, NotVouched::Unavailable(_)) {
        // Not the node's fault: it tries on.
        ApiError::internal(error.to_string()).status(StatusCode::SERVICE_UNAVAILABLE)
    } else {
        denied(error.as_str(), error.to_string())
    }
}

/// Whom the pieces that a stranger draws from an open seeder are counted for: its address.
pub(super) fn stranger(asked: &Asked) -> (NodeId, Labels) {
    let source = match asked.peer.remote.ip().to_canonical() {
        IpAddr::V4(ip) => blake3::hash(&ip.octets()),
        IpAddr::V6(ip) => blake3::hash(&ip.octets()),
    };
    (NodeId(*source.as_bytes()), Labels::default())
}

impl Registry {
    pub(super) async fn join(&self, body: RequestBody) -> Answer {
        let join: Join = decode(&collect(body, REQUEST_LEN_MAX).await?)?;
        if join.time.abs_diff(unix_seconds()) > CLOCK_SKEW_MAX_S {
            let message =
                format!("the node's clock is over {CLOCK_SKEW_MAX_S} s off the seeder's; set it and try again");
            return Err(denied("bad-time", message));
        }
        let signed = join_bytes(self.fleet.root(), &join.node, join.time);
        let held = VerifyingKey::from_bytes(&join.node.0)
            .and_then(|key| key.verify_strict(&signed, &Signature::from_bytes(&join.signature)));
        held.map_err(|_| denied("bad-signature", "the node's signature does not hold for this fleet"))?;
        let membership = match &join.shown {
            Shown::Nothing if self.access.is_open() => open_membership(&join)?,
            Shown::Nothing => self.members.join(&join.node, None, join.time).await.map_err(not_joined)?,
            Shown::Token(token) => self.members.join(&join.node, Some(token), join.time).await.map_err(not_joined)?,
            Shown::ServiceAccount(token) => {
                let vouched = self.clusters.vouch(token, unix_seconds(), Instant::now()).await.map_err(not_vouched)?;
                self.members.join_vouched(&join.node, &vouched).await.map_err(not_joined)?
            }
        };
        self.events.tell(&Event::NodeJoined { node: join.node });
        Ok(encoded(&Joined { membership: self.fleet.sign(&membership), revocations: self.members.revocations() }))
    }

    pub(super) fn revocations(&self) -> Reply {
        let revocations = Revocations { list: self.members.revocations(), again_in_s: self.members.ask_again_s() };
        encoded(&revocations)
    }

    /// A request and the member that sent it: the one check of what an agent says of itself. None where the seeder is open
    /// and nobody says anything.
    pub(super) async fn called<T: bincode::Decode<()>>(
        &self,
        asked: &Asked,
        body: RequestBody,
    ) -> Result<(T, Option<Membership>), ApiError> {
        let body = collect(body, REQUEST_LEN_MAX).await?;
        let member = self.caller(asked, &body).map_err(|error| denied(error.as_str(), error.to_string()))?;
        Ok((decode(&body)?, member))
    }

    fn caller(&self, asked: &Asked, body: &[u8]) -> Result<Option<Membership>, BadCaller> {
        let Some(header) = asked.headers.get(CALLER_HEADER) else {
            let open = self.access.is_open();
            return if open { Ok(None) } else { Err(NotAdmitted::None.into()) };
        };
        let caller = Caller::from_header(header.to_str().map_err(|_| BadCaller::Header)?)?;
        let is_revoked = |serial| self.members.is_revoked(serial);
        let request = (asked.path.as_str(), body);
        caller.check(self.fleet.root(), &*self.fleet.key_set(), request, is_revoked, unix_seconds()).map(Some)
    }

    pub(super) async fn meet(&self, asked: &Asked, body: RequestBody) -> Answer {
        let (meet, caller) = self.called::<Meet>(asked, body).await?;
        let me = self.reached_at(caller, &meet.me, asked)?;
        let introductions = me.map(|me| self.swarm().meet(me, unix_ms())).unwrap_or_default();
        self.metrics.introduced(introductions.len());
        Ok(encoded(&Met { introductions }))
    }

    /// How a member may be introduced to others: at addresses that it can have, with the labels of its membership. None for
    /// a stranger; an open seeder serves it all the same, but nobody hears of it.
    pub(super) fn reached_at(
        &self,
        caller: Option<Membership>,
        claimed: &PeerInfo,
        asked: &Asked,
    ) -> Result<Option<PeerInfo>, ApiError> {
        let Some(member) = caller else { return Ok(None) };
        if member.node != claimed.node {
            return Err(denied("another-node", "the request names another node than the one that signed it"));
        }
        let source = asked.peer.remote.ip();
        Ok(Some(PeerInfo {
            node: member.node,
            peer: self.addresses.filter(&claimed.peer, source),
            libp2p: self.addresses.filter(&claimed.libp2p, source),
            labels: member.labels,
        }))
    }
}

/// Whoever asks an open seeder is a member, with the labels that it would like. Nothing is kept of it.
fn open_membership(join: &Join) -> Result<Membership, ApiError> {
    let mut serial = [0; 8];
    getrandom::fill(&mut serial).map_err(|_| ApiError::internal("the system gives no random bytes"))?;
    let (not_before, not_after) = valid_for(MEMBERSHIP_S);
    let (labels, serial) = (join.labels.clone(), u64::from_le_bytes(serial));
    Ok(Membership { node: join.node, labels, not_before, not_after, serial })
}
