//! Joins by the word of a Kubernetes cluster.

use shoal_proto::{
    member::CLOCK_SKEW_MAX_S,
    signed::{Membership, NodeId, UnixSeconds},
};

use super::{JoinError, JoinedBy, MEMBERSHIP_S, Member, Members, SWAPS_MAX, member_key, random};
use crate::{
    keys::valid_for,
    kubernetes::Vouched,
    store::{StoreError, Swap},
    time::unix_seconds,
};

/// Ended tokens that a join forgets: more than the one that it adds, so they do not pile up.
const FORGOTTEN_MAX: usize = 16;

/// Sorted by when the token ends, so that those that have ended come first.
fn shown_key(vouched: &Vouched) -> Vec<u8> {
    [b"k".as_slice(), &vouched.until.to_be_bytes(), &vouched.token].concat()
}

impl Members {
    /// Makes a node a member for which a cluster vouches, or renews its membership. A token counts for the first node that
    /// shows it. The caller has checked that the node signed this.
    ///
    /// # Errors
    /// The node may not.
    pub async fn join_vouched(&self, node: &NodeId, vouched: &Vouched) -> Result<Membership, JoinError> {
        self.forget_ended(unix_seconds()).await?;
        for _ in 0..SWAPS_MAX {
            let shown = self.store.fleet_record(shown_key(vouched)).await?;
            if shown.as_ref().is_some_and(|by| *by != node.0) {
                return Err(JoinError::AccountUsed);
            }
            let old = self.store.fleet_record(member_key(node)).await?;
            let known = old.as_deref().map(Member::from_record).transpose()?;
            if known.as_ref().is_some_and(|member| member.revoked_at.is_some()) {
                return Err(JoinError::Revoked);
            }
            let (not_before, not_after) = valid_for(MEMBERSHIP_S);
            let (serial, joined_at) = match &known {
                Some(member) => (member.serial, member.joined_at),
                None => (u64::from_le_bytes(random().ok_or(JoinError::Random)?), unix_seconds()),
            };
            let (labels, joined_by) = (vouched.labels.clone(), JoinedBy::Account(vouched.account.clone()));
            let member = Member { labels: labels.clone(), serial, joined_by, joined_at, not_after, revoked_at: None };
            let is_new = old.is_none();
            let swaps = vec![
                Swap { key: shown_key(vouched), old: shown, new: Some(node.0.to_vec()) },
                Swap { key: member_key(node), old, new: Some(member.to_record()) },
            ];
            if self.store.swap_fleet_records(swaps).await? {
                self.counted(is_new);
                return Ok(Membership { node: *node, labels, not_before, not_after, serial });
            }
        }
        Err(JoinError::Busy)
    }

    async fn forget_ended(&self, now: UnixSeconds) -> Result<(), StoreError> {
        let page = self.store.fleet_records(b"k".to_vec(), None, FORGOTTEN_MAX).await?;
        let ended = page.items.into_iter().filter(|(key, _)| {
            let until = key.get(1..).and_then(|rest| rest.first_chunk()).map_or(0, |until| u64::from_be_bytes(*until));
            until.saturating_add(CLOCK_SKEW_MAX_S) < now
        });
        let swaps: Vec<_> = ended.map(|(key, old)| Swap { key, old: Some(old), new: None }).collect();
        // Another join may have done it.
        if !swaps.is_empty() {
            let _ = self.store.swap_fleet_records(swaps).await?;
        }
        Ok(())
    }
}
