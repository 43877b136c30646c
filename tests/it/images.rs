//! Images that several tests push.

use std::{path::PathBuf, sync::Mutex};

use anyhow::Result;
use shoal_tests::image::{
    Blob, Image, Layer, media, plain_config,
    real::{self, RealImage, Spec},
};

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// An image that can be started; made once and kept between runs.
pub(crate) fn runnable() -> Result<RealImage> {
    // Two tests must not make it at the same time.
    static MAKING: Mutex<()> = Mutex::new(());
    let _guard = MAKING.lock();
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("runnable-image");
    real::build(&cache, &Spec::small(), &|_| {})
}

/// Images that a registry has to carry though they are not quite usual, each with a tag.
pub(crate) fn odd() -> Vec<(&'static str, Image)> {
    let plain = Layer::new(Blob::seeded(11, 100_000));
    let empty = Layer::new(Blob::of(""));
    let zstd = Layer { blob: Blob::seeded(12, 80_000), media_type: media::LAYER_ZSTD, urls: Vec::new() };
    let foreign = Layer {
        blob: Blob::seeded(13, 5000),
        media_type: media::LAYER_FOREIGN,
        // Nothing listens there: who follows it is found out.
        urls: vec!["http://127.0.0.1:9/foreign".to_owned()],
    };
    let config = plain_config();
    vec![
        ("plain", Image::new(&config, vec![plain.clone()])),
        ("docker", Image::docker(&config, vec![plain.clone()])),
        ("no-layers", Image::new(&config, Vec::new())),
        ("empty-layer", Image::new(&config, vec![empty.clone(), plain.clone()])),
        ("twice", Image::new(&config, vec![plain.clone(), plain.clone(), empty])),
        ("zstd", Image::new(&config, vec![zstd, plain.clone()])),
        ("foreign", Image::new(&config, vec![plain, foreign])),
        ("piece-edges", Image::synthetic(14, &[1, MIB - 1, MIB, MIB + 1, 3 * MIB])),
    ]
}
