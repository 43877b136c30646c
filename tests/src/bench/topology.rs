//! Small networks of namespaces: hosts on links of a given rate, in sites with an uplink of a given rate.
//!
//! ```text
//! host ──veth── router of its site ──veth── core ──veth── router of another site …
//! ```
//!
//! A site without an uplink rate hangs its hosts on the core itself. All is routed, nothing bridged: a bridge's packets
//! may pass the machine's own packet filter (`bridge-nf-call-iptables`), which drops them where Docker is installed.
//! Nothing of the machine itself is changed, and no packet leaves its namespaces. Both ends of a shaped link have a token
//! bucket (`tbf`), so that each direction has the rate.

use std::{net::Ipv4Addr, sync::Arc};

use anyhow::{Context, Result, ensure};

use super::{
    delay::{self, Delay},
    host::{Host, Namespace, Traffic},
};

/// Bytes that a token bucket lets through at once: what one large send is.
const BURST: &str = "64kb";
/// How long a packet may wait for its token: a queue of 305 KiB at 50 Mbit/s, an ordinary switch's.
const QUEUE: &str = "50ms";
/// The device in a host or in a router that leads to the core.
const UP: &str = "wire";
/// Sites and hosts of a site are one byte of an address each.
const COUNT_MAX: usize = 200;
/// What every namespace is set to: addresses of one kind only, so that nothing is announced; the congestion control that
/// every kernel allows in a namespace, so that it is the same on all machines; and sends that are not cut into packets of
/// two segments because the link is slow or the round trip long: the machine's processors carry all links, and each packet
/// costs them the same whatever it holds.
const SETTINGS: [(&str, &str); 5] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/tcp_min_tso_segs", "33"),
    ("ipv4/tcp_tso_rtt_log", "16"),
];
/// Largest packet that a host hands to its link, in bytes: 7.9 ms at 50 Mbit/s, three quarters of a token bucket.
const PACKET_MAX: u32 = 48 << 10;

/// Hosts behind a router.
#[derive(Debug, Clone)]
pub struct Site {
    /// Mbit/s to and from the core; none: not shaped.
    pub uplink: Option<u32>,
    /// Mbit/s of each host's link.
    pub hosts: Vec<u32>,
}

impl Site {
    /// `count` hosts with links of `rate` Mbit/s.
    #[must_use]
    pub fn of(count: usize, rate: u32, uplink: Option<u32>) -> Self {
        Self { uplink, hosts: vec![rate; count] }
    }
}

/// A network.
#[derive(Debug)]
pub struct Network {
    /// By site, then by host.
    hosts: Vec<Vec<Arc<Host>>>,
    sites: Vec<Site>,
    // Behind the hosts: a link goes with either end.
    _routers: Vec<Namespace>,
    core: Namespace,
}

impl Network {
    /// Builds it.
    ///
    /// # Errors
    /// Not root, or the kernel lacks something.
    pub async fn build(sites: &[Site]) -> Result<Self> {
        Self::build_with(sites, &[]).await
    }

    /// Builds a star in which hosts cannot reach each other but through proxies in the core, which pass on what they get
    /// `delay` later. Hosts know each other by [`delay::alias`]; the proxies lead to these ports of all hosts.
    ///
    /// # Errors
    /// As [`Network::build`].
    pub async fn delayed(hosts: &[u32], ports: &[u16], delay: std::time::Duration) -> Result<(Self, Delay)> {
        let site = Site { uplink: None, hosts: hosts.to_vec() };
        let aliases: Vec<String> =
            (0..hosts.len()).map(|n| format!("addr add {}/32 dev lo", delay::alias(n))).collect();
        let network = Self::build_with(&[site], &aliases).await?;
        let targets: Vec<Ipv4Addr> = network.hosts[0].iter().map(|host| host.ip()).collect();
        let delay = Delay::start(&network.core, &targets, ports, delay).await?;
        Ok((network, delay))
    }

    /// `core_lines`: what else the core is told. With any it does not forward, and hosts have a route to the aliases
    /// only.
    async fn build_with(sites: &[Site], core_lines: &[String]) -> Result<Self> {
        ensure!(sites.len() <= COUNT_MAX && sites.iter().all(|site| site.hosts.len() <= COUNT_MAX), "too many hosts");
        let core = Namespace::create("core")?;
        let direct = core_lines.is_empty();
        core.set(&SETTINGS).await?;
        core.set(&[("ipv4/ip_forward", if direct { "1" } else { "0" })]).await?;
        core.ip(&[&["link set lo up".to_owned()], core_lines].concat())?;
        let mut network = Self { hosts: Vec::new(), sites: sites.to_vec(), _routers: Vec::new(), core };
        let route = if direct { "default".to_owned() } else { delay::ALIASES.to_owned() };
        for (s, site) in sites.iter().enumerate() {
            let router = network.router(s, site).await?;
            let mut hosts = Vec::new();
            for (h, &rate) in site.hosts.iter().enumerate() {
                let through = router.as_ref().unwrap_or(&network.core);
                hosts.push(Arc::new(host(through, s, h, rate, &route).await?));
            }
            network.hosts.push(hosts);
            network._routers.extend(router);
        }
        Ok(network)
    }

    /// A site's router, where it needs one.
    async fn router(&self, s: usize, site: &Site) -> Result<Option<Namespace>> {
        let Some(rate) = site.uplink else { return Ok(None) };
        let router = Namespace::create(&format!("site{s}"))?;
        router.set(&SETTINGS).await?;
        router.set(&[("ipv4/ip_forward", "1")]).await?;
        let device = uplink(s);
        self.core.ip(&[
            format!("link add {device} type veth peer name {UP} netns {}", router.name()),
            format!("addr add 10.200.{s}.1/30 dev {device}"),
            format!("link set dev {device} up"),
            format!("route add 10.{}.0.0/16 via 10.200.{s}.2 onlink dev {device}", 64 + s),
        ])?;
        router.ip(&[
            "link set lo up".to_owned(),
            format!("addr add 10.200.{s}.2/30 dev {UP}"),
            format!("link set dev {UP} up"),
            format!("route add default via 10.200.{s}.1"),
        ])?;
        self.core.tc(&[shape(&device, rate)])?;
        router.tc(&[shape(UP, rate)])?;
        Ok(Some(router))
    }

    /// The hosts of a site.
    #[must_use]
    pub fn site(&self, site: usize) -> &[Arc<Host>] {
        &self.hosts[site]
    }

    /// All hosts, site by site.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.hosts.iter().flatten()
    }

    /// What has come into a site (`sent`) and out of it (`received`) over its shaped uplink, as the core sees it.
    ///
    /// # Errors
    /// The site has none.
    pub fn uplink_traffic(&self, site: usize) -> Result<Traffic> {
        ensure!(self.sites[site].uplink.is_some(), "site {site} has no uplink of its own");
        self.core.traffic(&uplink(site))
    }

    /// What a host of the network has sent and received.
    ///
    /// # Errors
    /// It is none of a network.
    pub fn traffic(host: &Host) -> Result<Traffic> {
        host.namespace().context("a host of this machine has no link of its own")?.traffic(UP)
    }
}

async fn host(router: &Namespace, s: usize, h: usize, rate: u32, route: &str) -> Result<Host> {
    let label = format!("s{s}h{h}");
    let namespace = Namespace::create(&label)?;
    namespace.set(&SETTINGS).await?;
    let (net, device) = (64 + s, format!("s{s}h{h}"));
    router.ip(&[
        format!("link add {device} type veth peer name {UP} netns {}", namespace.name()),
        format!("addr add 10.{net}.{h}.1/30 dev {device}"),
        format!("link set dev {device} up"),
    ])?;
    namespace.ip(&[
        "link set lo up".to_owned(),
        format!("addr add 10.{net}.{h}.2/30 dev {UP}"),
        format!("link set dev {UP} gso_max_size {PACKET_MAX}"),
        format!("link set dev {UP} up"),
        format!("route add {route} via 10.{net}.{h}.1"),
    ])?;
    router.tc(&[shape(&device, rate)])?;
    namespace.tc(&[shape(UP, rate)])?;
    let octet = |n: usize| u8::try_from(n).context("an address");
    Ok(Host::apart(label, Ipv4Addr::new(10, octet(net)?, octet(h)?, 2), namespace))
}

fn uplink(site: usize) -> String {
    format!("uplink{site}")
}

fn shape(device: &str, mbit: u32) -> String {
    format!("qdisc add dev {device} root tbf rate {mbit}mbit burst {BURST} latency {QUEUE}")
}
