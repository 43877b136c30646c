//! Images of real files: a base that a container can be started from, and layers of this machine's public trees.
//!
//! The base is a `debootstrap` root where that can run (root, and the tool is there), else a few of this machine's own
//! programs with the libraries that they load. The trees lie under `/srv` in the image, so that they never mix with the
//! base. Only world-readable files of `/usr` are taken: nothing of `/etc`, `/root` or `/home`.
//!
//! An image is made once and kept with its index; a half-made one has no index and is made again.

mod base;
mod pack;
mod trees;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Blob, Image, Layer, Source, architecture};

/// The name of the index in the cache directory; its version changes when images are made in another way.
const INDEX: &str = "image-1.json";
/// What a container of such an image prints when it is started without arguments.
pub const GREETING: &str = "hello from the shoal";

/// What to make.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Sizes of the layers of trees before compression, in MiB.
    pub layers_mib: Vec<u64>,
    /// Layers are added until all together have so many bytes, compressed.
    pub compressed_min: u64,
    /// Whether the base may be a `debootstrap` root, which takes a minute and the network.
    pub debootstrap: bool,
}

impl Spec {
    /// An image of at least `compressed_min` bytes in layers of very different sizes, as real images have.
    #[must_use]
    pub fn demo(compressed_min: u64) -> Self {
        Self { layers_mib: vec![176, 104, 64, 24, 6], compressed_min, debootstrap: true }
    }

    /// A small image that can be started.
    #[must_use]
    pub fn small() -> Self {
        Self { layers_mib: vec![24, 2], compressed_min: 0, debootstrap: false }
    }
}

/// A layer in the cache.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Packed {
    file: String,
    digest: String,
    size: u64,
    diff_id: String,
    what: String,
}

/// An image of real files.
#[derive(Debug)]
pub struct RealImage {
    /// The image.
    pub image: Image,
    /// Where its base comes from.
    pub base: String,
    /// Whether it was there already.
    pub cached: bool,
    /// The base layer's file (tar, gzip).
    pub base_file: PathBuf,
}

/// Makes the image, or takes it from `cache`. `say` is told what is being done.
///
/// # Errors
/// `tar` or `gzip` fails, or the cache cannot be written.
pub fn build(cache: &Path, spec: &Spec, say: &dyn Fn(&str)) -> Result<RealImage> {
    if let Some(packed) = load(cache) {
        return assemble(cache, packed, true);
    }
    std::fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    let staging = tempfile::Builder::new().prefix("making-").tempdir_in(cache)?;
    let mut packed = vec![base::pack(staging.path(), spec.debootstrap, say)?];
    trees::pack(staging.path(), spec, &mut packed, say)?;
    for layer in &packed {
        std::fs::rename(staging.path().join(&layer.file), cache.join(&layer.file))?;
    }
    let index = cache.join(INDEX);
    let draft = staging.path().join(INDEX);
    std::fs::write(&draft, serde_json::to_vec_pretty(&packed)?)?;
    std::fs::rename(&draft, &index).with_context(|| format!("write {}", index.display()))?;
    assemble(cache, packed, false)
}

/// The layers in the cache, if it is whole.
fn load(cache: &Path) -> Option<Vec<Packed>> {
    let packed: Vec<Packed> = serde_json::from_slice(&std::fs::read(cache.join(INDEX)).ok()?).ok()?;
    let whole = |layer: &Packed| std::fs::metadata(cache.join(&layer.file)).is_ok_and(|file| file.len() == layer.size);
    packed.iter().all(whole).then_some(packed)
}

fn assemble(cache: &Path, packed: Vec<Packed>, cached: bool) -> Result<RealImage> {
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/sh", "-c", format!("echo {GREETING}")],
        },
        "rootfs": { "type": "layers", "diff_ids": packed.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() },
        "history": packed.iter().map(|layer| json!({ "created_by": layer.what })).collect::<Vec<_>>(),
    });
    let base = packed.first().context("an image has a base")?;
    let (what, base_file) = (base.what.clone(), cache.join(&base.file));
    let layers = packed.iter().map(|layer| {
        let digest = layer.digest.parse().with_context(|| format!("{}: digest of {}", INDEX, layer.file))?;
        Ok(Layer::new(Blob { digest, size: layer.size, source: Source::File(cache.join(&layer.file)) }))
    });
    let image = Image::new(&config, layers.collect::<Result<_>>()?);
    Ok(RealImage { image, base: what, cached, base_file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_made_once_and_taken_from_the_cache_after() {
        let cache = tempfile::tempdir().unwrap();
        let spec = Spec { layers_mib: vec![2, 1], compressed_min: 0, debootstrap: false };
        let made = build(cache.path(), &spec, &|_| {}).unwrap();
        assert!(!made.cached);
        assert_eq!(made.image.layers.len(), 3);
        let again = build(cache.path(), &spec, &|_| panic!("nothing is left to do")).unwrap();
        assert!(again.cached);
        assert_eq!(again.image.manifest.digest, made.image.manifest.digest);
        for layer in &again.image.layers {
            assert_eq!(Blob::new(layer.blob.source.clone()).unwrap().digest, layer.blob.digest);
        }
    }
}
