//! What no type says: a region without nodes, an image larger than the disks, a share of nothing.

use serde::Deserialize as _;
use shoal_transfer::Config;
use toml::Value;

use super::{ArrivalKind, Scenario, image, units::Span};

/// Most nodes: ids are 32 bits, and a node takes some 10 KiB.
const NODES_MAX: u32 = 2_000_000;
/// Most layers: containerd and Docker stop at 127.
const LAYERS_MAX: u32 = 127;

/// A key and what is wrong with its value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// `image.size`, `regions.2.share`.
    pub(crate) key: String,
    /// What is wrong, and what is allowed.
    pub(crate) message: String,
}

fn wrong<T>(key: impl Into<String>, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { key: key.into(), message: message.into() })
}

/// Checks a scenario that parsed.
pub(crate) fn scenario(scenario: &Scenario) -> Result<(), Wrong> {
    nodes(scenario)?;
    regions(scenario)?;
    groups(scenario)?;
    layers(scenario)?;
    arrival(scenario)?;
    faults(scenario)?;
    core(scenario).map(|_| ())
}

fn nodes(scenario: &Scenario) -> Result<(), Wrong> {
    let nodes = &scenario.nodes;
    if nodes.count == 0 || nodes.count > NODES_MAX {
        return wrong("nodes.count", format!("{} is not within 1 and {NODES_MAX}", nodes.count));
    }
    if nodes.parallel_layers == 0 {
        return wrong("nodes.parallel_layers", "a runtime reads at least 1 layer at a time");
    }
    shares(scenario.kinds.iter().map(|kind| kind.share), "kinds")?;
    if scenario.origin.slots == 0 {
        return wrong("origin.slots", "at least 1");
    }
    if !(scenario.origin.requests > 0.0 && scenario.origin.requests.is_finite()) {
        return wrong("origin.requests", "more than 0 a second");
    }
    if scenario.run.limit == Span(0) {
        return wrong("run.limit", "more than no time");
    }
    Ok(())
}

fn shares(shares: impl Iterator<Item = f64>, key: &str) -> Result<(), Wrong> {
    for (index, share) in shares.enumerate() {
        if !(share > 0.0 && share.is_finite()) {
            return wrong(format!("{key}.{index}.share"), format!("{share}: a share is more than 0"));
        }
    }
    Ok(())
}

fn regions(scenario: &Scenario) -> Result<(), Wrong> {
    let regions = &scenario.regions;
    shares(regions.iter().map(|region| region.share), "regions")?;
    let total: f64 = regions.iter().map(|region| region.share).sum();
    for (index, region) in regions.iter().enumerate() {
        if regions[..index].iter().any(|other| other.name == region.name) {
            return wrong(format!("regions.{index}.name"), format!("there are two regions {:?}", region.name));
        }
        if region.zones == 0 {
            return wrong(format!("regions.{index}.zones"), "a region has at least 1 zone");
        }
        if f64::from(scenario.nodes.count) * region.share / total < 1.0 {
            let message = format!("region {:?} would have no node of {}", region.name, scenario.nodes.count);
            return wrong(format!("regions.{index}.share"), message);
        }
    }
    let known = |name: &String| regions.iter().any(|region| region.name == *name);
    let names = || regions.iter().map(|region| region.name.as_str()).collect::<Vec<_>>().join(", ");
    for (index, (one, other, _)) in scenario.wan.pairs.iter().enumerate() {
        if let Some(name) = [one, other].into_iter().find(|name| !known(name)) {
            return wrong(
                format!("wan.pairs.{index}"),
                format!("there is no region {name:?} (there are: {})", names()),
            );
        }
    }
    for (key, name) in [("origin.region", &scenario.origin.region), ("faults.cut_off", &scenario.faults.cut_off)] {
        if let Some(name) = name.as_ref().filter(|name| !known(name)) {
            return wrong(key, format!("there is no region {name:?} (there are: {})", names()));
        }
    }
    Ok(())
}

fn groups(scenario: &Scenario) -> Result<(), Wrong> {
    if let Some(sites) = &scenario.sites {
        if sites.nodes == 0 {
            return wrong("sites.nodes", "at least 1");
        }
        if sites.kinds.is_empty() {
            return wrong("sites.kinds", "at least one kind of site");
        }
        shares(sites.kinds.iter().map(|kind| kind.share), "sites.kinds")?;
        if scenario.racks.is_some() {
            return wrong("racks", "nodes stand in racks or at sites, not both");
        }
    }
    match &scenario.racks {
        Some(racks) if racks.nodes == 0 => wrong("racks.nodes", "at least 1"),
        Some(_) | None => Ok(()),
    }
}

fn layers(scenario: &Scenario) -> Result<(), Wrong> {
    let spec = &scenario.image;
    if spec.layers == 0 || spec.layers > LAYERS_MAX {
        return wrong("image.layers", format!("{} is not within 1 and {LAYERS_MAX}", spec.layers));
    }
    if let Some(piece) = spec.piece {
        let size = spec.layer_sizes.iter().map(|size| size.0).max().unwrap_or(spec.size.0);
        if !piece.0.is_power_of_two() || piece.0 < 1024 {
            return wrong("image.piece", format!("{piece} is no power of two from 1 KiB on"));
        }
        if size.div_ceil(piece.0) > 1 << 20 {
            return wrong("image.piece", format!("{piece} would cut the image into over a million pieces"));
        }
    }
    let total: u64 = image::sizes(spec, 0).iter().sum();
    if total == 0 {
        return wrong("image.size", "an image has at least one byte");
    }
    if total > scenario.nodes.disk_free.0 {
        let (image, disk) = (super::units::Bytes(total), scenario.nodes.disk_free);
        return wrong("image.size", format!("the image takes {image}, nodes.disk_free is {disk}"));
    }
    Ok(())
}

fn arrival(scenario: &Scenario) -> Result<(), Wrong> {
    let arrival = &scenario.arrival;
    match arrival.kind {
        ArrivalKind::Burst => Ok(()),
        ArrivalKind::Rolling if arrival.unavailable.0 <= 0.0 => wrong("arrival.unavailable", "more than 0"),
        ArrivalKind::Rolling => Ok(()),
        ArrivalKind::Staged => {
            let grows = arrival.stages.windows(2).all(|pair| pair[0] < pair[1]);
            let whole = arrival.stages.last().is_some_and(|last| (last.0 - 1.0).abs() < 1e-9);
            if grows && whole { Ok(()) } else { wrong("arrival.stages", "they grow, and the last is 1") }
        }
        ArrivalKind::Poisson if arrival.rate > 0.0 && arrival.rate.is_finite() => Ok(()),
        ArrivalKind::Poisson => wrong("arrival.rate", "more than 0 nodes a second"),
        ArrivalKind::Doubling if arrival.every == Span(0) => wrong("arrival.every", "more than no time"),
        ArrivalKind::Doubling => Ok(()),
    }
}

fn faults(scenario: &Scenario) -> Result<(), Wrong> {
    if scenario.faults.slow_factor < 1.0 || !scenario.faults.slow_factor.is_finite() {
        return wrong("faults.slow_factor", "at least 1");
    }
    if scenario.faults.cut_off.is_some() && scenario.regions.len() < 2 {
        return wrong("faults.cut_off", "there is no other region to be cut off from");
    }
    Ok(())
}

/// The policy's settings: what ships, with `[core]` over it.
pub(crate) fn core(scenario: &Scenario) -> Result<Config, Wrong> {
    let mut table = scenario.core.clone();
    for (key, value) in &mut table {
        if let Value::String(text) = value {
            match Span::parse(text) {
                Ok(Span(nanos)) => *value = Value::Integer(i64::try_from(nanos).unwrap_or(i64::MAX)),
                Err(message) => return wrong(format!("core.{key}"), message),
            }
        }
    }
    let known = toml::Table::try_from(Config::default());
    let unknown = known.ok().and_then(|known| table.keys().find(|key| !known.contains_key(*key)).cloned());
    let key = unknown.map_or_else(|| "core".to_owned(), |key| format!("core.{key}"));
    match Config::deserialize(table) {
        Ok(config) if config.ban_base.as_nanos() == 0 => wrong("core.ban_base", "more than no time"),
        Ok(config) => Ok(config),
        Err(error) => wrong(key, error.message()),
    }
}
