//! The configuration file as TOML has it.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use shoal_proto::signed::{Label, Labels};

use super::{
    AgentArgs, ByteSize, CONFIG_FILE, ConfigError, Limits, PeerMode, Platform, Registry, STALE_MAX, StaticPeer,
};

/// What is logged unless told otherwise. The libraries speak up when something is wrong.
pub(super) const LOG: &str = "info,libp2p=warn,hyper=warn";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) seeder: Option<String>,
    pub(super) seeder_ca: Option<PathBuf>,
    pub(super) seeder_cert: Option<PathBuf>,
    pub(super) seeder_key: Option<PathBuf>,
    pub(super) insecure_open: Option<bool>,
    pub(super) join_token_file: Option<PathBuf>,
    pub(super) join_jwt: Option<PathBuf>,
    pub(super) fleet_key: Option<String>,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) advertise: Vec<IpAddr>,
    pub(super) peers: Vec<StaticPeer>,
    pub(super) mode: Option<PeerMode>,
    pub(super) trusted_network: Option<bool>,
    pub(super) log: Option<String>,
    pub(super) listen: ListenSection,
    pub(super) labels: LabelsSection,
    pub(super) store: StoreSection,
    pub(super) registry: RegistrySection,
    pub(super) limits: LimitsSection,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenSection {
    pub(super) registry: Option<Vec<SocketAddr>>,
    pub(super) libp2p: Option<Vec<SocketAddr>>,
    pub(super) peer: Option<Vec<SocketAddr>>,
    pub(super) status: Option<Vec<SocketAddr>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LabelsSection {
    region: Option<String>,
    zone: Option<String>,
    site: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StoreSection {
    pub(super) quota: Option<ByteSize>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RegistrySection {
    hosts: Vec<String>,
    stale_max_s: Option<u64>,
    private_offline_s: Option<u64>,
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    upload_bytes_per_s: Option<ByteSize>,
    download_bytes_per_s: Option<ByteSize>,
    seeder_bytes_per_s: Option<ByteSize>,
    total_bytes_per_s: Option<ByteSize>,
    client_bytes_per_s: Option<ByteSize>,
    disk_bytes_per_s: Option<ByteSize>,
    peer_connections_max: Option<usize>,
    client_connections_max: Option<usize>,
    inflight_bytes_max: Option<ByteSize>,
}

/// The file that was named, or the default one if it is there.
pub(super) fn read(named: Option<&Path>) -> Result<File, ConfigError> {
    let path = named.unwrap_or_else(|| Path::new(CONFIG_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|error| ConfigError::Toml { path: path.to_owned(), error }),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(ConfigError::File { path: path.to_owned(), error }),
    }
}

/// The error in one line, with the line that it is on.
pub(super) fn parse(text: &str) -> Result<File, String> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let message = error.message().replace('\n', "; ");
        line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
    })
}

pub(super) fn labels(args: &AgentArgs, file: LabelsSection) -> Result<Labels, ConfigError> {
    let label = |key, flag: &Option<String>, file: Option<String>| {
        let text = flag.clone().or(file);
        let parsed = text.map(|text| text.parse::<Label>()).transpose();
        parsed.map_err(|error| ConfigError::Value { key, error: error.to_string() })
    };
    Ok(Labels {
        region: label("labels.region", &args.region, file.region)?,
        zone: label("labels.zone", &args.zone, file.zone)?,
        site: label("labels.site", &args.site, file.site)?,
    })
}

impl RegistrySection {
    pub(super) fn into_config(self, platform: Option<Platform>) -> Registry {
        Registry {
            hosts: self.hosts,
            stale_max: self.stale_max_s.map_or(STALE_MAX, Duration::from_secs),
            private_offline: self.private_offline_s.map_or(Duration::ZERO, Duration::from_secs),
            platform: platform.or(self.platform),
        }
    }
}

impl LimitsSection {
    pub(super) fn into_config(self, args: &AgentArgs) -> Result<Limits, ConfigError> {
        let default = Limits::default();
        let rate = |flag: Option<ByteSize>, file: Option<ByteSize>| flag.or(file).map(|size| size.0);
        let limits = Limits {
            upload_bytes_per_s: rate(args.upload_rate, self.upload_bytes_per_s),
            download_bytes_per_s: rate(args.download_rate, self.download_bytes_per_s),
            seeder_bytes_per_s: rate(args.seeder_rate, self.seeder_bytes_per_s),
            total_bytes_per_s: rate(args.total_rate, self.total_bytes_per_s),
            client_bytes_per_s: rate(args.client_rate, self.client_bytes_per_s),
            disk_bytes_per_s: rate(args.disk_rate, self.disk_bytes_per_s),
            peer_connections_max: self.peer_connections_max.unwrap_or(default.peer_connections_max),
            client_connections_max: self.client_connections_max.unwrap_or(default.client_connections_max),
            inflight_bytes_max: self.inflight_bytes_max.map_or(default.inflight_bytes_max, |size| size.0),
        };
        let zero = [
            ("limits.upload_bytes_per_s", limits.upload_bytes_per_s == Some(0)),
            ("limits.download_bytes_per_s", limits.download_bytes_per_s == Some(0)),
            ("limits.seeder_bytes_per_s", limits.seeder_bytes_per_s == Some(0)),
            ("limits.total_bytes_per_s", limits.total_bytes_per_s == Some(0)),
            ("limits.client_bytes_per_s", limits.client_bytes_per_s == Some(0)),
            ("limits.disk_bytes_per_s", limits.disk_bytes_per_s == Some(0)),
            ("limits.peer_connections_max", limits.peer_connections_max == 0),
            ("limits.client_connections_max", limits.client_connections_max == 0),
            ("limits.inflight_bytes_max", limits.inflight_bytes_max == 0),
        ];
        match zero.into_iter().find(|(_, zero)| *zero) {
            Some((key, _)) => {
                Err(ConfigError::Value { key, error: "must be over 0; leave it out for the default".into() })
            }
            None => Ok(limits),
        }
    }
}
