//! Keeping the node a member, and knowing who is none any more.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use shoal_proto::{
    codec,
    envelope::{ENVELOPE_LEN_MAX, Envelope},
};
use tokio_util::sync::CancellationToken;

use super::RETRY_PAUSE;
use crate::{
    Config,
    identity::Identity,
    store::{Note, Store},
    upstream::{Upstream, UpstreamError},
};

/// Longest pause between attempts to renew the membership.
const RENEW_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Within this time after the fleet's keys have changed the membership is renewed, so that the new keys have signed it: at
/// random, or the whole fleet would come at once. What the old keys have signed holds for two changes more.
const NEW_KEYS_RENEW_MAX: Duration = Duration::from_secs(300);
/// The same where the membership no longer holds under the new keys: the node has no other to show.
const OLD_KEY_RENEW_MAX: Duration = Duration::from_secs(5);
/// How often the seeder is asked for revocations, whatever it says.
const REVOCATIONS_PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(3600);

/// Takes up the membership that was kept; true if it still holds.
pub(super) async fn resume(upstream: &Upstream, identity: &Identity, store: &Store) -> bool {
    let kept = store.note(Note::Membership).ok().flatten();
    let envelope = kept.and_then(|bytes| codec::decode::<Envelope, ENVELOPE_LEN_MAX>(&bytes).ok());
    match envelope {
        Some(envelope) => upstream.resume(identity, envelope).await,
        None => false,
    }
}

/// Keeps the node a member.
#[derive(Debug)]
pub(super) struct Renewal {
    pub(super) config: Arc<Config>,
    pub(super) upstream: Upstream,
    pub(super) identity: Identity,
    pub(super) store: Store,
}

impl Renewal {
    /// The first attempt, before anything else starts: with it the loop has a membership from its first moment on, as a
    /// rule. `resumed`: one from before still holds, so that nothing depends on it.
    ///
    /// # Errors
    /// The seeder does not let this node in, and never did: trying on would not help.
    pub(super) async fn first(&self, resumed: bool) -> Result<bool> {
        match self.join().await {
            Ok(()) => Ok(true),
            Err(error @ (UpstreamError::Unauthorized(_) | UpstreamError::ServiceAccount { .. })) if !resumed => {
                Err(anyhow::Error::new(error).context("cannot join the fleet"))
            }
            Err(error) => {
                tracing::warn!(%error, resumed, "cannot join the fleet now; trying on");
                Ok(false)
            }
        }
    }

    async fn join(&self) -> Result<(), UpstreamError> {
        let member = self.upstream.join(&self.identity, &self.config.labels).await?;
        if let Err(error) = self.store.put_note(Note::Membership, &codec::encode(&member.envelope)) {
            tracing::error!(%error, "the membership cannot be kept");
        }
        Ok(())
    }

    /// Renews at half of the membership's life; after a failure sooner and sooner apart.
    pub(super) async fn run(self, joined: bool, stop: CancellationToken) -> Result<()> {
        let mut pause = if joined { self.half_life() } else { RETRY_PAUSE };
        let mut keys = self.upstream.trust().versions();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
                Ok(()) = keys.changed() => {
                    let within = if self.upstream.member_holds() { NEW_KEYS_RENEW_MAX } else { OLD_KEY_RENEW_MAX };
                    pause = pause.min(jittered(within));
                    continue;
                }
                () = self.upstream.refused() => {
                    pause = pause.min(jittered(RETRY_PAUSE));
                    continue;
                }
            }
            match self.join().await {
                Ok(()) => pause = self.half_life(),
                Err(error) => {
                    pause = (pause * 2).clamp(RETRY_PAUSE, RENEW_PAUSE_MAX);
                    tracing::warn!(%error, again_in_s = pause.as_secs(), "the membership cannot be renewed now");
                }
            }
        }
    }

    fn half_life(&self) -> Duration {
        let member = self.upstream.member();
        let life = member
            .borrow()
            .as_ref()
            .map(|member| member.membership.not_after.saturating_sub(member.membership.not_before));
        // A clock that is off must not turn this into a storm of requests.
        Duration::from_secs(life.unwrap_or(0) / 2).max(RENEW_PAUSE_MAX)
    }
}

/// Asks the seeder now and then for its keys, and who was revoked. What it says goes on from member to member, so that one question in the
/// whole fleet is enough; each node's own is for those that are connected with nobody.
pub(super) async fn revocations(upstream: Upstream, stop: CancellationToken) -> Result<()> {
    let mut pause = *REVOCATIONS_PAUSE.start();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // Half of it at random: nodes that start together do not ask together.
            () = tokio::time::sleep(pause / 2 + jittered(pause / 2)) => {}
        }
        match upstream.revocations().await {
            Ok(seconds) => {
                let asked = Duration::from_secs(u64::from(seconds));
                pause = asked.clamp(*REVOCATIONS_PAUSE.start(), *REVOCATIONS_PAUSE.end());
            }
            Err(error) => tracing::debug!(%error, "the seeder does not say who was revoked"),
        }
    }
}

/// A random part of a time.
fn jittered(most: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness all nodes come a little later, and together.
    let _ = getrandom::fill(&mut random);
    most * u32::from(random[0]) / 255
}
