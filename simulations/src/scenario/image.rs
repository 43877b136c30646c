//! What is rolled out: layers by a model, or from a manifest.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use shoal_proto::digest::Digest;

use super::{Image, Shape, units::Bytes};
use crate::{
    math::exp,
    num::floor,
    rng::{Purpose, Stream},
};

/// Spread of layer sizes: `ln(63 MB ÷ 4 MB)` is 1.28 of it.
const SIGMA: f64 = 2.15;

/// Bytes of each layer. The seed draws what the shape leaves open.
pub(crate) fn sizes(image: &Image, seed: u64) -> Vec<u64> {
    if !image.layer_sizes.is_empty() {
        return image.layer_sizes.iter().map(|size| size.0).collect();
    }
    let count = image.layers as usize;
    let weights: Vec<f64> = match image.shape {
        Shape::Equal => vec![1.0; count],
        Shape::OneBig => (0..count).map(|layer| if layer == 0 { count as f64 - 1.0 } else { 1.0 }).collect(),
        Shape::Lognormal => {
            let mut stream = Stream::new(seed, 0, Purpose::Image);
            (0..count).map(|_| exp(SIGMA * stream.normal())).collect()
        }
    };
    let total: f64 = weights.iter().map(|weight| weight.max(1e-9)).sum();
    let mut sizes: Vec<u64> =
        weights.iter().map(|weight| floor(image.size.0 as f64 * weight.max(1e-9) / total).max(1)).collect();
    // What rounding left over, or took too much, is the largest layer's.
    let sum: u64 = sizes.iter().sum();
    if let Some(largest) = sizes.iter_mut().max() {
        *largest = (*largest + image.size.0).saturating_sub(sum).max(1);
    }
    sizes
}

/// Which layers every node has already: about `image.cached` of the bytes, from the first on, as base layers are.
pub(crate) fn cached(image: &Image, sizes: &[u64]) -> Vec<bool> {
    let total: u64 = sizes.iter().sum();
    let mut left = image.cached.0 * total as f64;
    sizes
        .iter()
        .map(|&size| {
            let takes = left >= size as f64 / 2.0 && left > 0.0;
            left -= if takes { size as f64 } else { 0.0 };
            takes
        })
        .collect()
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

/// Layer sizes from an image manifest (OCI or Docker, as JSON); `place` is named in errors.
pub(crate) fn from_manifest(text: &str, place: &str) -> Result<Vec<Bytes>> {
    let manifest: Manifest = serde_json::from_str(text)
        .with_context(|| format!("{place} is no image manifest; `skopeo inspect --raw docker://…` prints one"))?;
    if !manifest.manifests.is_empty() {
        let choices: Vec<_> = manifest.manifests.iter().map(|choice| choice.digest.as_str()).collect();
        bail!(
            "{place} is an index of {} manifests, not an image; take one of them: {}",
            choices.len(),
            choices.join(" ")
        );
    }
    let kind = manifest.media_type.as_deref().unwrap_or("without a media type");
    ensure!(!manifest.layers.is_empty(), "{place} ({kind}) has no layers: it is no image manifest");
    let mut sizes = Vec::new();
    let mut seen = Vec::new();
    for (index, layer) in manifest.config.iter().chain(&manifest.layers).enumerate() {
        layer.digest.parse::<Digest>().with_context(|| format!("{place}: {:?} of blob {index}", layer.digest))?;
        if layer.size > 0 && !seen.contains(&&layer.digest) {
            sizes.push(Bytes(layer.size));
            seen.push(&layer.digest);
        }
    }
    ensure!(!sizes.is_empty(), "{place} ({kind}) names only empty blobs");
    Ok(sizes)
}
