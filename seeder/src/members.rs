//! Who belongs to the fleet: join tokens, members, revocations; and who administers all that also names the registry's
//! [users](crate::users).
//!
//! Everything is a small record in the store, changed by compare-and-swap: a token's use and the member that it makes are
//! one change, so of two nodes that come with the last use in the same instant exactly one becomes a member. Nothing is
//! held in memory but the revocation list, which every request of a member is checked against, and the number of members.
//!
//! | key | record |
//! |---|---|
//! | `t` token id | [`Token`] |
//! | `m` node | [`Member`] |
//! | `k` end, service-account token | the node that showed it |
//! | `r` | `Revoked` |
//! | `u` name | a user |
//!
//! A member keeps its serial over all renewals, so one entry of the list takes all its memberships; the entry is dropped
//! when the last of them has ended.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

use bincode::{Decode, Encode};
use shoal_proto::{
    api::{TokenId, TokenShown},
    codec,
    envelope::Envelope,
    member::CLOCK_SKEW_MAX_S,
    signed::{Labels, Membership, NodeId, RevocationList, UnixSeconds, Version},
    token::{JoinToken, TokenKey},
};

use crate::{
    keys::{Fleet, RotateError, valid_for},
    store::{Store, StoreError, Swap},
    time::unix_seconds,
    users::Users,
};

pub mod order;
mod record;
#[cfg(test)]
mod tests;
mod vouched;

pub use record::{JoinedBy, Member};

/// A membership holds for a day: nodes renew it at half of that, and a fleet outlives a seeder that is away for a night.
pub const MEMBERSHIP_S: u64 = 86_400;
/// Most revocations that are in force at once. The list goes to every member; whoever has to revoke more renews the keys.
pub const REVOKED_MAX: usize = 10_000;
/// Attempts at a change that others interfere with. Each failure is another's success, and no more requests run at once.
const SWAPS_MAX: usize = 512;
/// Longest record.
const RECORD_LEN_MAX: usize = 1 << 20;
/// Records read at a time when the fleet is counted.
const COUNT_PAGE: usize = 1000;
/// Members ask for the revocations no more often than this each, and no less often than the other.
const ASK_AGAIN_S: std::ops::RangeInclusive<u64> = 30..=3600;
/// Questions for the revocations a second that the whole fleet asks together.
const ASKED_PER_S: u64 = 2;

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Token {
    key: TokenKey,
    /// Nodes that may still join by it.
    pub uses_left: u32,
    /// When it ends.
    pub not_after: UnixSeconds,
    /// What members that join by it are labelled with.
    pub labels: Labels,
}

/// Serials of memberships that no longer hold, with the time until which they would have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
struct Revoked {
    counter: u64,
    entries: Vec<(u64, UnixSeconds)>,
}

/// Why a node does not become a member, or is none any more.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It shows no token, and was never a member.
    #[error("this node is no member yet: it needs a join token (`shoal-seeder join-token create`)")]
    TokenNeeded,
    /// No such token; or the node does not know its secret, which is not told apart.
    #[error("no such join token; it may have been revoked, or be another fleet's")]
    TokenUnknown,
    /// It joined by the word of its cluster, and does not show it now.
    #[error(
        "this node joined by a service-account token: it needs one at every renewal (`shoal agent --join-jwt FILE`)"
    )]
    AccountNeeded,
    /// Another node has shown the same service-account token.
    #[error("another node has shown this service-account token; a token is good for one node")]
    AccountUsed,
    /// The token's time is over.
    #[error("the join token has ended; create another")]
    TokenEnded,
    /// As many nodes have joined by it as may.
    #[error("the join token is used up; create another")]
    TokenUsedUp,
    /// The member was revoked, and shows no other token than the one that it joined by.
    #[error("this node's membership was revoked; only another join token lets it in again")]
    Revoked,
    /// Too many change the same record.
    #[error("too many nodes join at once; try again")]
    Busy,
    /// No random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl JoinError {
    /// One word for machines.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::TokenNeeded => "token-needed",
            Self::TokenUnknown => "token-unknown",
            Self::AccountNeeded => "service-account-needed",
            Self::AccountUsed => "service-account-of-another-node",
            Self::TokenEnded => "token-ended",
            Self::TokenUsedUp => "token-used-up",
            Self::Revoked => "membership-revoked",
            Self::Busy => "busy",
            Self::Random | Self::Store(_) => "failed",
        }
    }
}

/// Why an administrator's order is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// No such thing.
    #[error("no such {0}")]
    Unknown(&'static str),
    /// A value that cannot be.
    #[error("{0}")]
    Value(String),
    /// The keys cannot be rotated.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// The list is full.
    #[error("{REVOKED_MAX} revocations are in force, and no more fit; they lapse within a day")]
    Full,
    /// Others change the same.
    #[error("others change the same record; try again")]
    Busy,
    /// No random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The list in force.
#[derive(Debug, Default)]
struct InForce {
    counter: u64,
    signed: Option<Envelope>,
    serials: Vec<u64>,
}

/// The members of the fleet.
#[derive(Debug)]
pub struct Members {
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    users: Arc<Users>,
    in_force: RwLock<InForce>,
    count: AtomicU64,
}

fn token_key(id: &TokenId) -> Vec<u8> {
    [b"t".as_slice(), &id.0].concat()
}

fn member_key(node: &NodeId) -> Vec<u8> {
    [b"m".as_slice(), &node.0].concat()
}

const REVOKED_KEY: &[u8] = b"r";

fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, StoreError> {
    codec::decode::<T, RECORD_LEN_MAX>(bytes).map_err(StoreError::failed("understand a record of the fleet"))
}

fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}

impl Members {
    /// Takes up what the store holds.
    ///
    /// # Errors
    /// The store failed.
    pub async fn load(store: Arc<dyn Store>, fleet: Arc<Fleet>) -> Result<Self, StoreError> {
        let users = Arc::new(Users::load(Arc::clone(&store), fleet.token_key()).await?);
        let members = Self { store, fleet, users, in_force: RwLock::default(), count: AtomicU64::new(0) };
        if let Some((_, revoked)) = members.read::<Revoked>(REVOKED_KEY.to_vec()).await? {
            members.put_in_force(&revoked);
        }
        let mut after = None;
        loop {
            let page = members.store.fleet_records(b"m".to_vec(), after, COUNT_PAGE).await?;
            members.count.fetch_add(page.items.len() as u64, Ordering::Relaxed);
            after = page.items.last().map(|(key, _)| key.clone());
            if !page.more {
                return Ok(members);
            }
        }
    }

    /// The users of the registry.
    #[must_use]
    pub const fn users(&self) -> &Arc<Users> {
        &self.users
    }

    /// The keys that sign for it.
    #[must_use]
    pub const fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// A record as it is kept and as it reads.
    async fn read<T: Decode<()>>(&self, key: Vec<u8>) -> Result<Option<(Vec<u8>, T)>, StoreError> {
        let Some(bytes) = self.store.fleet_record(key).await? else { return Ok(None) };
        let record = decode(&bytes)?;
        Ok(Some((bytes, record)))
    }

    /// A member's record as it is kept and as it reads.
    async fn member(&self, node: &NodeId) -> Result<Option<(Vec<u8>, Member)>, StoreError> {
        let Some(bytes) = self.store.fleet_record(member_key(node)).await? else { return Ok(None) };
        let member = Member::from_record(&bytes)?;
        Ok(Some((bytes, member)))
    }

    fn counted(&self, is_new: bool) {
        self.count.fetch_add(u64::from(is_new), Ordering::Relaxed);
    }

    /// Makes a node a member, or renews its membership. A token counts only where the node did not join by it before: an
    /// answer that was lost costs no use. The caller has checked that the node signed this at `time`.
    ///
    /// # Errors
    /// The node may not.
    pub async fn join(
        &self,
        node: &NodeId,
        shown: Option<&TokenShown>,
        time: UnixSeconds,
    ) -> Result<Membership, JoinError> {
        for _ in 0..SWAPS_MAX {
            let known = self.member(node).await?;
            let done = match (known, shown) {
                (None, None) => return Err(JoinError::TokenNeeded),
                (Some((_, Member { joined_by: JoinedBy::Account(_), .. })), None) => {
                    return Err(JoinError::AccountNeeded);
                }
                (Some((old, member)), None) => self.renew(node, old, member).await?,
                (Some((old, member)), Some(shown)) if member.joined_by == JoinedBy::Token(shown.id) => {
                    self.renew(node, old, member).await?
                }
                (known, Some(shown)) => self.admit(node, known.map(|(old, _)| old), shown, time).await?,
            };
            if let Some(membership) = done {
                return Ok(membership);
            }
        }
        Err(JoinError::Busy)
    }

    /// A new membership for a member. None: its record has changed meanwhile.
    async fn renew(&self, node: &NodeId, old: Vec<u8>, member: Member) -> Result<Option<Membership>, JoinError> {
        if member.revoked_at.is_some() {
            return Err(JoinError::Revoked);
        }
        let (not_before, not_after) = valid_for(MEMBERSHIP_S);
        let member = Member { not_after, ..member };
        let swap = Swap { key: member_key(node), old: Some(old), new: Some(member.to_record()) };
        let swapped = self.store.swap_fleet_records(vec![swap]).await?;
        let Member { labels, serial, .. } = member;
        Ok(swapped.then_some(Membership { node: *node, labels, not_before, not_after, serial }))
    }

    /// A member by a token that it did not join by before. None: a record has changed meanwhile.
    async fn admit(
        &self,
        node: &NodeId,
        old: Option<Vec<u8>>,
        shown: &TokenShown,
        time: UnixSeconds,
    ) -> Result<Option<Membership>, JoinError> {
        let found = self.read::<Token>(token_key(&shown.id)).await?;
        let (old_token, token) = found.ok_or(JoinError::TokenUnknown)?;
        if !token.key.holds(shown, self.fleet.root(), node, time) {
            return Err(JoinError::TokenUnknown);
        }
        if token.not_after <= unix_seconds() {
            return Err(JoinError::TokenEnded);
        }
        let uses_left = token.uses_left.checked_sub(1).ok_or(JoinError::TokenUsedUp)?;
        let serial = u64::from_le_bytes(random().ok_or(JoinError::Random)?);
        let (not_before, not_after) = valid_for(MEMBERSHIP_S);
        let labels = token.labels.clone();
        let member = Member {
            labels: labels.clone(),
            serial,
            joined_by: JoinedBy::Token(shown.id),
            joined_at: unix_seconds(),
            not_after,
            revoked_at: None,
        };
        let is_new = old.is_none();
        let used = codec::encode(&Token { uses_left, ..token });
        let swaps = vec![
            Swap { key: token_key(&shown.id), old: Some(old_token), new: Some(used) },
            Swap { key: member_key(node), old, new: Some(member.to_record()) },
        ];
        if !self.store.swap_fleet_records(swaps).await? {
            return Ok(None);
        }
        self.counted(is_new);
        Ok(Some(Membership { node: *node, labels, not_before, not_after, serial }))
    }

    /// Makes a join token for `uses` nodes, good for `ttl_s` seconds.
    ///
    /// # Errors
    /// No random bytes, or the store failed.
    pub async fn create_token(&self, uses: u32, ttl_s: u64, labels: Labels) -> Result<JoinToken, OrderError> {
        let token = JoinToken::new(*self.fleet.root(), random().ok_or(OrderError::Random)?);
        let not_after = unix_seconds().saturating_add(ttl_s);
        let record = Token { key: token.key(), uses_left: uses, not_after, labels };
        let swap = Swap { key: token_key(&token.id()), old: None, new: Some(codec::encode(&record)) };
        if self.store.swap_fleet_records(vec![swap]).await? { Ok(token) } else { Err(OrderError::Busy) }
    }

    /// Takes a token back. Who has joined by it stays a member.
    ///
    /// # Errors
    /// There is no such token, or the store failed.
    pub async fn revoke_token(&self, id: &TokenId) -> Result<(), OrderError> {
        for _ in 0..SWAPS_MAX {
            let old = self.store.fleet_record(token_key(id)).await?.ok_or(OrderError::Unknown("join token"))?;
            let swap = Swap { key: token_key(id), old: Some(old), new: None };
            if self.store.swap_fleet_records(vec![swap]).await? {
                return Ok(());
            }
        }
        Err(OrderError::Busy)
    }

    /// Ends a member's memberships, all at once; the fleet hears of it by the list.
    ///
    /// # Errors
    /// There is no such member, the list is full, or the store failed.
    pub async fn revoke(&self, node: &NodeId) -> Result<Member, OrderError> {
        for _ in 0..SWAPS_MAX {
            let found = self.member(node).await?;
            let (old_member, member) = found.ok_or(OrderError::Unknown("member"))?;
            if member.revoked_at.is_some() {
                return Ok(member);
            }
            let list = self.read::<Revoked>(REVOKED_KEY.to_vec()).await?;
            let (old_list, mut list) = list.map_or_else(Default::default, |(old, list)| (Some(old), list));
            let now = unix_seconds();
            // A clock that is late takes a membership for longer.
            list.entries.retain(|(_, until)| until + CLOCK_SKEW_MAX_S > now);
            if list.entries.len() >= REVOKED_MAX {
                return Err(OrderError::Full);
            }
            list.entries.push((member.serial, member.not_after));
            list.entries.sort_unstable();
            list.counter += 1;
            let member = Member { revoked_at: Some(now), ..member };
            let swaps = vec![
                Swap { key: member_key(node), old: Some(old_member), new: Some(member.to_record()) },
                Swap { key: REVOKED_KEY.to_vec(), old: old_list, new: Some(codec::encode(&list)) },
            ];
            if self.store.swap_fleet_records(swaps).await? {
                self.put_in_force(&list);
                return Ok(member);
            }
        }
        Err(OrderError::Busy)
    }

    /// Gives the fleet new keys. A list that is in force is signed with them, as a newer version of itself.
    ///
    /// # Errors
    /// `root` is not the fleet's root key, or the store failed.
    pub async fn rotate_keys(&self, root: &[u8; 32]) -> Result<Version, OrderError> {
        let version = self.fleet.rotate(&*self.store, root).await?;
        for _ in 0..SWAPS_MAX {
            let Some((old, mut list)) = self.read::<Revoked>(REVOKED_KEY.to_vec()).await? else { break };
            list.counter += 1;
            let swap = Swap { key: REVOKED_KEY.to_vec(), old: Some(old), new: Some(codec::encode(&list)) };
            if self.store.swap_fleet_records(vec![swap]).await? {
                self.put_in_force(&list);
                break;
            }
        }
        Ok(version)
    }

    fn put_in_force(&self, revoked: &Revoked) {
        let serials: Vec<u64> = revoked.entries.iter().map(|(serial, _)| *serial).collect();
        let version = self.fleet.version(revoked.counter);
        let signed = Some(self.fleet.sign(&RevocationList { version, serials: serials.clone() }));
        let mut in_force = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        // Of two that revoke at once, the one with the older list may come last.
        if revoked.counter > in_force.counter {
            *in_force = InForce { counter: revoked.counter, signed, serials };
        }
    }

    /// Whether the membership of that serial was revoked.
    #[must_use]
    pub fn is_revoked(&self, serial: u64) -> bool {
        let in_force = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        in_force.serials.binary_search(&serial).is_ok()
    }

    /// The signed list, if anybody was ever revoked.
    #[must_use]
    pub fn revocations(&self) -> Option<Envelope> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).signed.clone()
    }

    /// When a member asks for the list again: the larger the fleet, the less often each.
    #[must_use]
    pub fn ask_again_s(&self) -> u32 {
        let seconds = self.count.load(Ordering::Relaxed) / ASKED_PER_S;
        u32::try_from(seconds.clamp(*ASK_AGAIN_S.start(), *ASK_AGAIN_S.end())).expect("an hour at the most")
    }
}
