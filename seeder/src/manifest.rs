//! What a manifest says, as far as a registry must know: which kind it is and what it names. Its bytes are never
//! rewritten.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_proto::Digest;

/// Largest manifest in bytes. The specification asks for at least so much.
pub const MANIFEST_LEN_MAX: usize = 4 << 20;

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// Layers that are not in the registry by intent: their bytes are under terms that forbid it. Where they say they are
/// to be had (`urls`) is never followed.
const FOREIGN: [&str; 4] = [
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
];

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of a manifest's shape.
    #[error("the manifest is not well formed: {0}")]
    Json(#[from] serde_json::Error),
    /// A media type that this registry does not store.
    #[error("manifests of type {0:?} are not supported; push OCI or Docker schema 2")]
    Type(String),
    /// Two readers could understand it in two ways.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(&'static str),
    /// Something required is not there.
    #[error("the manifest lacks {0}")]
    Lacks(&'static str),
}

/// A reference to content.
#[derive(Debug, Clone, Deserialize)]
pub struct Descriptor {
    /// The content's media type.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// The content.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Descriptor {
    /// Whether the content is elsewhere by intent.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        FOREIGN.contains(&self.media_type.as_str())
    }
}

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde_json::Value>,
}

/// What a manifest says.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// Its media type.
    pub media_type: String,
    /// Config and layers of an image, in order; a layer twice in an image is here twice.
    pub blobs: Vec<Descriptor>,
    /// Manifests of an index.
    pub manifests: Vec<Descriptor>,
    /// The manifest that it refers to.
    pub subject: Option<Digest>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

/// A descriptor in a referrers list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Referrer {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Parsed {
    /// Reads a manifest that came with `content_type`, if it came with one.
    ///
    /// # Errors
    /// Malformed, of an unknown type, ambiguous, or lacking something.
    pub fn read(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let media_type = match (content_type, &raw.media_type) {
            (Some(header), Some(field)) if header != field => {
                return Err(ManifestError::Ambiguous("its mediaType is not the request's Content-Type"));
            }
            (Some(header), _) => header.to_owned(),
            (None, Some(field)) => field.clone(),
            (None, None) => return Err(ManifestError::Lacks("a media type, in itself or as Content-Type")),
        };
        let is_index = match media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            OCI_INDEX | DOCKER_LIST => true,
            other => return Err(ManifestError::Type(other.to_owned())),
        };
        if raw.fs_layers.is_some() || media_type.starts_with(DOCKER_SCHEMA1) {
            return Err(ManifestError::Type("Docker schema 1".to_owned()));
        }
        if raw.schema_version != Some(2) {
            return Err(ManifestError::Lacks("\"schemaVersion\": 2"));
        }
        if raw.manifests.is_some() && (raw.layers.is_some() || raw.config.is_some()) {
            return Err(ManifestError::Ambiguous("it is an index and an image at once"));
        }
        let blobs = if is_index {
            Vec::new()
        } else {
            let config = raw.config.as_ref().ok_or(ManifestError::Lacks("a config"))?;
            let layers = raw.layers.as_ref().ok_or(ManifestError::Lacks("layers"))?;
            std::iter::once(config).chain(layers).cloned().collect()
        };
        let manifests = match raw.manifests {
            None if is_index => return Err(ManifestError::Lacks("manifests")),
            None => Vec::new(),
            Some(_) if !is_index => return Err(ManifestError::Ambiguous("an image lists manifests")),
            Some(manifests) => manifests,
        };
        // An image without an artifact type of its own is known by its config's type.
        let artifact_type = raw.artifact_type.or_else(|| raw.config.map(|config| config.media_type));
        let subject = raw.subject.map(|subject| subject.digest);
        Ok(Self { media_type, blobs, manifests, subject, artifact_type, annotations: raw.annotations })
    }

    /// Whether it is an index of manifests.
    #[must_use]
    pub fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST)
    }

    /// The descriptor that a referrers list shows for it, as JSON.
    #[must_use]
    pub fn referrer(&self, digest: Digest, size: u64) -> Vec<u8> {
        let referrer = Referrer {
            media_type: self.media_type.clone(),
            digest,
            size,
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
        };
        serde_json::to_vec(&referrer).expect("strings and numbers are always JSON")
    }
}

/// The media type of a referrers list.
pub(crate) const REFERRERS_TYPE: &str = OCI_INDEX;

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":3}}"#, Digest::of(media_type.as_bytes()))
    }

    #[test]
    fn an_image_names_its_config_and_layers() {
        let (config, layer) = (descriptor("c"), descriptor("l"));
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{layer}]}}"#);
        let parsed = Parsed::read(Some(OCI_MANIFEST), text.as_bytes()).unwrap();
        let digests: Vec<_> = parsed.blobs.iter().map(|d| d.digest).collect();
        assert_eq!(digests, [Digest::of(b"c"), Digest::of(b"l"), Digest::of(b"l")]);
        let referrer: Referrer = serde_json::from_slice(&parsed.referrer(Digest::of(b"m"), 7)).unwrap();
        assert_eq!(referrer.artifact_type.as_deref(), Some("c"));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let d = descriptor("x");
        let cases = [
            (OCI_INDEX, format!(r#"{{"schemaVersion":2,"manifests":[],"layers":[{d}]}}"#)),
            (OCI_INDEX, format!(r#"{{"schemaVersion":2,"manifests":[],"config":{d}}}"#)),
            (OCI_MANIFEST, format!(r#"{{"schemaVersion":2,"manifests":[],"config":{d},"layers":[]}}"#)),
            (OCI_MANIFEST, format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","config":{d},"layers":[]}}"#)),
            (OCI_MANIFEST, format!(r#"{{"schemaVersion":2,"config":{d},"layers":[],"layers":[{d}]}}"#)),
            (OCI_MANIFEST, r#"{"schemaVersion":2,"layers":[]}"#.to_owned()),
            (OCI_MANIFEST, format!(r#"{{"schemaVersion":1,"config":{d},"layers":[]}}"#)),
            (
                OCI_MANIFEST,
                r#"{"schemaVersion":2,"config":{"digest":"sha256:../../x","size":1},"layers":[]}"#.to_owned(),
            ),
            ("application/json", format!(r#"{{"schemaVersion":2,"config":{d},"layers":[]}}"#)),
            (OCI_MANIFEST, "[]".to_owned()),
        ];
        for (content_type, text) in cases {
            assert!(Parsed::read(Some(content_type), text.as_bytes()).is_err(), "{text}");
        }
    }
}
