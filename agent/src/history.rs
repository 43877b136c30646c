//! What the last pulls were made of: `shoal explain`.
//!
//! Kept in memory, bounded in pulls and in blobs of each. A pull begins when an image is asked for and nothing of it has
//! moved for five seconds; what runtimes ask for in between belongs to the same one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use shoal_proto::{
    Digest,
    name::Repository,
    signed::{NodeId, Scope},
};
use shoal_transfer::ids::RequestId;
use tokio::time::Instant;

/// Pulls that are remembered: a day of rollouts on an ordinary node.
pub const PULLS_MAX: usize = 64;
/// Blobs of one pull that are told apart; the largest ordinary images have half as many.
const BLOBS_MAX: usize = 256;
/// Peers that are counted for one source of a blob.
const PEERS_MAX: usize = 256;
/// An image that is asked for again after so long without a byte is pulled anew.
const QUIET: Duration = Duration::from_secs(5);

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A peer of the same site.
    Site,
    /// A peer of the same zone.
    Zone,
    /// A peer of the same region.
    Region,
    /// A peer elsewhere, or one that has no labels.
    Fleet,
    /// The seeder.
    Seeder,
}

impl Source {
    /// A peer that shares this scope and no narrower one.
    #[must_use]
    pub const fn peer(scope: Scope) -> Self {
        match scope {
            Scope::Site => Self::Site,
            Scope::Zone => Self::Zone,
            Scope::Region => Self::Region,
            Scope::Fleet => Self::Fleet,
        }
    }
}

/// Why the seeder was asked for pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// No connected peer had any of the blob.
    NoPeers,
    /// Peers had some of it, but not these pieces.
    NotHeld,
    /// Nothing had come for a while, whoever held what.
    Stalled,
}

impl Why {
    /// For people.
    #[must_use]
    pub const fn explain(self) -> &'static str {
        match self {
            Self::NoPeers => "no connected peer had any of the blob",
            Self::NotHeld => "no connected peer had these pieces",
            Self::Stalled => "nothing had come for a while",
        }
    }
}

/// What one source gave of a blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Which.
    pub source: Source,
    /// Verified bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u32,
    /// Peers that gave them; 1 for the seeder.
    pub peers: usize,
    /// From the first request to the last piece, in seconds.
    pub seconds: f64,
}

/// One blob of a pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlobReport {
    /// The blob.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Bytes that were stored here before.
    pub local: u64,
    /// Who gave the rest.
    pub shares: Vec<Share>,
    /// Bytes from the seeder, by the reason for which it was asked.
    pub fallbacks: Vec<(Why, u64)>,
    /// What the seeder said last when it gave nothing.
    pub trouble: Option<String>,
    /// Until it was whole, or until now, in seconds.
    pub seconds: f64,
    /// Whether it is whole.
    pub complete: bool,
}

/// One pull.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PullReport {
    /// The manifest.
    pub image: Digest,
    /// The repository, as the seeder knows it.
    pub repository: String,
    /// When it began, in Unix seconds.
    pub started_at: u64,
    /// Its blobs in the order in which they were wanted.
    pub blobs: Vec<BlobReport>,
}

#[derive(Debug)]
struct Tally {
    bytes: u64,
    pieces: u32,
    peers: BTreeSet<NodeId>,
    first: Instant,
    last: Instant,
}

#[derive(Debug)]
struct Layer {
    digest: Digest,
    size: u64,
    local: u64,
    since: Instant,
    done: Option<Instant>,
    sources: BTreeMap<Source, Tally>,
    fallbacks: BTreeMap<Why, u64>,
    trouble: Option<String>,
}

#[derive(Debug)]
struct Pull {
    image: Digest,
    repository: Repository,
    at: SystemTime,
    /// When anything last happened.
    last: Instant,
    layers: Vec<Layer>,
}

/// The last pulls.
#[derive(Debug, Default)]
pub struct History {
    pulls: VecDeque<Pull>,
    /// Why each open request to the seeder was made. Bounded by the requests that the policy has open.
    asked: BTreeMap<RequestId, Why>,
}

impl History {
    /// An image is about to be pulled, or more is asked of one that is.
    pub fn image(&mut self, image: Digest, repository: &Repository, now: Instant) {
        let newest = self.pulls.iter().rev().find(|pull| pull.image == image);
        if newest.is_some_and(|pull| now.duration_since(pull.last) < QUIET || !pull.is_over()) {
            return;
        }
        if self.pulls.len() >= PULLS_MAX {
            self.pulls.pop_front();
        }
        let repository = repository.clone();
        self.pulls.push_back(Pull { image, repository, at: SystemTime::now(), last: now, layers: Vec::new() });
    }

    /// A blob of the image is wanted, `local` bytes of which are here already.
    pub fn wanted(&mut self, image: &Digest, digest: Digest, size: u64, local: u64, now: Instant) {
        let Some(pull) = self.pulls.iter_mut().rev().find(|pull| pull.image == *image) else { return };
        if pull.layers.len() >= BLOBS_MAX || pull.layers.iter().any(|layer| layer.digest == digest) {
            return;
        }
        pull.last = now;
        pull.layers.push(Layer {
            digest,
            size,
            local,
            since: now,
            done: (local == size).then_some(now),
            sources: BTreeMap::new(),
            fallbacks: BTreeMap::new(),
            trouble: None,
        });
    }

    /// A source was asked for a piece.
    pub fn asked(&mut self, digest: &Digest, source: Source, now: Instant) {
        if let Some(layer) = self.layer(digest, now) {
            layer.sources.entry(source).or_insert_with(|| Tally::new(now));
        }
    }

    /// The seeder was asked.
    pub fn asked_seeder(&mut self, request: RequestId, digest: &Digest, why: Why, now: Instant) {
        self.asked.insert(request, why);
        self.asked(digest, Source::Seeder, now);
    }

    /// A request to the seeder is over; what it said if it gave nothing.
    pub fn seeder_over(&mut self, request: RequestId, digest: Option<&Digest>, trouble: Option<&str>, now: Instant) {
        self.asked.remove(&request);
        if let (Some(digest), Some(trouble)) = (digest, trouble)
            && let Some(layer) = self.layer(digest, now)
        {
            layer.trouble = Some(trouble.to_owned());
        }
    }

    /// A verified piece came from a peer.
    pub fn from_peer(&mut self, digest: &Digest, source: Source, peer: NodeId, bytes: u64, now: Instant) {
        if let Some(layer) = self.layer(digest, now) {
            let tally = layer.sources.entry(source).or_insert_with(|| Tally::new(now));
            tally.add(bytes, now);
            if tally.peers.len() < PEERS_MAX {
                tally.peers.insert(peer);
            }
        }
    }

    /// A verified piece came from the seeder.
    pub fn from_seeder(&mut self, request: RequestId, digest: &Digest, bytes: u64, now: Instant) {
        let why = self.asked.get(&request).copied();
        if let Some(layer) = self.layer(digest, now) {
            layer.sources.entry(Source::Seeder).or_insert_with(|| Tally::new(now)).add(bytes, now);
            if let Some(why) = why {
                *layer.fallbacks.entry(why).or_default() += bytes;
            }
        }
    }

    /// A blob is whole.
    pub fn complete(&mut self, digest: &Digest, now: Instant) {
        if let Some(layer) = self.layer(digest, now) {
            layer.done = Some(now);
        }
    }

    /// What there is to tell, the newest pull first.
    #[must_use]
    pub fn report(&self, now: Instant) -> Vec<PullReport> {
        self.pulls.iter().rev().map(|pull| pull.report(now)).collect()
    }

    /// The blob in the newest pull that still fetches it.
    fn layer(&mut self, digest: &Digest, now: Instant) -> Option<&mut Layer> {
        let open = |layer: &Layer| layer.digest == *digest && layer.done.is_none();
        let pull = self.pulls.iter_mut().rev().find(|pull| pull.layers.iter().any(open))?;
        pull.last = now;
        pull.layers.iter_mut().find(|layer| open(layer))
    }
}

impl Tally {
    const fn new(now: Instant) -> Self {
        Self { bytes: 0, pieces: 0, peers: BTreeSet::new(), first: now, last: now }
    }

    const fn add(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        self.pieces += 1;
        self.last = now;
    }
}

impl Pull {
    fn is_over(&self) -> bool {
        self.layers.iter().all(|layer| layer.done.is_some())
    }

    fn report(&self, now: Instant) -> PullReport {
        PullReport {
            image: self.image,
            repository: self.repository.to_string(),
            started_at: self.at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            blobs: self.layers.iter().map(|layer| layer.report(now)).collect(),
        }
    }
}

impl Layer {
    fn report(&self, now: Instant) -> BlobReport {
        let given = self.sources.iter().filter(|(_, tally)| tally.pieces > 0);
        BlobReport {
            digest: self.digest,
            size: self.size,
            local: self.local,
            shares: given
                .map(|(&source, tally)| Share {
                    source,
                    bytes: tally.bytes,
                    pieces: tally.pieces,
                    peers: tally.peers.len().max(1),
                    seconds: tally.last.duration_since(tally.first).as_secs_f64(),
                })
                .collect(),
            fallbacks: self.fallbacks.iter().map(|(&why, &bytes)| (why, bytes)).collect(),
            trouble: self.trouble.clone(),
            seconds: self.done.unwrap_or(now).duration_since(self.since).as_secs_f64(),
            complete: self.done.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_transfer::ids::Id as _;

    use super::*;

    fn repository() -> Repository {
        "team/app".parse().unwrap()
    }

    #[test]
    fn a_pull_tells_who_gave_what_and_why_the_seeder_was_asked() {
        let (mut history, now) = (History::default(), Instant::now());
        let (image, blob, stored) = (Digest::of(b"image"), Digest::of(b"blob"), Digest::of(b"stored"));
        history.image(image, &repository(), now);
        history.wanted(&image, stored, 7, 7, now);
        history.wanted(&image, blob, 30, 5, now);
        let (first, second) = (RequestId::new(0, 0), RequestId::new(1, 0));
        history.asked_seeder(first, &blob, Why::NoPeers, now);
        history.asked_seeder(second, &blob, Why::Stalled, now);
        let later = now + Duration::from_secs(2);
        history.from_seeder(first, &blob, 10, later);
        history.seeder_over(first, Some(&blob), None, later);
        history.seeder_over(second, Some(&blob), Some("503"), later);
        history.asked(&blob, Source::Zone, later);
        for n in 1..=3 {
            history.from_peer(&blob, Source::Zone, NodeId([n; 32]), 5, later + Duration::from_secs(1));
        }
        history.complete(&blob, later + Duration::from_secs(1));
        let reports = history.report(later);
        let [kept, fetched] = &reports[0].blobs[..] else { panic!("{reports:?}") };
        assert!(kept.complete && kept.shares.is_empty() && kept.local == 7);
        assert_eq!((fetched.local, fetched.seconds, fetched.complete), (5, 3.0, true));
        let zone = Share { source: Source::Zone, bytes: 15, pieces: 3, peers: 3, seconds: 1.0 };
        let seeder = Share { source: Source::Seeder, bytes: 10, pieces: 1, peers: 1, seconds: 2.0 };
        assert_eq!(fetched.shares, [zone, seeder]);
        assert_eq!(fetched.fallbacks, [(Why::NoPeers, 10)]);
        assert_eq!(fetched.trouble.as_deref(), Some("503"));
        assert!(history.asked.is_empty());
    }

    #[test]
    fn requests_of_one_pull_belong_together_and_the_next_pull_is_another() {
        let (mut history, now) = (History::default(), Instant::now());
        let (image, blob) = (Digest::of(b"image"), Digest::of(b"blob"));
        history.image(image, &repository(), now);
        history.wanted(&image, blob, 30, 0, now);
        history.image(image, &repository(), now + QUIET * 2);
        assert_eq!(history.report(now).len(), 1, "it is still being fetched");
        history.complete(&blob, now + QUIET * 2);
        history.image(image, &repository(), now + QUIET * 2);
        assert_eq!(history.report(now).len(), 1, "a runtime asks for the manifest more than once");
        history.image(image, &repository(), now + QUIET * 3);
        assert_eq!(history.report(now).len(), 2);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut history, now) = (History::default(), Instant::now());
        for n in 0..PULLS_MAX + 10 {
            let image = Digest::of(&n.to_le_bytes());
            history.image(image, &repository(), now);
            for blob in 0..=BLOBS_MAX {
                history.wanted(&image, Digest::of(&(n * 1000 + blob).to_le_bytes()), 1, 1, now);
            }
        }
        let reports = history.report(now);
        assert_eq!((reports.len(), reports[0].blobs.len()), (PULLS_MAX, BLOBS_MAX));
    }
}
