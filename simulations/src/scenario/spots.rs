//! Where the nodes stand: from a scenario's numbers, or from a table of a user's own nodes.

use anyhow::{Context, Result, anyhow, bail, ensure};
use shoal_proto::signed::Scope;

use super::{
    Scenario,
    units::{Rate, Span},
};
use crate::num::{at, floor, small};

/// No site, no group.
pub(crate) const NONE: u32 = u32::MAX;

/// One node's place and links.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) region: u32,
    /// Numbered over all regions.
    pub(crate) zone: u32,
    /// Numbered over all zones; [`NONE`] where nodes carry no such label.
    pub(crate) site: u32,
    /// The rack or site whose uplink it shares.
    pub(crate) group: u32,
    /// Bytes a second.
    pub(crate) up: f64,
    pub(crate) down: f64,
}

/// What leads out of a rack or site.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) up: f64,
    pub(crate) down: f64,
    /// One way over the uplink, in nanoseconds.
    pub(crate) latency: u64,
    /// What kind of site, or nothing.
    pub(crate) kind: String,
}

/// All nodes' places.
#[derive(Debug, Clone)]
pub(crate) struct Spots {
    pub(crate) regions: Vec<String>,
    pub(crate) nodes: Vec<Spot>,
    pub(crate) groups: Vec<Group>,
    /// Names of nodes where a table gave them.
    pub(crate) names: Vec<String>,
}

impl Spots {
    /// The narrowest scope that two nodes share by their labels.
    pub(crate) fn shared(&self, one: u32, other: u32) -> Scope {
        let (one, other) = (&self.nodes[at(one)], &self.nodes[at(other)]);
        if one.region != other.region {
            Scope::Fleet
        } else if one.zone != other.zone {
            Scope::Region
        } else if one.site == NONE || one.site != other.site {
            Scope::Zone
        } else {
            Scope::Site
        }
    }

    /// Places as many nodes as the scenario has, in runs: regions one after the other, their zones, and groups in them.
    pub(crate) fn of(scenario: &Scenario) -> Self {
        let count = at(scenario.nodes.count);
        let names: Vec<(String, f64, u32)> = if scenario.regions.is_empty() {
            vec![("local".to_owned(), 1.0, 1)]
        } else {
            scenario.regions.iter().map(|region| (region.name.clone(), region.share, region.zones)).collect()
        };
        let total: f64 = names.iter().map(|(_, share, _)| share).sum();
        let mut spots = Self { regions: Vec::new(), nodes: Vec::new(), groups: Vec::new(), names: Vec::new() };
        let (mut before, mut zones) = (0.0, 0);
        for (name, share, its_zones) in names {
            let region = small(spots.regions.len());
            spots.regions.push(name);
            before += share;
            let end = usize::try_from(floor(count as f64 * before / total + 0.5)).unwrap_or(count).min(count);
            let start = spots.nodes.len();
            for index in start..end {
                let zone = (index - start) * at(its_zones) / (end - start);
                spots.add(scenario, region, zones + small(zone));
            }
            zones += its_zones;
        }
        spots
    }

    fn add(&mut self, scenario: &Scenario, region: u32, zone: u32) {
        let (payload, index) = (scenario.lan.payload.0, self.nodes.len());
        let kind = spread(index, scenario.kinds.iter().map(|kind| kind.share)).map(|kind| &scenario.kinds[kind]);
        let up = kind.and_then(|kind| kind.up).unwrap_or(scenario.nodes.up).0 * payload;
        let down = kind.and_then(|kind| kind.down).unwrap_or(scenario.nodes.down).0 * payload;
        let (mut site, mut group) = (NONE, NONE);
        let size = scenario.sites.as_ref().map(|s| s.nodes).or_else(|| scenario.racks.as_ref().map(|r| r.nodes));
        if let Some(size) = size {
            let last = self
                .nodes
                .iter()
                .rev()
                .take_while(|node| node.zone == zone && node.group + 1 == small(self.groups.len()));
            let full = last.count() >= at(size) || self.nodes.last().is_none_or(|node| node.zone != zone);
            if full {
                self.groups.push(next_group(scenario, self.groups.len()));
            }
            group = small(self.groups.len() - 1);
            site = if scenario.sites.is_some() { group } else { NONE };
        }
        self.nodes.push(Spot { region, zone, site, group, up, down });
    }

    /// From a table with a header: `region` and any of `name zone site up down count site_up site_down site_rtt`.
    pub(crate) fn from_csv(text: &str, place: &str, scenario: &Scenario) -> Result<Self> {
        let mut table = Table::new(text, place)?;
        let mut spots = Self { regions: Vec::new(), nodes: Vec::new(), groups: Vec::new(), names: Vec::new() };
        let (mut zones, mut sites) = (Vec::<(u32, String)>::new(), Vec::<(u32, String)>::new());
        while let Some(row) = table.next_row()? {
            let region = row.text("region").ok_or_else(|| row.error("no region"))?;
            let region = number(&mut spots.regions, region.to_owned());
            let zone = number(&mut zones, (region, row.text("zone").unwrap_or("").to_owned()));
            let rate =
                |column| row.parsed(column, Rate::parse).map(|rate| rate.map(|rate| rate.0 * scenario.lan.payload.0));
            let up = rate("up")?.unwrap_or(scenario.nodes.up.0 * scenario.lan.payload.0);
            let down = rate("down")?.unwrap_or(scenario.nodes.down.0 * scenario.lan.payload.0);
            let count = row.parsed("count", |text| text.parse::<u32>().map_err(|_| format!("{text:?} is no count")))?;
            let (mut site, mut group) = (NONE, NONE);
            if let Some(name) = row.text("site") {
                site = number(&mut sites, (zone, name.to_owned()));
                while spots.groups.len() <= at(site) {
                    let (up, down) =
                        (rate("site_up")?.unwrap_or(f64::INFINITY), rate("site_down")?.unwrap_or(f64::INFINITY));
                    let latency = row.parsed("site_rtt", Span::parse)?.map_or(0, |rtt| rtt.0 / 2);
                    spots.groups.push(Group { up, down, latency, kind: String::new() });
                }
                group = site;
            }
            for _ in 0..count.unwrap_or(1) {
                spots.names.push(row.text("name").unwrap_or("").to_owned());
                spots.nodes.push(Spot { region, zone, site, group, up, down });
            }
        }
        ensure!(!spots.nodes.is_empty(), "{place}: no node follows the header");
        Ok(spots)
    }
}

/// The number of `value` among `known`, where it is put if it is new.
fn number<T: PartialEq>(known: &mut Vec<T>, value: T) -> u32 {
    let found = known.iter().position(|other| *other == value);
    small(found.unwrap_or_else(|| {
        known.push(value);
        known.len() - 1
    }))
}

/// Which of `shares` the thing of that number falls to: evenly spread, so that any run of things has about the shares.
fn spread(index: usize, shares: impl Iterator<Item = f64> + Clone) -> Option<usize> {
    let total: f64 = shares.clone().sum();
    let golden = (index as f64 + 0.5) * 0.618_033_988_749_894_9;
    let place = (golden - golden.floor()) * total;
    let mut before = 0.0;
    let found = shares.clone().position(|share| {
        before += share;
        place < before
    });
    found.or_else(|| shares.count().checked_sub(1))
}

fn next_group(scenario: &Scenario, index: usize) -> Group {
    let payload = scenario.lan.payload.0;
    if let Some(sites) = &scenario.sites {
        let kind = spread(index, sites.kinds.iter().map(|kind| kind.share)).unwrap_or(0);
        let kind = &sites.kinds[kind];
        let latency = kind.rtt.0 / 2;
        return Group { up: kind.up.0 * payload, down: kind.down.0 * payload, latency, kind: kind.name.clone() };
    }
    let uplink = scenario.racks.as_ref().map_or(f64::INFINITY, |racks| racks.uplink.0 * payload);
    Group { up: uplink, down: uplink, latency: 0, kind: String::new() }
}

/// Comma-separated values with a header, strictly: no quotes, every row as long as the header.
struct Table<'a> {
    place: &'a str,
    header: Vec<&'a str>,
    lines: core::iter::Enumerate<core::str::Lines<'a>>,
}

const COLUMNS: [&str; 10] =
    ["name", "region", "zone", "site", "up", "down", "count", "site_up", "site_down", "site_rtt"];

struct Row<'a> {
    place: &'a str,
    line: usize,
    header: &'a [&'a str],
    cells: Vec<&'a str>,
}

impl<'a> Table<'a> {
    fn new(text: &'a str, place: &'a str) -> Result<Self> {
        let mut lines = text.lines().enumerate();
        let (_, first) = lines.next().with_context(|| format!("{place}:1: empty; the first line names the columns"))?;
        let header: Vec<&str> = first.split(',').map(str::trim).collect();
        for (index, name) in header.iter().enumerate() {
            if !COLUMNS.contains(name) {
                bail!("{place}:1: there is no column {name:?}; columns: {}", COLUMNS.join(" "));
            }
            ensure!(!header[..index].contains(name), "{place}:1: the column {name:?} stands twice");
        }
        ensure!(header.contains(&"region"), "{place}:1: the column \"region\" is missing");
        Ok(Self { place, header, lines })
    }

    fn next_row(&mut self) -> Result<Option<Row<'_>>> {
        let Some((number, line)) = self.lines.by_ref().find(|(_, line)| !line.trim().is_empty()) else {
            return Ok(None);
        };
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let row = Row { place: self.place, line: number + 1, header: &self.header, cells };
        if row.cells.len() != row.header.len() {
            return Err(row.error(&format!("{} cells, the header has {}", row.cells.len(), row.header.len())));
        }
        Ok(Some(row))
    }
}

impl<'a> Row<'a> {
    fn error(&self, message: &str) -> anyhow::Error {
        anyhow!("{}:{}: {message}", self.place, self.line)
    }

    fn text(&self, column: &str) -> Option<&'a str> {
        let index = self.header.iter().position(|name| *name == column)?;
        self.cells.get(index).copied().filter(|cell| !cell.is_empty())
    }

    fn parsed<T>(&self, column: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>> {
        self.text(column).map(|text| parse(text).map_err(|why| self.error(&format!("{column}: {why}")))).transpose()
    }
}
