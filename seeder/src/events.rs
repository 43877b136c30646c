//! What has happened, told in one place: the log today, and whoever subscribes.

use shoal_proto::{
    Digest,
    name::{Repository, Tag},
    signed::NodeId,
};

use crate::metrics::Metrics;

/// Something that has happened, durably.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A blob arrived by upload.
    BlobPushed {
        /// Where.
        repository: &'a Repository,
        /// What.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
    },
    /// A blob of one repository is one of another as well.
    BlobMounted {
        /// From where.
        from: &'a Repository,
        /// Where to.
        repository: &'a Repository,
        /// What.
        digest: Digest,
    },
    /// A blob was taken out of a repository.
    BlobDeleted {
        /// Where.
        repository: &'a Repository,
        /// What.
        digest: Digest,
    },
    /// A manifest was stored.
    ManifestPushed {
        /// Where.
        repository: &'a Repository,
        /// What.
        digest: Digest,
    },
    /// A manifest was taken out of a repository.
    ManifestDeleted {
        /// Where.
        repository: &'a Repository,
        /// What.
        digest: Digest,
    },
    /// A tag points to a manifest, or (none) to nothing.
    TagMoved {
        /// Where.
        repository: &'a Repository,
        /// Which.
        tag: &'a Tag,
        /// Where to.
        digest: Option<Digest>,
    },
    /// A node is a member.
    NodeJoined {
        /// Who.
        node: NodeId,
    },
}

/// Tells whom it concerns.
#[derive(Debug, Clone)]
pub struct Events {
    metrics: std::sync::Arc<Metrics>,
}

impl Events {
    /// Events are counted in `metrics`.
    #[must_use]
    pub const fn new(metrics: std::sync::Arc<Metrics>) -> Self {
        Self { metrics }
    }

    /// Tells of `event`.
    pub fn tell(&self, event: &Event<'_>) {
        let kind = match event {
            Event::BlobPushed { repository, digest, size } => {
                tracing::info!(%repository, %digest, size, "blob pushed");
                "blob_pushed"
            }
            Event::BlobMounted { from, repository, digest } => {
                tracing::info!(%from, %repository, %digest, "blob mounted");
                "blob_mounted"
            }
            Event::BlobDeleted { repository, digest } => {
                tracing::info!(%repository, %digest, "blob deleted");
                "blob_deleted"
            }
            Event::ManifestPushed { repository, digest } => {
                tracing::info!(%repository, %digest, "manifest pushed");
                "manifest_pushed"
            }
            Event::ManifestDeleted { repository, digest } => {
                tracing::info!(%repository, %digest, "manifest deleted");
                "manifest_deleted"
            }
            Event::TagMoved { repository, tag, digest: Some(digest) } => {
                tracing::info!(%repository, %tag, %digest, "tag moved");
                "tag_moved"
            }
            Event::TagMoved { repository, tag, digest: None } => {
                tracing::info!(%repository, %tag, "tag deleted");
                "tag_deleted"
            }
            Event::NodeJoined { node } => {
                tracing::info!(%node, "node joined");
                "node_joined"
            }
        };
        self.metrics.event(kind);
    }
}
