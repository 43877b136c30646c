//! The start of a pull: one request for all that a manifest needs, every envelope opened.

use std::sync::PoisonError;

use bytes::Bytes;
use shoal_proto::{
    Digest,
    api::{DIGESTS_MAX, Discovery, Pull, Pulled, REPLY_LEN_MAX},
    codec,
    envelope::Envelope,
    merkle::MerkleTree,
    message::{ADDRESSES_MAX, PEERS_MAX, PeerInfo},
    name::{Reference, Repository},
    signed::{Candidates, Capability, Covered, DiscoveryKey, NodeId, Statement, TagRecord, UnixSeconds},
};

use super::{Credentials, Upstream, UpstreamError};
use crate::store::OpenedStatement;

/// Statements of one reply: an image has a few hundred layers at the most.
const STATEMENTS_MAX: usize = DIGESTS_MAX;
/// Candidate lists of one reply: one for each scope.
const CANDIDATE_LISTS_MAX: usize = 8;

/// What the seeder says of a manifest, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The tag record, where a tag was asked for.
    pub tag_record: Option<(Envelope, TagRecord)>,
    /// Statements of the manifest, its config and its layers, as far as they are known already.
    pub statements: Vec<OpenedStatement>,
    /// The capability, as signed.
    pub capability: Envelope,
    /// What it says.
    pub covers: Capability,
    /// Where holders are found.
    pub discovery: Vec<Discovery>,
    /// The key of a public reference's bundle.
    pub bundle: Option<DiscoveryKey>,
    /// Candidate lists, as signed and opened.
    pub candidates: Vec<(Envelope, Candidates)>,
    /// Members recently interested.
    pub introductions: Vec<PeerInfo>,
}

impl PulledImage {
    /// The statement of a digest, if it came along.
    #[must_use]
    pub fn statement(&self, digest: &Digest) -> Option<&OpenedStatement> {
        self.statements.iter().find(|signed| signed.statement.digest == *digest)
    }

    /// All that the image is made of: as the seeder said where to find it, else what it has signed statements of.
    #[must_use]
    pub fn digests(&self) -> Vec<Digest> {
        if self.discovery.is_empty() {
            self.statements.iter().map(|signed| signed.statement.digest).collect()
        } else {
            self.discovery.iter().map(|found| found.digest).collect()
        }
    }

    /// Whether the capability lets `node` read the image at `now`: the manifest if it lists what it covers, and all of it if
    /// it names the root above.
    #[must_use]
    pub fn is_covered(&self, node: &NodeId, now: UnixSeconds) -> bool {
        match self.covers.covered {
            Covered::List(_) => self.covers.covers(node, &self.digest, now),
            Covered::Root { root, .. } => {
                let tree = MerkleTree::of(self.digests());
                self.covers.is_for(node, now) && tree.root() == root && tree.proof(&self.digest).is_some()
            }
        }
    }
}

impl Upstream {
    /// Starts a pull of a reference.
    ///
    /// # Errors
    /// As all requests; anything in the reply that is not signed as it should be is [`UpstreamError::Protocol`].
    pub async fn pull(
        &self,
        repository: &Repository,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<PulledImage, UpstreamError> {
        let path = format!("/v2/{repository}/_shoal/pull/{reference}");
        let me = self.me.read().unwrap_or_else(PoisonError::into_inner).clone();
        let me = me.ok_or_else(|| self.client.protocol(&path, "this node's own addresses are not known yet"))?;
        let body = Bytes::from(codec::encode(&Pull { me }));
        let bytes = self.ask_as_member(&path, credentials, body).await?;
        let wrong = |error: String| self.client.protocol(&path, &error);
        let pulled = codec::decode::<Pulled, REPLY_LEN_MAX>(&bytes).map_err(|error| wrong(error.to_string()))?;
        if let Reference::Digest(asked) = reference
            && *asked != pulled.digest
        {
            return Err(wrong(format!("it is about {}", pulled.digest)));
        }
        self.open_pulled(repository, reference, pulled).await.map_err(wrong)
    }

    async fn open_pulled(
        &self,
        repository: &Repository,
        reference: &Reference,
        pulled: Pulled,
    ) -> Result<PulledImage, String> {
        let text = |error: shoal_proto::envelope::EnvelopeError| error.to_string();
        let tag_record = match pulled.tag_record {
            None => None,
            Some(envelope) => {
                let record: TagRecord = self.open(&envelope).await.map_err(text)?;
                let same = matches!(reference, Reference::Tag(tag) if *tag == record.tag);
                if !same || record.repository != *repository || record.digest != Some(pulled.digest) {
                    return Err("the tag record is of another tag".into());
                }
                Some((envelope, record))
            }
        };
        let mut statements = Vec::new();
        for envelope in pulled.statements.into_iter().take(STATEMENTS_MAX) {
            let statement: Statement = self.open(&envelope).await.map_err(text)?;
            statement.check(&statement.digest, None).map_err(|error| error.to_string())?;
            statements.push(OpenedStatement { envelope, statement });
        }
        let covers: Capability = self.open(&pulled.capability).await.map_err(text)?;
        let mut candidates = Vec::new();
        for envelope in pulled.candidates.into_iter().take(CANDIDATE_LISTS_MAX) {
            let list: Candidates = self.open(&envelope).await.map_err(text)?;
            if list.image != pulled.digest {
                return Err("a candidate list is of another image".into());
            }
            candidates.push((envelope, list));
        }
        let mut introductions = pulled.introductions;
        introductions.truncate(PEERS_MAX);
        for peer in &mut introductions {
            peer.peer.truncate(ADDRESSES_MAX);
            peer.libp2p.truncate(ADDRESSES_MAX);
        }
        Ok(PulledImage {
            digest: pulled.digest,
            media_type: pulled.media_type,
            tag_record,
            statements,
            capability: pulled.capability,
            covers,
            discovery: pulled.discovery,
            bundle: pulled.bundle,
            candidates,
            introductions,
        })
    }
}
