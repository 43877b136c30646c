//! A scenario as numbers, ready to be simulated.

use anyhow::{Result, anyhow};
use shoal_proto::layout::Layout;
use shoal_transfer::Config;

use crate::{
    network::Rates,
    scenario::{Scenario, check, image},
};

/// How an image gets to the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Policy {
    /// Every node pulls from the origin.
    OriginOnly,
    /// Every node pulls from a pull-through mirror in its region.
    MirrorPerRegion,
    /// Shoal without labels: nobody knows who is near.
    Random,
    /// Shoal as it ships.
    Shoal,
}

impl Policy {
    pub(crate) const ALL: [Self; 4] = [Self::OriginOnly, Self::MirrorPerRegion, Self::Random, Self::Shoal];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OriginOnly => "origin-only",
            Self::MirrorPerRegion => "mirror-per-region",
            Self::Random => "random",
            Self::Shoal => "shoal",
        }
    }

    /// Whether nodes exchange pieces.
    pub(crate) const fn swarms(self) -> bool {
        matches!(self, Self::Random | Self::Shoal)
    }
}

/// One layer of the image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub(crate) layout: Layout,
    /// Whether every node has it already.
    pub(crate) cached: bool,
    /// Where its bits start in a node's set, in words.
    pub(crate) word: usize,
}

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) scenario: Scenario,
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    pub(crate) rates: Rates,
    pub(crate) layers: Vec<Layer>,
    /// Those that have to be fetched.
    pub(crate) wanted: Vec<u32>,
    /// Words of a node's set.
    pub(crate) words: usize,
    pub(crate) core: Config,
}

impl Plan {
    /// Works out the numbers.
    pub(crate) fn new(scenario: &Scenario, seed: u64, policy: Policy, rates: Rates) -> Result<Self> {
        let core = check::core(scenario).map_err(|wrong| anyhow!("{}: {}", wrong.key, wrong.message))?;
        let sizes = image::sizes(&scenario.image, seed);
        let cached = image::cached(&scenario.image, &sizes);
        let (mut layers, mut words) = (Vec::new(), 0);
        for (size, cached) in sizes.into_iter().zip(cached) {
            let layout = match scenario.image.piece {
                Some(piece) => Layout::with_piece_len(size, piece.0),
                None => Layout::new(size)?,
            };
            layers.push(Layer { layout, cached, word: words });
            words += layout.pieces().div_ceil(64) as usize;
        }
        let wanted = (0..).zip(&layers).filter(|(_, layer)| !layer.cached && layer.layout.pieces() > 0);
        let wanted = wanted.map(|(index, _)| index).collect();
        let mut scenario = scenario.clone();
        if policy == Policy::Random {
            scenario.control.labels = false;
        }
        Ok(Self { scenario, seed, policy, rates, layers, wanted, words, core })
    }

    /// Bytes that each node has to get.
    pub(crate) fn wanted_bytes(&self) -> u64 {
        self.layers.iter().filter(|layer| !layer.cached).map(|layer| layer.layout.size()).sum()
    }

    /// Pieces that each node has to get.
    pub(crate) fn wanted_pieces(&self) -> u64 {
        self.layers.iter().filter(|layer| !layer.cached).map(|layer| u64::from(layer.layout.pieces())).sum()
    }

    /// Bytes of a piece.
    pub(crate) fn piece_bytes(&self, layer: u32, piece: u32) -> u64 {
        let layout = &self.layers[crate::num::at(layer)].layout;
        layout.piece(piece).map_or(0, |piece| layout.len_of(piece))
    }
}
