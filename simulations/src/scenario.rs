//! Scenarios: a rollout as a file that people copy and edit. Every key has a default, and a key that is not known here
//! is refused with the line where it stands.

pub(crate) mod check;
pub(crate) mod image;
pub(crate) mod load;
pub(crate) mod spots;
#[cfg(test)]
mod tests;
pub(crate) mod units;

use serde::{Deserialize, Serialize};
use units::{Bytes, Part, Rate, Span};

const fn secs(secs: u64) -> Span {
    Span(secs * 1_000_000_000)
}

const fn micros(micros: u64) -> Span {
    Span(micros * 1000)
}

const fn gbit(gbit: f64) -> Rate {
    Rate(gbit * 125e6)
}

/// A scenario as it stands in a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// The question that it answers, in one sentence.
    pub(crate) about: String,
    /// What is rolled out.
    #[serde(default)]
    pub(crate) image: Image,
    /// To whom.
    #[serde(default)]
    pub(crate) nodes: Nodes,
    /// Parts of the nodes that differ; without any, all are as `nodes` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) kinds: Vec<Kind>,
    /// Where they stand; without any, all in one region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) regions: Vec<Region>,
    /// What lies between regions.
    #[serde(default)]
    pub(crate) wan: Wan,
    /// Groups of nodes behind one narrow uplink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sites: Option<Sites>,
    /// Groups of nodes behind one switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) racks: Option<Racks>,
    /// Round trips within a region.
    #[serde(default)]
    pub(crate) lan: Lan,
    /// The registry that the image comes from.
    #[serde(default)]
    pub(crate) origin: Origin,
    /// When nodes start.
    #[serde(default)]
    pub(crate) arrival: Arrival,
    /// What goes wrong.
    #[serde(default)]
    pub(crate) faults: Faults,
    /// How nodes learn of each other.
    #[serde(default)]
    pub(crate) control: Control,
    /// Settings of the agent's policy that differ from what ships; times may be written with a unit.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub(crate) core: toml::Table,
    /// The run itself.
    #[serde(default)]
    pub(crate) run: Run,
}

/// `[image]`: sizes are compressed bytes, as they travel.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Image {
    /// All layers together.
    pub(crate) size: Bytes,
    /// How many.
    pub(crate) layers: u32,
    /// How the bytes are spread over them.
    pub(crate) shape: Shape,
    /// Length of a piece where it is not the product's own cut; a power of two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) piece: Option<Bytes>,
    /// Part of the bytes that every node has already (whole layers, so about).
    pub(crate) cached: Part,
    /// Sizes of the layers in bytes, from a manifest; in place of `size`, `layers` and `shape`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) layer_sizes: Vec<Bytes>,
}

impl Default for Image {
    fn default() -> Self {
        Self {
            size: Bytes(1 << 30),
            layers: 10,
            shape: Shape::Equal,
            piece: None,
            cached: Part(0.0),
            layer_sizes: Vec::new(),
        }
    }
}

/// How an image's bytes are spread over its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Shape {
    /// All alike.
    Equal,
    /// As found in registries: lognormal around 4 MB with a 90th percentile of 63 MB, scaled to the size.
    Lognormal,
    /// One layer of half the bytes, the others alike.
    OneBig,
}

/// `[nodes]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Nodes {
    /// How many.
    pub(crate) count: u32,
    /// Rate to others.
    pub(crate) up: Rate,
    /// Rate from others.
    pub(crate) down: Rate,
    /// Rate at which pieces are hashed and written, one after the other.
    pub(crate) disk: Rate,
    /// Room for images.
    pub(crate) disk_free: Bytes,
    /// What a sender's kernel holds of a piece when it has all of it: 32 KiB that agents let it hold unsent on slow
    /// connections, and what is in flight or in the queue of the narrowest link. When no more is left of an upload, the
    /// next one begins.
    pub(crate) unsent: Bytes,
    /// Compressed bytes that are unpacked a second, one layer after the other.
    pub(crate) unpack: Rate,
    /// Layers that the runtime reads at once.
    pub(crate) parallel_layers: u32,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            count: 1000,
            up: gbit(2.0),
            down: gbit(4.0),
            disk: Rate(1e9),
            disk_free: Bytes(100 << 30),
            unsent: Bytes(80 << 10),
            unpack: Rate(80e6),
            parallel_layers: 3,
        }
    }
}

/// One of `[[kinds]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kind {
    /// Its part of the nodes, relative to the other kinds'.
    pub(crate) share: f64,
    /// Rate to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) up: Option<Rate>,
    /// Rate from others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) down: Option<Rate>,
}

/// One of `[[regions]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Region {
    /// Its name.
    pub(crate) name: String,
    /// Its part of the nodes, relative to the other regions'.
    #[serde(default = "one")]
    pub(crate) share: f64,
    /// Zones that its nodes are spread over.
    #[serde(default = "one_zone")]
    pub(crate) zones: u32,
}

const fn one() -> f64 {
    1.0
}

const fn one_zone() -> u32 {
    1
}

/// `[wan]`: lines between regions, each direction of a pair its own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Wan {
    /// Rate of a pair.
    pub(crate) rate: Rate,
    /// Round trip of a pair that is not named.
    pub(crate) rtt: Span,
    /// `[["use1", "euw1", "81 ms"], …]`.
    pub(crate) pairs: Vec<(String, String, Span)>,
}

impl Default for Wan {
    fn default() -> Self {
        Self { rate: gbit(10.0), rtt: Span(80_000_000), pairs: Vec::new() }
    }
}

/// `[sites]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sites {
    /// Nodes at one site.
    pub(crate) nodes: u32,
    /// What leads out of them.
    pub(crate) kinds: Vec<SiteKind>,
}

/// One of `[[sites.kinds]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SiteKind {
    /// Its name.
    pub(crate) name: String,
    /// Its part of the sites, relative to the other kinds'.
    pub(crate) share: f64,
    /// Rate out of the site.
    pub(crate) up: Rate,
    /// Rate into the site.
    pub(crate) down: Rate,
    /// Round trip over the uplink.
    pub(crate) rtt: Span,
}

/// `[racks]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Racks {
    /// Nodes in one rack.
    pub(crate) nodes: u32,
    /// Rate out of the rack, and into it.
    pub(crate) uplink: Rate,
}

/// `[lan]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Lan {
    /// Round trip within a zone or site.
    pub(crate) rtt: Span,
    /// Round trip between zones of a region.
    pub(crate) zone_rtt: Span,
    /// Part of a link that is payload: the rest is headers.
    pub(crate) payload: Part,
    /// Most that one connection carries.
    pub(crate) flow: Rate,
    /// Bytes in flight on one connection: with the round trip, another limit of what it carries.
    pub(crate) window: Bytes,
}

impl Default for Lan {
    fn default() -> Self {
        Self { rtt: micros(250), zone_rtt: micros(1000), payload: Part(0.97), flow: gbit(5.0), window: Bytes(6 << 20) }
    }
}

/// `[origin]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Origin {
    /// Region that it stands in; the first without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<String>,
    /// Rate out of it.
    pub(crate) up: Rate,
    /// Requests that it answers a second; further ones wait.
    pub(crate) requests: f64,
    /// Pieces that it sends at once, at most: fewer as long as those fill its uplink.
    pub(crate) slots: u32,
    /// Longest wait for one of those; whoever waits longer is told to come again.
    pub(crate) slot_wait: Span,
    /// Rate out of a region's mirror, with the policy `mirror-per-region`.
    pub(crate) mirror_up: Rate,
    /// Images that one address may pull in an hour (0: any number). All nodes stand behind one address.
    pub(crate) pulls_per_hour: u32,
}

impl Default for Origin {
    fn default() -> Self {
        Self {
            region: None,
            up: gbit(10.0),
            requests: 10_000.0,
            slots: 32,
            slot_wait: secs(8),
            mirror_up: gbit(10.0),
            pulls_per_hour: 0,
        }
    }
}

/// How nodes come to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ArrivalKind {
    /// All within `over`.
    Burst,
    /// `unavailable` of them at once; the next starts when one is ready.
    Rolling,
    /// Up to each of `stages`; the next stage starts when all of the last are ready.
    Staged,
    /// At random, `rate` a second.
    Poisson,
    /// One, then twice as many `every` so often.
    Doubling,
}

/// `[arrival]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Arrival {
    /// How.
    pub(crate) kind: ArrivalKind,
    /// `burst` and each stage: spread evenly over this time.
    pub(crate) over: Span,
    /// `rolling`.
    pub(crate) unavailable: Part,
    /// `staged`.
    pub(crate) stages: Vec<Part>,
    /// `poisson`: nodes a second.
    pub(crate) rate: f64,
    /// `doubling`.
    pub(crate) every: Span,
}

impl Default for Arrival {
    fn default() -> Self {
        Self {
            kind: ArrivalKind::Burst,
            over: secs(1),
            unavailable: Part(0.05),
            stages: vec![Part(0.01), Part(0.1), Part(1.0)],
            rate: 5.0,
            every: secs(5),
        }
    }
}

/// `[faults]`: drawn from the seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Faults {
    /// Part of the nodes that crash once, within `crash_within` of their start.
    pub(crate) crash: Part,
    /// See there.
    pub(crate) crash_within: Span,
    /// A crashed node is back after this.
    pub(crate) restart: Span,
    /// Part of the nodes whose links are slower by `slow_factor`.
    pub(crate) slow: Part,
    /// See there.
    pub(crate) slow_factor: f64,
    /// Part of the pieces that arrive broken from a peer.
    pub(crate) corrupt: Part,
    /// The origin answers nothing from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) origin_down_at: Option<Span>,
    /// For so long.
    pub(crate) origin_down_for: Span,
    /// A region that loses its lines to the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cut_off: Option<String>,
    /// From then on.
    pub(crate) cut_off_at: Span,
    /// For so long.
    pub(crate) cut_off_for: Span,
    /// Nodes leave for good after they are complete, within this time (evenly drawn).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leave_within: Option<Span>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            crash: Part(0.0),
            crash_within: secs(10),
            restart: secs(30),
            slow: Part(0.0),
            slow_factor: 10.0,
            corrupt: Part(0.0),
            origin_down_at: None,
            origin_down_for: secs(30),
            cut_off: None,
            cut_off_at: secs(5),
            cut_off_for: secs(60),
            leave_within: None,
        }
    }
}

/// `[control]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Control {
    /// Members that the seeder names to a node that starts.
    pub(crate) introductions: u32,
    /// Interested members that it remembers.
    pub(crate) members: u32,
    /// Most members of a candidate list; 0: no lists.
    pub(crate) candidates: u32,
    /// Whether nodes have labels at all: without, nobody knows who is near.
    pub(crate) labels: bool,
    /// Whether nodes look each other up in the DHT.
    pub(crate) dht: bool,
    /// Holders of one blob that the DHT remembers.
    pub(crate) dht_records: u32,
    /// How often a node tells its peers of new ones; 0 s: never.
    pub(crate) exchange: Span,
    /// Most nodes that it names at once.
    pub(crate) exchange_names: u32,
    /// First pause of a runtime after a pull that failed; doubles up to five minutes.
    pub(crate) pull_retry: Span,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            introductions: 20,
            members: 256,
            candidates: 32,
            labels: true,
            dht: true,
            dht_records: 64,
            exchange: secs(1),
            exchange_names: 16,
            pull_retry: secs(10),
        }
    }
}

/// `[run]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Run {
    /// The run ends here whatever is left.
    pub(crate) limit: Span,
}

impl Default for Run {
    fn default() -> Self {
        Self { limit: secs(3600) }
    }
}
