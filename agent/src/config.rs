//! Flags and file → one validated [`Config`]. The only module that reads either; nothing here binds a port or touches
//! the data folder, so `--check-config` is this module and no more.
//!
//! A flag overrides the file, the file overrides the default. `/etc/shoal/agent.toml` is read if it is there; `--config`
//! names another, which must be. Unknown keys are refused.

mod args;
mod file;
#[cfg(test)]
mod tests;
mod values;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use http::Uri;
use shoal_proto::{
    signed::{Labels, NodeId},
    token::{JoinToken, TokenError},
};

pub use args::AgentArgs;
pub use values::{ByteSize, Platform, StaticPeer};

/// Read if it is there.
pub const CONFIG_FILE: &str = "/etc/shoal/agent.toml";
/// Where data goes unless the config says otherwise.
pub const DATA_DIR: &str = "/var/lib/shoal";
/// The environment variable that may hold the join token.
pub const JOIN_TOKEN_ENV: &str = "SHOAL_JOIN_TOKEN";
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The localhost registry's port.
pub const REGISTRY_PORT: u16 = 5050;
/// libp2p's port.
pub const LIBP2P_PORT: u16 = 5051;
/// The peer protocol's port.
pub const PEER_PORT: u16 = 5052;
/// The port of status and metrics.
pub const STATUS_PORT: u16 = 5053;

/// Room for blobs: some dozens of large images, and a fraction of any node's disk.
pub const QUOTA_BYTES: u64 = 50 << 30;
/// How old a tag may be that is answered while the seeder is down. A day covers a night's outage; a tag that moved
/// since is wrong for that long, and the answer says so (`Warning`).
pub const STALE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Connections with peers: the swarm's degree is about 20, and the rest are kept from older pulls.
pub const PEER_CONNECTIONS_MAX: usize = 128;
/// Connections of local clients: a node runs one or two container runtimes, each with a few layers at once.
pub const CLIENT_CONNECTIONS_MAX: usize = 512;
/// Bytes asked for and not yet arrived, over all pieces: bounds what a burst may hold in socket buffers, and is a
/// quarter second of a 2 Gbit/s link.
pub const INFLIGHT_BYTES_MAX: u64 = 64 << 20;

/// What an agent needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The seeder: `http://host:port` or `https://host:port`.
    pub seeder: Uri,
    /// By what an `https` seeder is known.
    pub seeder_tls: SeederTls,
    /// No join token: the seeder's key is pinned at the first contact.
    pub insecure_open: bool,
    /// By what the node joins the fleet.
    pub join_by: JoinBy,
    /// The fleet's root key, which the seeder must show. A join token carries it, too.
    pub fleet_key: Option<[u8; 32]>,
    /// Where data goes.
    pub data_dir: PathBuf,
    /// Which boot of the machine this is.
    pub boot_id: String,
    /// Where it listens.
    pub listen: Listen,
    /// Addresses under which other nodes reach this one, where its interfaces do not tell.
    pub advertise: Vec<IpAddr>,
    /// Nodes to connect to from the start.
    pub peers: Vec<StaticPeer>,
    /// How peers talk.
    pub mode: PeerMode,
    /// Private content may travel in plain mode.
    pub trusted_network: bool,
    /// Where the node stands; only an open seeder heeds it.
    pub labels: Labels,
    /// Most bytes of blobs.
    pub quota_bytes: u64,
    /// The localhost registry.
    pub registry: Registry,
    /// Caps.
    pub limits: Limits,
    /// What is logged, in the form of `tracing`'s filter.
    pub log: String,
    /// Where the policy's inputs and actions are recorded, for developers.
    pub trace: Option<PathBuf>,
}

/// By what a node joins the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum JoinBy {
    /// By nothing: the seeder is open, or the node has joined before.
    #[default]
    Nothing,
    /// By a join token. Not needed once it has joined.
    Token(JoinToken),
    /// By the Kubernetes service-account token in this file. Read at each join and renewal: the kubelet replaces it.
    ServiceAccount(PathBuf),
}

impl JoinBy {
    /// The token, if it is one.
    #[must_use]
    pub const fn token(&self) -> Option<&JoinToken> {
        match self {
            Self::Token(token) => Some(token),
            Self::Nothing | Self::ServiceAccount(_) => None,
        }
    }
}

/// Where an agent listens. Port 0 lets the kernel choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The registry.
    pub registry: Vec<SocketAddr>,
    /// libp2p.
    pub libp2p: Vec<SocketAddr>,
    /// The peer protocol.
    pub peer: Vec<SocketAddr>,
    /// Status and metrics.
    pub status: Vec<SocketAddr>,
}

/// By what an `https` seeder is known, and this node to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeederTls {
    /// The file of the authorities that may vouch for it. None: those of the system.
    pub ca: Option<PathBuf>,
    /// The files of this node's own certificate and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How peers talk to one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PeerMode {
    /// Encrypted; certificates prove who is who.
    #[default]
    Tls,
    /// In the clear, for trusted networks only.
    Plain,
}

/// The localhost registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    /// Names besides the loopback ones that clients may give in `Host`.
    pub hosts: Vec<String>,
    /// How old a tag may be that is answered while the seeder is down.
    pub stale_max: Duration,
    /// For how long a client that the seeder let in to a private repository may go on there while the seeder cannot be
    /// asked. Zero: not at all.
    pub private_offline: Duration,
    /// The platform whose layers a request for an index starts. None: an index starts nothing, since the runtime asks
    /// for its own platform's manifest next.
    pub platform: Option<Platform>,
}

/// Caps. A rate of none is no cap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second sent to peers.
    pub upload_bytes_per_s: Option<u64>,
    /// Bytes a second taken from peers.
    pub download_bytes_per_s: Option<u64>,
    /// Bytes a second taken from the seeder.
    pub seeder_bytes_per_s: Option<u64>,
    /// Bytes a second over the network: to peers, from peers and from the seeder together.
    pub total_bytes_per_s: Option<u64>,
    /// Bytes a second sent to local clients.
    pub client_bytes_per_s: Option<u64>,
    /// Bytes a second written to the disk.
    pub disk_bytes_per_s: Option<u64>,
    /// Connections with peers.
    pub peer_connections_max: usize,
    /// Connections of local clients.
    pub client_connections_max: usize,
    /// Bytes asked for and not yet arrived.
    pub inflight_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            upload_bytes_per_s: None,
            download_bytes_per_s: None,
            seeder_bytes_per_s: None,
            total_bytes_per_s: None,
            client_bytes_per_s: None,
            disk_bytes_per_s: None,
            peer_connections_max: PEER_CONNECTIONS_MAX,
            client_connections_max: CLIENT_CONNECTIONS_MAX,
            inflight_bytes_max: INFLIGHT_BYTES_MAX,
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self { hosts: Vec::new(), stale_max: STALE_MAX, private_offline: Duration::ZERO, platform: None }
    }
}

/// Why a configuration is no good. Exit 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is no TOML, or has keys or values that are not known.
    #[error("{}: {error}", path.display())]
    Toml {
        /// Which.
        path: PathBuf,
        /// What and where, in one line.
        error: String,
    },
    /// A value that cannot be.
    #[error("{key}: {error}")]
    Value {
        /// The key or flag.
        key: &'static str,
        /// What is wrong.
        error: String,
    },
}

impl Config {
    /// The configuration of an agent with `args` on its command line.
    ///
    /// # Errors
    /// The file cannot be read, or a value cannot be.
    pub fn load(args: &AgentArgs) -> Result<Self, ConfigError> {
        let file = file::read(args.config.as_deref())?;
        let token = join_token(args, file.join_token_file.as_deref())?;
        let merged = Self::merge(args, file, &boot_id()?)?;
        match (token, &merged.join_by) {
            (None, _) => Ok(merged),
            (Some(_), JoinBy::ServiceAccount(_)) => Err(ConfigError::Value {
                key: "join_jwt",
                error: "a join token is given, too; a node joins by one of them".into(),
            }),
            (Some(token), JoinBy::Nothing | JoinBy::Token(_)) => Ok(Self { join_by: JoinBy::Token(token), ..merged }),
        }
    }

    /// A node of its own on loopback, for one pull from an open seeder.
    ///
    /// # Errors
    /// The URL cannot be.
    pub fn temporary(seeder: &str, data_dir: PathBuf) -> Result<Self, ConfigError> {
        let seeder = values::seeder_url(seeder).map_err(|error| ConfigError::Value { key: "seeder", error })?;
        Ok(Self::loopback(seeder, data_dir, &boot_id()?))
    }

    /// A node of its own on loopback, all ports chosen by the kernel: for tests and one-off pulls.
    #[must_use]
    pub fn loopback(seeder: Uri, data_dir: PathBuf, boot_id: &str) -> Self {
        let any = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
        let listen = Listen { registry: any.clone(), libp2p: any.clone(), peer: any.clone(), status: any };
        Self {
            seeder,
            seeder_tls: SeederTls::default(),
            insecure_open: true,
            join_by: JoinBy::Nothing,
            fleet_key: None,
            data_dir,
            boot_id: boot_id.to_owned(),
            listen,
            advertise: Vec::new(),
            peers: Vec::new(),
            mode: PeerMode::default(),
            trusted_network: false,
            labels: Labels::default(),
            quota_bytes: QUOTA_BYTES,
            registry: Registry::default(),
            limits: Limits::default(),
            log: file::LOG.to_owned(),
            trace: None,
        }
    }

    fn merge(args: &AgentArgs, file: file::File, boot_id: &str) -> Result<Self, ConfigError> {
        let seeder = args.seeder.clone().or_else(|| file.seeder.clone()).ok_or_else(|| ConfigError::Value {
            key: "seeder",
            error: "the agent needs its seeder's URL: --seeder http://HOST:PORT".into(),
        })?;
        let insecure_open = args.insecure_open || file.insecure_open.unwrap_or(false);
        let pick = |flags: &[SocketAddr], file: Option<Vec<SocketAddr>>, ip: IpAddr, port: u16| {
            if flags.is_empty() { file.unwrap_or_else(|| vec![(ip, port).into()]) } else { flags.to_vec() }
        };
        let seeder = values::seeder_url(&seeder).map_err(|error| ConfigError::Value { key: "seeder", error })?;
        let seeder_tls = seeder_tls(args, &file, &seeder)?;
        let fleet_key =
            args.fleet_key.as_ref().or(file.fleet_key.as_ref()).map(|key| values::fleet_key(key)).transpose();
        let fleet_key = fleet_key.map_err(|error| ConfigError::Value { key: "fleet_key", error })?;
        let join_by = join_jwt(args.join_jwt.as_ref().or(file.join_jwt.as_ref()), &seeder, fleet_key.is_some())?;
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        // A seeder on this machine has its fleet here too. In open mode whoever reaches a port is let in.
        let peers = if is_loopback(&seeder) { loopback } else { Ipv4Addr::UNSPECIFIED.into() };
        let listen = file.listen;
        let listen = Listen {
            registry: pick(&args.listen, listen.registry, loopback, REGISTRY_PORT),
            libp2p: pick(&args.libp2p_listen, listen.libp2p, peers, LIBP2P_PORT),
            peer: pick(&args.peer_listen, listen.peer, peers, PEER_PORT),
            status: pick(&args.status, listen.status, loopback, STATUS_PORT),
        };
        for (key, list) in [
            ("listen.registry", &listen.registry),
            ("listen.libp2p", &listen.libp2p),
            ("listen.peer", &listen.peer),
            ("listen.status", &listen.status),
        ] {
            if list.is_empty() {
                return Err(ConfigError::Value { key, error: "names no address".into() });
            }
        }
        let or = |flags: &[IpAddr], file: Vec<IpAddr>| if flags.is_empty() { file } else { flags.to_vec() };
        Ok(Self {
            seeder,
            seeder_tls,
            insecure_open,
            join_by,
            fleet_key,
            data_dir: args.data_dir.clone().or(file.data_dir).unwrap_or_else(|| DATA_DIR.into()),
            boot_id: boot_id.to_owned(),
            listen,
            advertise: or(&args.advertise, file.advertise),
            peers: if args.peers.is_empty() { file.peers } else { args.peers.clone() },
            mode: args.mode.or(file.mode).unwrap_or_default(),
            trusted_network: file.trusted_network.unwrap_or(false),
            labels: file::labels(args, file.labels)?,
            quota_bytes: args.quota.or(file.store.quota).map_or(QUOTA_BYTES, |size| size.0),
            registry: file.registry.into_config(args.platform.clone()),
            limits: file.limits.into_config(args)?,
            log: args.log.clone().or(file.log).unwrap_or_else(|| file::LOG.to_owned()),
            trace: args.trace.clone(),
        })
    }
}

/// By what the seeder is known: of the flags, else of the file. Files for a seeder without TLS are a mistake that would go
/// unnoticed.
fn seeder_tls(args: &AgentArgs, file: &file::File, seeder: &Uri) -> Result<SeederTls, ConfigError> {
    let wrong = |key, error: &str| Err(ConfigError::Value { key, error: error.into() });
    let pick = |flag: &Option<PathBuf>, file: &Option<PathBuf>| flag.clone().or_else(|| file.clone());
    let identity = match (pick(&args.seeder_cert, &file.seeder_cert), pick(&args.seeder_key, &file.seeder_key)) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return wrong("seeder_cert", "a certificate needs its key: seeder_key"),
        (None, Some(_)) => return wrong("seeder_key", "a key needs its certificate: seeder_cert"),
    };
    let tls = SeederTls { ca: pick(&args.seeder_ca, &file.seeder_ca), identity };
    if tls != SeederTls::default() && seeder.scheme_str() != Some("https") {
        return wrong("seeder", "certificates were given, but its URL does not begin with https://");
    }
    Ok(tls)
}

/// The join token: of the flag, else of the file that a flag or the configuration names, else of the environment. Errors do
/// not repeat it.
fn join_token(args: &AgentArgs, configured: Option<&Path>) -> Result<Option<JoinToken>, ConfigError> {
    let parse = |text: &str| {
        let token = text
            .parse()
            .map_err(|error: TokenError| ConfigError::Value { key: "join_token", error: error.to_string() });
        token.map(Some)
    };
    if let Some(token) = &args.join_token {
        return parse(token);
    }
    if let Some(path) = args.join_token_file.as_deref().or(configured) {
        let text = std::fs::read_to_string(path);
        return parse(&text.map_err(|error| ConfigError::File { path: path.to_owned(), error })?);
    }
    #[expect(clippy::disallowed_methods, reason = "this is the configuration")]
    let environment = std::env::var(JOIN_TOKEN_ENV).ok().filter(|text| !text.is_empty());
    environment.map_or(Ok(None), |text| parse(&text))
}

/// A service-account token is a secret as it is: it goes where TLS, or nothing but this machine, is on the way; and only to a
/// seeder that is known by its certificate or by the fleet's key.
fn join_jwt(path: Option<&PathBuf>, seeder: &Uri, key_known: bool) -> Result<JoinBy, ConfigError> {
    let Some(path) = path else { return Ok(JoinBy::Nothing) };
    let wrong = |error: &str| Err(ConfigError::Value { key: "join_jwt", error: error.into() });
    match seeder.scheme_str() {
        Some("https") => Ok(JoinBy::ServiceAccount(path.clone())),
        _ if !is_loopback(seeder) => wrong("it would be sent in the clear; the seeder's URL must begin with https://"),
        _ if !key_known => wrong("without https:// nothing says who the seeder is; give fleet_key"),
        _ => Ok(JoinBy::ServiceAccount(path.clone())),
    }
}

fn boot_id() -> Result<String, ConfigError> {
    let text = std::fs::read_to_string(BOOT_ID).map_err(|error| ConfigError::File { path: BOOT_ID.into(), error })?;
    Ok(text.trim().to_owned())
}

impl std::fmt::Display for StaticPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node: NodeId(node), host, port } = self;
        write!(f, "{}@{host}:{port}", hex::encode(node))
    }
}

fn is_loopback(seeder: &Uri) -> bool {
    let host = seeder.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
