//! As much of a manifest as the agent needs: which blobs, and which manifests. The bytes are served as they came.

use serde::Deserialize;
use shoal_proto::Digest;

use crate::config::Platform;

/// Most blobs of one manifest that are started: far above any real image, far below what would hurt.
pub(crate) const BLOBS_MAX: usize = 1000;

/// A descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Where a foreign layer lies. Never followed: whoever wrote the manifest would choose where this node connects.
    #[serde(default)]
    urls: Vec<String>,
    platform: Option<DescribedPlatform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct DescribedPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A manifest's children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Children {
    /// Config and layers, each once, foreign ones left out.
    pub(crate) blobs: Vec<Descriptor>,
    /// The manifests of an index.
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    blobs: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// An image's config and layers in the manifest's order; foreign layers left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

impl Image {
    /// Reads an image's manifest.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let config = manifest.config.ok_or_else(|| "it has no config".to_owned())?;
        Ok(Self { config, layers: manifest.layers.into_iter().filter(|layer| layer.urls.is_empty()).collect() })
    }
}

impl Children {
    /// The children of an index; `None` for an image's manifest.
    pub(crate) fn of_index(bytes: &[u8]) -> Option<Self> {
        let children = Self::of(bytes);
        (children.blobs.is_empty() && !children.manifests.is_empty()).then_some(children)
    }

    /// Reads a manifest. One that is no JSON, or of a kind that is not known, has no children: it is served all the same.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return Self::default() };
        let mut children = Self { blobs: Vec::new(), manifests: manifest.manifests };
        for descriptor in manifest.config.into_iter().chain(manifest.layers).chain(manifest.blobs) {
            let known = children.blobs.iter().any(|blob| blob.digest == descriptor.digest);
            if descriptor.urls.is_empty() && !known && children.blobs.len() < BLOBS_MAX {
                children.blobs.push(descriptor);
            }
        }
        children
    }

    /// The manifest of an index that is for `platform`, best match first.
    pub(crate) fn manifest_for(&self, platform: &Platform) -> Option<&Descriptor> {
        let fits = |exact: bool| {
            self.manifests.iter().find(|descriptor| {
                descriptor.platform.as_ref().is_some_and(|found| {
                    found.os == platform.os
                        && found.architecture == platform.architecture
                        && (!exact || found.variant == platform.variant)
                })
            })
        };
        fits(true).or_else(|| fits(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    #[test]
    fn config_and_layers_count_once_and_foreign_layers_do_not() {
        let text = serde_json::json!({
            "schemaVersion": 2,
            "config": { "mediaType": "c", "digest": digest(0), "size": 1 },
            "layers": [
                { "digest": digest(1), "size": 10 },
                { "digest": digest(1), "size": 10 },
                { "digest": digest(2), "size": 10, "urls": ["http://10.0.0.1/"] },
                { "digest": digest(3), "size": 0 },
            ],
        });
        let children = Children::of(text.to_string().as_bytes());
        let found: Vec<_> = children.blobs.iter().map(|blob| (blob.digest, blob.size)).collect();
        assert_eq!(found, [(digest(0), 1), (digest(1), 10), (digest(3), 0)]);
    }

    #[test]
    fn an_index_names_the_manifest_of_a_platform() {
        let text = serde_json::json!({
            "manifests": [
                { "digest": digest(1), "size": 1, "platform": { "os": "linux", "architecture": "arm64", "variant": "v8" } },
                { "digest": digest(2), "size": 1, "platform": { "os": "linux", "architecture": "amd64" } },
                { "digest": digest(3), "size": 1 },
            ],
        });
        let children = Children::of(text.to_string().as_bytes());
        let find = |text: &str| children.manifest_for(&text.parse().unwrap()).map(|found| found.digest);
        assert_eq!(find("linux/amd64"), Some(digest(2)));
        assert_eq!(find("linux/arm64"), Some(digest(1)));
        assert_eq!(find("linux/arm64/v8"), Some(digest(1)));
        assert_eq!(find("windows/amd64"), None);
        assert!(children.blobs.is_empty());
    }

    #[test]
    fn what_is_no_manifest_has_no_children() {
        for text in ["", "null", "[]", "{\"layers\": 5}", "{\"config\": {\"digest\": \"md5:00\", \"size\": 1}}"] {
            assert_eq!(Children::of(text.as_bytes()), Children::default(), "{text}");
        }
    }

    #[test]
    fn fuzz_manifest() {
        crate::mutate::fuzz("manifest", std::path::Path::new("fuzz/corpus/manifest"), &[], |data| {
            let children = Children::of(data);
            assert!(children.blobs.len() + children.manifests.len() <= data.len());
            if let Ok(image) = Image::of(data) {
                assert!(image.layers.iter().all(|layer| layer.urls.is_empty()));
            }
            let _ = Children::of_index(data);
        });
    }
}
