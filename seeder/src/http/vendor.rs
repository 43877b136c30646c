//! What agents ask of the seeder beyond the registry: who it is, all that a pull needs, pieces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Response, header};
use shoal_http::{ApiError, Handoff, Reply, RequestBody, Segment, handoff::Meter, reply::full};
use shoal_proto::{
    Digest, PROTOCOL,
    api::{
        CONTENT_TYPE, DIGESTS_MAX, Discovery, Info, LISTED_MAX, PIECES_GIVEN_MAX, PiecesGiven, PiecesWanted, Pull,
        Pulled,
    },
    codec,
    envelope::Envelope,
    have::HaveSet,
    layout::{Layout, PieceIndex},
    merkle::MerkleTree,
    message::PeerInfo,
    name::{Reference, Repository},
    oci::ErrorCode,
    signed::{Capability, Covered, Purpose, Subject, TagRecord, UnixSeconds},
};

use super::{Answer, Asked, OCTETS, Registry, busy, members::stranger, store_failed, unknown_blob, value};
use crate::{
    keys::valid_for,
    manifest::Parsed,
    metrics::{BodyMeter, Payload},
    pieces::{Ask, Choice, Ledger, SendId},
    slots::Slot,
    store::{BlobContent, Manifest},
    time::{unix_ms, unix_seconds},
};

/// A capability holds for an hour: what a node may not read any more, it cannot for longer.
const CAPABILITY_S: u64 = 3_600;
/// A capability is given out again, as it is the same for all members, while it holds for so much longer.
const CAPABILITY_LEFT_S: u64 = 2_700;
/// Signed capabilities that are kept to be given out again.
const CAPABILITIES_MAX: usize = 1024;
/// Bytes of a piece that wait in the kernel on a slow uplink. A slot is given back when these are all that is left, so as
/// few pieces as there are slots share the uplink; it is what a link of 1 Gbit/s sends in half a millisecond.
const UNSENT_MAX: u32 = 64 << 10;
/// Longest wait for a turn to be sent pieces: long enough that a crowd keeps the line full, shorter than a node waits.
const SLOT_WAIT: std::time::Duration = std::time::Duration::from_secs(8);
/// What a node that drew too much is told to wait before it asks again.
const OVER_BUDGET_WAIT: std::time::Duration = std::time::Duration::from_secs(60);

/// Signed capabilities by image.
#[derive(Debug, Default)]
pub(super) struct Capabilities(BTreeMap<Digest, (UnixSeconds, Envelope)>);

/// What `/v2/_oci/ext/discover` says.
pub(super) fn extensions() -> serde_json::Value {
    serde_json::json!({ "extensions": [{
        "name": "_shoal",
        "description": "Membership, signed statements and pieces for Shoal agents",
        "endpoints": ["_shoal/info", "_shoal/join", "_shoal/members", "_shoal/revocations", "_shoal/token", "_shoal/pull", "_shoal/statement", "_shoal/hashes", "_shoal/pieces"],
    }]})
}

fn wire(bytes: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(full(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, value(CONTENT_TYPE));
    response.into()
}

pub(super) fn invalid(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unsupported, message).status(http::StatusCode::BAD_REQUEST)
}

impl Registry {
    pub(super) fn info(&self) -> Reply {
        let keys = self.fleet.signed_key_set();
        let info = Info { protocol: PROTOCOL, root: *self.fleet.root(), keys, open: self.access.is_open() };
        encoded(&info)
    }

    pub(super) async fn pull(
        &self,
        name: &Repository,
        reference: &Reference,
        asked: &Asked,
        body: RequestBody,
    ) -> Answer {
        let (pull, caller) = self.called::<Pull>(asked, body).await?;
        let me = self.reached_at(caller, &pull.me, asked)?;
        let manifest = self.find_manifest(name, reference).await?;
        let image = manifest.digest;
        let digests = digests_of(&manifest)?;
        let infos = self.store.infos(name, digests.clone()).await.map_err(|e| store_failed(&e))?;
        let region = me.as_ref().and_then(|me| me.labels.region.as_ref());
        let discovery = digests.iter().map(|digest| Discovery {
            digest: *digest,
            key: self.fleet.digest_key(digest),
            region: self.fleet.region_key(digest, region),
        });
        let discovery = discovery.collect();
        let public = self.access.is_public(name);
        let subject = match &me {
            Some(me) if !public => Subject::Node(me.node),
            Some(_) | None => Subject::AnyMember,
        };
        let (introductions, candidates) = me.map_or_else(Default::default, |me| self.introduce(&image, me));
        Ok(encoded(&Pulled {
            digest: image,
            tag_record: self.tag_record(name, reference, &manifest, public).await?,
            media_type: manifest.media_type,
            statements: infos.iter().map(|info| self.fleet.statement(info)).collect(),
            capability: self.capability(image, subject, digests),
            discovery,
            bundle: public.then(|| self.fleet.bundle_key(name, reference)),
            candidates,
            introductions,
        }))
    }

    fn introduce(&self, image: &Digest, me: PeerInfo) -> (Vec<PeerInfo>, Vec<Envelope>) {
        let now = unix_ms();
        let labels = me.labels.clone();
        let mut swarm = self.swarm();
        let introductions = swarm.introduce(image, me, now);
        let sign = |candidates: &_| self.fleet.sign(candidates);
        let key = self.fleet.key_id(Purpose::Capability);
        let candidates = swarm.candidates(image, &labels, now, key, sign, |counter| self.fleet.version(counter));
        drop(swarm);
        self.metrics.introduced(introductions.len());
        (introductions, candidates)
    }

    async fn tag_record(
        &self,
        name: &Repository,
        reference: &Reference,
        manifest: &Manifest,
        public: bool,
    ) -> Result<Option<Envelope>, ApiError> {
        let Reference::Tag(tag) = reference else { return Ok(None) };
        let entry = self.store.tag(name, tag).await.map_err(|e| store_failed(&e))?;
        // A tag that moved since it was resolved is told of at the next pull.
        let Some(entry) = entry.filter(|entry| entry.digest == manifest.digest) else { return Ok(None) };
        let record = TagRecord {
            repository: name.clone(),
            tag: tag.clone(),
            digest: Some(entry.digest),
            media_type: manifest.media_type.clone(),
            version: self.fleet.version(entry.counter),
            signed_at: unix_seconds(),
            public,
        };
        Ok(Some(self.fleet.sign(&record)))
    }

    /// Leave to read an image: for any member if anybody may, the same for all who ask in a quarter of an hour; for the one
    /// node that asks if only its client may.
    fn capability(&self, image: Digest, subject: Subject, digests: Vec<Digest>) -> Envelope {
        let now = unix_seconds();
        if subject != Subject::AnyMember {
            return self.sign_capability(image, subject, digests).1;
        }
        let mut kept = self.capabilities.lock().expect("nobody panics while holding the capabilities");
        let key = self.fleet.key_id(Purpose::Capability);
        let lasts =
            |(until, signed): &&(UnixSeconds, Envelope)| *until >= now + CAPABILITY_LEFT_S && signed.key() == key;
        if let Some((_, capability)) = kept.0.get(&image).filter(lasts) {
            return capability.clone();
        }
        let (not_after, signed) = self.sign_capability(image, subject, digests);
        if kept.0.len() >= CAPABILITIES_MAX {
            let oldest = kept.0.iter().min_by_key(|(_, (until, _))| *until).map(|(digest, _)| *digest);
            oldest.and_then(|digest| kept.0.remove(&digest));
        }
        kept.0.insert(image, (not_after, signed.clone()));
        signed
    }

    fn sign_capability(&self, image: Digest, subject: Subject, digests: Vec<Digest>) -> (UnixSeconds, Envelope) {
        let (not_before, not_after) = valid_for(CAPABILITY_S);
        let (covered, discovery) = (covered(digests), self.fleet.digest_key(&image));
        let capability = Capability { subject, covered, discovery, not_before, not_after };
        (not_after, self.fleet.sign(&capability))
    }

    pub(super) async fn statement(&self, name: &Repository, digest: Digest) -> Answer {
        let infos = self.store.infos(name, vec![digest]).await.map_err(|e| store_failed(&e))?;
        let info = infos.into_iter().next().ok_or_else(|| unknown_blob(&digest))?;
        Ok(encoded(&self.fleet.statement(&info)))
    }

    pub(super) async fn hashes(&self, name: &Repository, digest: Digest) -> Answer {
        let hashes = self.store.piece_hashes(name, digest).await.map_err(|e| store_failed(&e))?;
        let mut response = Response::new(full(hashes.ok_or_else(|| unknown_blob(&digest))?));
        response.headers_mut().insert(header::CONTENT_TYPE, OCTETS);
        Ok(response.into())
    }

    pub(super) async fn pieces(&self, name: &Repository, digest: Digest, asked: &Asked, body: RequestBody) -> Answer {
        let (wanted, caller) = self.called::<PiecesWanted>(asked, body).await?;
        let (node, labels) = caller.map_or_else(|| stranger(asked), |member| (member.node, member.labels));
        let transfer = self.transfer()?;
        let blob = self.store.blob(name, digest).await.map_err(|e| store_failed(&e))?;
        let blob = blob.ok_or_else(|| unknown_blob(&digest))?;
        let layout = Layout::new(blob.info.size).map_err(|error| ApiError::internal(error.to_string()))?;
        let want = HaveSet::from_bytes(&layout, &wanted.want).map_err(|error| invalid(&error.to_string()))?;
        // Chosen only when its turn has come, so that the choice is not out of date.
        let bytes = u64::from(wanted.max.min(PIECES_GIVEN_MAX)) * layout.piece_len().min(layout.size());
        let Ok(slot) = tokio::time::timeout(SLOT_WAIT, self.piece_slots.take(bytes)).await else {
            self.metrics.pieces_wait();
            let retry_after_ms = u32::try_from(SLOT_WAIT.as_millis()).expect("a few seconds");
            return Ok(wire(framed(&PiecesGiven { pieces: Vec::new(), retry_after_ms })));
        };
        let ask = Ask {
            node,
            region: labels.region.as_ref(),
            digest,
            layout,
            want: &want,
            urgent: wanted.urgent,
            max: usize::from(wanted.max.min(PIECES_GIVEN_MAX)),
            stalled: wanted.stalled,
        };
        let choice = self.ledger().choose(&ask, unix_ms());
        let (pieces, send) = match choice {
            Choice::Give(pieces, send) => (pieces, send),
            Choice::Wait { retry_after_ms } => {
                self.metrics.pieces_wait();
                return Ok(wire(framed(&PiecesGiven { pieces: Vec::new(), retry_after_ms })));
            }
            Choice::OverBudget => {
                return Err(busy("this node has drawn this blob twice").retry_after(OVER_BUDGET_WAIT));
            }
        };
        self.metrics.pieces_given(pieces.len());
        let meter = PiecesMeter {
            bytes: self.metrics.meter(Payload::Pieces, Some(transfer)),
            ledger: Arc::clone(&self.ledger),
            send,
            layout,
            left: pieces.iter().copied().collect(),
            into_piece: 0,
            slot,
        };
        Ok(send_pieces(&layout, &pieces, blob.content, meter, self.piece_slots.is_slow()))
    }
}

pub(super) fn encoded<T: bincode::Encode>(value: &T) -> Reply {
    wire(codec::encode(value))
}

fn covered(digests: Vec<Digest>) -> Covered {
    if digests.len() <= LISTED_MAX {
        return Covered::List(digests);
    }
    let tree = MerkleTree::of(digests);
    Covered::Root { root: tree.root(), leaves: u32::try_from(tree.leaves()).expect("a few thousand") }
}

/// `length (u32 LE) ‖ given`.
fn framed(given: &PiecesGiven) -> Vec<u8> {
    let body = codec::encode(given);
    let len = u32::try_from(body.len()).expect("at most a few pieces are named");
    [&len.to_le_bytes(), body.as_slice()].concat()
}

/// The manifest itself, and of an image its config and layers, each once.
fn digests_of(manifest: &Manifest) -> Result<Vec<Digest>, ApiError> {
    let parsed = Parsed::read(Some(&manifest.media_type), &manifest.bytes);
    let parsed = parsed.map_err(|error| ApiError::internal(format!("a stored manifest cannot be read: {error}")))?;
    let mut digests = vec![manifest.digest];
    let mut known = BTreeSet::from([manifest.digest]);
    for blob in parsed.blobs.iter().filter(|blob| !blob.is_foreign()) {
        if digests.len() < DIGESTS_MAX && known.insert(blob.digest) {
            digests.push(blob.digest);
        }
    }
    Ok(digests)
}

fn send_pieces(
    layout: &Layout,
    pieces: &[PieceIndex],
    content: BlobContent,
    mut meter: PiecesMeter,
    slow: bool,
) -> Reply {
    let head = framed(&PiecesGiven { pieces: pieces.iter().map(|piece| piece.get()).collect(), retry_after_ms: 0 });
    let ranges = pieces.iter().map(|piece| layout.range(*piece));
    match content {
        BlobContent::Memory(bytes) => {
            let mut body = head;
            for range in ranges {
                let index = |at| usize::try_from(at).expect("content in memory has an index");
                body.extend_from_slice(&bytes[index(range.start)..index(range.end)]);
                meter.written(range.end - range.start);
            }
            meter.finished();
            wire(body)
        }
        BlobContent::File(file) => {
            let segments = std::iter::once(Segment::Bytes(head.into())).chain(ranges.map(Segment::File)).collect();
            let mut response = Response::new(());
            response.headers_mut().insert(header::CONTENT_TYPE, value(CONTENT_TYPE));
            let handoff = Handoff::new(response, file, segments).metered(meter);
            if slow { handoff.unsent_max(UNSENT_MAX).into() } else { handoff.into() }
        }
    }
}

/// Tells the ledger of each piece that the node's socket has taken, and of the end.
#[derive(Debug)]
struct PiecesMeter {
    bytes: BodyMeter,
    ledger: Arc<Mutex<Ledger>>,
    send: SendId,
    layout: Layout,
    left: std::collections::VecDeque<PieceIndex>,
    /// Bytes of the first piece left that were taken.
    into_piece: u64,
    slot: Slot,
}

impl PiecesMeter {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("nobody panics while holding the ledger")
    }
}

impl Meter for PiecesMeter {
    fn written(&mut self, bytes: u64) {
        self.bytes.written(bytes);
        self.into_piece += bytes;
        while let Some(piece) = self.left.front().copied() {
            let len = self.layout.len_of(piece);
            if self.into_piece < len {
                return;
            }
            self.into_piece -= len;
            self.left.pop_front();
            self.ledger().sent(self.send, piece, unix_ms());
        }
        if self.left.is_empty() {
            self.slot.sent();
        }
    }
}

impl Drop for PiecesMeter {
    fn drop(&mut self) {
        self.ledger().ended(self.send);
    }
}
