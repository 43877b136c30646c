//! The flags of `shoal agent`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::Args;

use super::{ByteSize, PeerMode, Platform, StaticPeer};

/// Where the caps stand in the help.
const CAPS: &str = "Caps, such as `100MiB`; left out, there is none";

/// Flags of `shoal agent`; each overrides the key of the file that it names.
#[derive(Debug, Clone, Default, Args)]
pub struct AgentArgs {
    /// The seeder's URL (`seeder`)
    #[arg(long, value_name = "URL")]
    pub seeder: Option<String>,
    /// A file with the authorities that may vouch for an `https` seeder (`seeder_ca`) [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub seeder_ca: Option<PathBuf>,
    /// A file with this node's own certificate, for a seeder that asks for one (`seeder_cert`)
    #[arg(long, value_name = "FILE", requires = "seeder_key")]
    pub seeder_cert: Option<PathBuf>,
    /// A file with the key of that certificate (`seeder_key`)
    #[arg(long, value_name = "FILE", requires = "seeder_cert")]
    pub seeder_key: Option<PathBuf>,
    /// Trust the key that the seeder shows at the first contact, and let anybody in who reaches a port (`insecure_open`)
    #[arg(long)]
    pub insecure_open: bool,
    /// The token by which this node joins the fleet. Others see flags: better a file, or SHOAL_JOIN_TOKEN in the environment
    #[arg(long, value_name = "TOKEN", conflicts_with = "join_token_file")]
    pub join_token: Option<String>,
    /// A file that holds the join token (`join_token_file`)
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// A file that holds the Kubernetes service-account token by which this node joins; read at each renewal (`join_jwt`)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join_token", "join_token_file"])]
    pub join_jwt: Option<PathBuf>,
    /// The fleet's root key in hex, as `shoal-seeder status` shows it; a join token carries it, too (`fleet_key`)
    #[arg(long, value_name = "HEX")]
    pub fleet_key: Option<String>,
    /// Where images and state are kept (`data_dir`) [default: /var/lib/shoal]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where container runtimes find the registry; may be repeated (`listen.registry`) [default: 127.0.0.1:5050]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Vec<SocketAddr>,
    /// Where libp2p listens; may be repeated (`listen.libp2p`) [default: 127.0.0.1:5051]
    #[arg(long, value_name = "IP:PORT")]
    pub libp2p_listen: Vec<SocketAddr>,
    /// Where peers fetch pieces; may be repeated (`listen.peer`) [default: 127.0.0.1:5052]
    #[arg(long, value_name = "IP:PORT")]
    pub peer_listen: Vec<SocketAddr>,
    /// Where health, status and metrics are read; may be repeated (`listen.status`) [default: 127.0.0.1:5053]
    #[arg(long, value_name = "IP:PORT")]
    pub status: Vec<SocketAddr>,
    /// Address under which other nodes reach this one; may be repeated (`advertise`)
    #[arg(long, value_name = "IP")]
    pub advertise: Vec<IpAddr>,
    /// A node to connect to from the start, `NODE@HOST:PORT` of its peer port; may be repeated (`peers`)
    #[arg(long, value_name = "PEER")]
    pub peers: Vec<StaticPeer>,
    /// How peers talk (`mode`) [default: tls]
    #[arg(long, value_enum)]
    pub mode: Option<PeerMode>,
    /// The region that the node stands in (`labels.region`)
    #[arg(long, value_name = "LABEL")]
    pub region: Option<String>,
    /// The zone within the region (`labels.zone`)
    #[arg(long, value_name = "LABEL")]
    pub zone: Option<String>,
    /// The site within the zone (`labels.site`)
    #[arg(long, value_name = "LABEL")]
    pub site: Option<String>,
    /// Room for images, such as `50GiB` (`store.quota`) [default: 50GiB]
    #[arg(long, value_name = "BYTES")]
    pub quota: Option<ByteSize>,
    /// Most bytes a second over the network, to and from peers and from the seeder (`limits.total_bytes_per_s`)
    #[arg(long, value_name = "BYTES", help_heading = CAPS)]
    pub total_rate: Option<ByteSize>,
    /// Most bytes a second sent to peers (`limits.upload_bytes_per_s`)
    #[arg(long, value_name = "BYTES", help_heading = CAPS)]
    pub upload_rate: Option<ByteSize>,
    /// Most bytes a second taken from peers (`limits.download_bytes_per_s`)
    #[arg(long, value_name = "BYTES", help_heading = CAPS)]
    pub download_rate: Option<ByteSize>,
    /// Most bytes a second taken from the seeder (`limits.seeder_bytes_per_s`)
    #[arg(long, value_name = "BYTES", help_heading = CAPS)]
    pub seeder_rate: Option<ByteSize>,
    /// Most bytes a second sent to local clients (`limits.client_bytes_per_s`)
    #[arg(long, value_name = "BYTES", help_heading = CAPS)]
    pub client_rate: Option<ByteSize>,
    /// Most bytes a second written to the disk (`limits.disk_bytes_per_s`)
    #[arg(long, value_name = "BYTES", help_heading = CAPS)]
    pub disk_rate: Option<ByteSize>,
    /// Fetch the layers of this platform when an index is asked for, such as `linux/amd64` (`registry.platform`)
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<Platform>,
    /// What is logged, such as `info,shoal_agent=debug` (`log`) [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Record all that the policy was told and said into this file, for replay; in a folder, each agent
    /// has a file of its own
    #[arg(long, value_name = "FILE", hide = true)]
    pub trace: Option<PathBuf>,
    /// The configuration file [default: /etc/shoal/agent.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check flags and file, and go no further
    #[arg(long)]
    pub check_config: bool,
}
