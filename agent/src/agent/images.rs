//! Images: under which capability a blob may be read, where its holders are looked for, who else is interested.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shoal_proto::{
    Digest,
    api::Discovery,
    codec,
    envelope::Envelope,
    merkle::MerkleTree,
    message::{Bundle, FRAME_LEN_MAX, Message},
    name::Repository,
    signed::{Candidates, Capability, Covered, DiscoveryKey, Scope},
};
use shoal_transfer::{
    event::Input,
    ids::{BlobId, PeerId},
};

use tokio::time::Instant;

use super::{Shell, answers::ANSWER_HEAD_LEN, bundle::STATEMENTS_MAX, links::Shown, peers::rank, unix_now};
use crate::{
    handle::ImageContext,
    store::{ImageInfo, ImageRecord},
};

/// Images that are remembered with all that belongs to them: what a node runs, and a few versions of it.
const IMAGES_MAX: usize = 1024;
/// Interested peers remembered for an image; as many as the core takes for a blob.
const INTERESTED_MAX: usize = 128;

/// References of one image under which its bundle is given out.
const BUNDLES_MAX: usize = 32;

/// Candidate lists kept for an image: one for each scope that holds this node, and a few that others pass on.
const CANDIDATE_LISTS_MAX: usize = 8;
/// Envelopes of one message that are opened: each costs a signature check.
const SIGNED_MAX: usize = 8;

/// What is known of an image besides its blobs.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) repository: Repository,
    pub(super) capability: Envelope,
    pub(super) covers: Capability,
    pub(super) discovery: Vec<Discovery>,
    /// What the capability covers, where it names a root.
    tree: Option<MerkleTree>,
    /// What peers get who ask for it by these keys: one for each reference that was pulled here.
    bundles: BTreeMap<DiscoveryKey, Arc<Bundle>>,
    /// As signed and opened.
    candidates: Vec<(Envelope, Candidates)>,
    /// Nodes said to be interested.
    pub(super) peers: BTreeSet<PeerId>,
    /// Connected ones that others have not been told of.
    pub(super) news: Vec<PeerId>,
    /// Order of last use.
    used: u64,
}

/// The images that this node pulls or has pulled.
#[derive(Debug, Default)]
pub(super) struct Images {
    by_digest: BTreeMap<Digest, Image>,
    clock: u64,
}

impl Images {
    pub(super) fn get(&self, image: &Digest) -> Option<&Image> {
        self.by_digest.get(image)
    }

    pub(super) fn get_mut(&mut self, image: &Digest) -> Option<&mut Image> {
        self.by_digest.get_mut(image)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&Digest, &mut Image)> {
        self.by_digest.iter_mut()
    }

    /// The image that a blob belongs to, as far as is known; the one pulled last, if several.
    pub(super) fn of_blob(&self, blob: &Digest) -> Option<Digest> {
        let holds = |image: &Image| image.discovery.iter().any(|found| found.digest == *blob);
        let images = self.by_digest.iter().filter(|(digest, image)| *digest == blob || holds(image));
        images.max_by_key(|(_, image)| image.used).map(|(digest, _)| *digest)
    }

    /// The bundle to be given out under `key`.
    pub(super) fn bundle(&self, key: &DiscoveryKey) -> Option<&Arc<Bundle>> {
        self.by_digest.values().find_map(|image| image.bundles.get(key))
    }

    /// Signed candidate lists of an image, to be passed on.
    pub(super) fn candidate_lists(&self, image: &Digest) -> Vec<Envelope> {
        let image = self.by_digest.get(image);
        image.map(|image| image.candidates.iter().map(|(envelope, _)| envelope.clone()).collect()).unwrap_or_default()
    }

    /// Images and what is known of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, &Image)> {
        self.by_digest.iter()
    }

    pub(super) fn forget_peer(&mut self, peer: PeerId) {
        for image in self.by_digest.values_mut() {
            image.peers.remove(&peer);
            image.news.retain(|other| *other != peer);
        }
    }

    fn insert(&mut self, digest: Digest, mut image: Image) {
        self.clock += 1;
        image.used = self.clock;
        if self.by_digest.len() >= IMAGES_MAX && !self.by_digest.contains_key(&digest) {
            let oldest = self.by_digest.iter().min_by_key(|(_, image)| image.used).map(|(digest, _)| *digest);
            oldest.and_then(|oldest| self.by_digest.remove(&oldest));
        }
        self.by_digest.insert(digest, image);
    }
}

impl Shell {
    /// An image is about to be pulled.
    pub(super) fn on_image(&mut self, context: ImageContext) {
        let digest = context.image;
        self.history.image(digest, &context.repository, Instant::now());
        let known = self.images.by_digest.remove(&digest);
        let (mut peers, mut news) = (BTreeSet::new(), Vec::new());
        let (mut candidates, mut bundles) = (Vec::new(), BTreeMap::new());
        if let Some(known) = known {
            (peers, news, candidates, bundles) = (known.peers, known.news, known.candidates, known.bundles);
        }
        if let Some(bundle) = context.bundle.filter(|bundle| travels(bundle)) {
            self.net.announce(context.bundle_keys.clone());
            bundles.extend(context.bundle_keys.into_iter().take(BUNDLES_MAX).map(|key| (key, bundle.clone())));
            while bundles.len() > BUNDLES_MAX {
                bundles.pop_first();
            }
        }
        if !context.candidates.is_empty() {
            candidates = context.candidates;
        }
        let image = Image {
            tree: tree(&context.covers, context.digests),
            repository: context.repository,
            capability: context.capability,
            covers: context.covers,
            discovery: context.discovery,
            bundles,
            candidates,
            peers,
            news,
            used: 0,
        };
        self.images.insert(digest, image);
        for info in context.introductions {
            if let Some(peer) = self.know(info, false) {
                self.interested(peer, &digest);
            }
        }
        let blobs: Vec<BlobId> = self.blobs.of_image(&digest).collect();
        for blob in blobs {
            self.tell_candidates(blob, &digest);
        }
    }

    /// Takes up an image of an earlier run: its capability still opens doors, its keys still name this node.
    pub(super) fn resume_image(&mut self, info: ImageInfo) {
        let all = info.record.all();
        let ImageRecord { image, repository, capability, discovery, .. } = info.record;
        let Ok(covers) = capability.open::<Capability>(&*self.upstream.trust().keys()) else { return };
        if covers.not_after <= unix_now() || self.images.by_digest.len() >= IMAGES_MAX {
            return;
        }
        // What came from peers was told of no places.
        let told: Vec<Digest> = discovery.iter().map(|found| found.digest).collect();
        let digests = if told.is_empty() { all.into_iter().collect() } else { told };
        let image_state = Image {
            tree: tree(&covers, digests),
            repository,
            capability,
            covers,
            discovery,
            bundles: BTreeMap::new(),
            candidates: Vec::new(),
            peers: BTreeSet::new(),
            news: Vec::new(),
            used: 0,
        };
        self.images.insert(image, image_state);
    }

    /// A node is said to be interested in an image; true if that is news.
    pub(super) fn interested(&mut self, peer: PeerId, image: &Digest) -> bool {
        let Some(known) = self.images.get_mut(image) else { return false };
        if known.peers.len() >= INTERESTED_MAX || !known.peers.insert(peer) {
            return false;
        }
        let blobs: Vec<BlobId> = self.blobs.of_image(image).collect();
        for blob in blobs {
            self.feed(Input::PeerIntroduced { peer, blob });
        }
        true
    }

    /// Tells the core who may be elected to fetch the blob's pieces.
    pub(super) fn tell_candidates(&mut self, blob: BlobId, image: &Digest) {
        let Some(known) = self.images.get(image) else { return };
        let fits = |list: &&Candidates| list.scope < Scope::Fleet && list.labels == self.labels.within(list.scope);
        let lists: Vec<_> = known
            .candidates
            .iter()
            .map(|(_, list)| list)
            .filter(fits)
            .map(|list| (list.scope, list.members.iter().map(rank).collect::<Vec<u64>>()))
            .collect();
        for (scope, ranks) in lists {
            self.feed(Input::Candidates { blob, scope, ranks: ranks.into() });
        }
    }

    /// Signed things that members pass on: candidate lists serve on while the seeder is down. A newer list replaces an
    /// older one.
    pub(super) fn on_signed(&mut self, peer: PeerId, envelopes: &[Envelope]) {
        for envelope in envelopes.iter().take(SIGNED_MAX) {
            if self.on_peers_news(peer, envelope) {
                continue;
            }
            let Ok(list) = envelope.open::<Candidates>(&*self.upstream.trust().keys()) else { continue };
            let digest = list.image;
            let Some(image) = self.images.get_mut(&digest) else { continue };
            let same = |old: &Candidates| old.scope == list.scope && old.labels == list.labels;
            match image.candidates.iter().position(|(_, old)| same(old)) {
                Some(at) if image.candidates[at].1.version < list.version => {
                    image.candidates[at] = (envelope.clone(), list);
                }
                None if image.candidates.len() < CANDIDATE_LISTS_MAX => image.candidates.push((envelope.clone(), list)),
                Some(_) | None => continue,
            }
            let blobs: Vec<BlobId> = self.blobs.of_image(&digest).collect();
            for blob in blobs {
                self.tell_candidates(blob, &digest);
            }
        }
    }

    /// Shows a peer the capability under which this node reads the image's blobs, once; and once for each blob that it covers
    /// it, where it does not list them.
    pub(super) fn show(&mut self, peer: PeerId, image: &Digest, blob: &Digest) {
        let (Some(known), Some(state)) = (self.images.get(image), self.peers.link_mut(peer)) else { return };
        let until = known.covers.not_after;
        let shown = state.shown.entry(*image).or_default();
        let renewed = shown.until != until;
        if renewed {
            *shown = Shown { until, ..Shown::default() };
        }
        let tree = known.tree.as_ref().filter(|_| shown.proven.insert(*blob));
        let proof = tree.and_then(|tree| tree.proof(blob));
        if renewed || proof.is_some() {
            let proofs = proof.map(|proof| (*blob, proof)).into_iter().collect();
            let capability = known.capability.clone();
            self.send(peer, Message::Capability { capability, proofs });
        }
    }
}

/// The tree under the root that a capability names, if it names one and the digests are those under it.
fn tree(covers: &Capability, digests: Vec<Digest>) -> Option<MerkleTree> {
    let Covered::Root { root, .. } = covers.covered else { return None };
    let tree = MerkleTree::of(digests);
    (tree.root() == root).then_some(tree)
}

/// Whether a bundle goes into a frame, and is taken by whom it comes to.
fn travels(bundle: &Bundle) -> bool {
    bundle.statements.len() <= STATEMENTS_MAX && codec::encode(bundle).len() + ANSWER_HEAD_LEN <= FRAME_LEN_MAX
}
