//! The configuration: a TOML file, overridden by flags, checked before anything is opened.

pub mod join;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use shoal_http::tls::Files;

use crate::{
    quota::{QUOTAS_MAX, Quota},
    store::local::{FREE_BYTES_MIN, ledger::Times},
    swarm::Range,
};

/// Read when no file is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/shoal/seeder.toml";

/// A configuration that cannot be used: exit 64.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("the configuration {}: {message}", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what, on one line.
        message: String,
    },
    /// Open to others than this machine, and not on purpose.
    #[error(
        "{0} can be reached from other machines: give it a certificate ([tls]) and users (access_rules = true), or add \
         --insecure-open if anybody may do everything"
    )]
    Exposed(SocketAddr),
    /// A number out of its range.
    #[error("{0}")]
    Value(&'static str),
}

/// What the seeder runs with. Every key of the file is a field here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the registry listens: one address or several.
    pub listen: Vec<SocketAddr>,
    /// Where health and metrics are served.
    pub status: SocketAddr,
    /// How clients reach the registry, where that is not by its own address: at a proxy that has the certificate.
    pub public_url: Option<String>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Anybody who reaches the port may push, pull and join.
    pub insecure_open: bool,
    /// Only users may read, write and delete, each what it was given (`shoal-seeder user`); not asked where the seeder is
    /// open.
    pub access_rules: bool,
    /// Address ranges that members may be introduced with besides the address they ask from, as `10.0.0.0/8`.
    pub introduce_ranges: Vec<String>,
    /// What clients are granted.
    pub limits: Limits,
    /// When content that nobody names is deleted.
    pub gc: Gc,
    /// How much repositories may hold.
    pub quotas: Vec<Quota>,
    /// The registry's certificate; without one it speaks plain HTTP.
    pub tls: TlsFiles,
    /// Who may join the fleet besides holders of join tokens.
    pub join: join::Join,
}

/// The files of the registry's TLS, all of them PEM. They are read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsFiles {
    /// The certificate, and after it those of the authorities between it and a root.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The authorities of which clients must have a certificate; none: clients show none.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// What is to be read; none where the registry speaks plain HTTP.
    ///
    /// # Errors
    /// One of the files is of no use without another that is not named.
    pub fn files(&self) -> Result<Option<Files>, ConfigError> {
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                Ok(Some(Files { certificate, key, client_ca: self.client_ca.clone() }))
            }
            (None, None) if self.client_ca.is_none() => Ok(None),
            (None, None) => Err(ConfigError::Value("tls.client_ca needs tls.certificate and tls.key")),
            (Some(_), None) => Err(ConfigError::Value("tls.certificate needs its key: set tls.key (--tls-key FILE)")),
            (None, Some(_)) => {
                Err(ConfigError::Value("tls.key needs its certificate: set tls.certificate (--tls-certificate FILE)"))
            }
        }
    }
}

/// When content that nobody names is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gc {
    /// Seconds between two passes of the collector; 0 for none.
    pub every_s: u64,
    /// Milliseconds for which a blob that no manifest names is left alone after somebody last relied on it.
    pub grace_ms: u64,
    /// Milliseconds after that in which it can still be taken back: longer than any request takes.
    pub deadline_ms: u64,
}

impl Default for Gc {
    fn default() -> Self {
        let Times { grace_ms, deadline_ms } = Times::default();
        Self { every_s: 3600, grace_ms, deadline_ms }
    }
}

/// What clients are granted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections; further ones wait.
    pub connections: usize,
    /// Bodies from files that are sent at once; clients beyond are told to come again (429).
    pub transfers: usize,
    /// Requests a second of one client address, with a burst of two seconds' worth; beyond it is told to come again (429).
    /// 0: as many as it likes.
    pub requests_per_s: u32,
    /// Nodes that are sent pieces at once on a fast uplink (on a slow one it is two); further ones queue.
    pub piece_slots: usize,
    /// Seconds for which an upload may be left alone before it is cancelled.
    pub upload_idle_s: u64,
    /// Bytes of the disk that stay free; pushes are refused (507) beyond.
    pub free_bytes: u64,
    /// Seconds that requests in work have to finish when the seeder is stopped.
    pub drain_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 5000))],
            status: SocketAddr::from(([127, 0, 0, 1], 5001)),
            public_url: None,
            data_dir: "/var/lib/shoal/seeder".into(),
            insecure_open: false,
            access_rules: false,
            introduce_ranges: Vec::new(),
            limits: Limits::default(),
            gc: Gc::default(),
            quotas: Vec::new(),
            tls: TlsFiles::default(),
            join: join::Join::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            transfers: 512,
            requests_per_s: 0,
            piece_slots: 32,
            upload_idle_s: 86_400,
            free_bytes: FREE_BYTES_MIN,
            drain_s: 10,
        }
    }
}

impl Config {
    /// Reads a configuration file: `path`, or [`DEFAULT_FILE`] if that is there, or none.
    ///
    /// # Errors
    /// The file cannot be read, or holds what is not understood.
    pub fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = path.map_or_else(|| (Path::new(DEFAULT_FILE), false), |path| (path, true));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Self::default()),
            Err(error) => return Err(ConfigError::Read { path: path.to_owned(), error }),
        };
        toml::from_str(&text)
            .map_err(|error| ConfigError::Parse { path: path.to_owned(), message: one_line(&error, &text) })
    }

    /// Checks what the types do not: to be called after flags have had their say.
    ///
    /// # Errors
    /// What is wrong first.
    pub fn check(&self) -> Result<(), ConfigError> {
        let exposed = |addr: &&SocketAddr| !is_loopback(addr.ip());
        let guarded = self.tls.files()?.is_some() && self.access_rules;
        if let Some(addr) = self.listen.iter().find(exposed).filter(|_| !self.insecure_open && !guarded) {
            return Err(ConfigError::Exposed(*addr));
        }
        if self.listen.is_empty() {
            return Err(ConfigError::Value("listen needs at least one address"));
        }
        if self.limits.connections == 0 || self.limits.transfers == 0 || self.limits.piece_slots == 0 {
            return Err(ConfigError::Value(
                "limits.connections, limits.transfers and limits.piece_slots are at least 1",
            ));
        }
        if self.quotas.len() > QUOTAS_MAX {
            return Err(ConfigError::Value("there are at most 64 quotas"));
        }
        if self.quotas.iter().any(|quota| quota.bytes.is_none() && quota.tags.is_none()) {
            return Err(ConfigError::Value("each of [[quotas]] says how many bytes or tags there may be"));
        }
        self.join.check()?;
        let plain = |url: &String| {
            let uri: Option<http::Uri> = url.parse().ok();
            uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.path() == "/")
        };
        if self.public_url.as_ref().is_some_and(|url| !plain(url) || url.contains('"')) {
            return Err(ConfigError::Value("public_url is no URL such as https://registry.example"));
        }
        self.ranges().map(|_| ())
    }

    /// The ranges of [`Self::introduce_ranges`].
    ///
    /// # Errors
    /// One is none.
    pub fn ranges(&self) -> Result<Vec<Range>, ConfigError> {
        let ranges: Result<_, _> = self.introduce_ranges.iter().map(|text| text.parse()).collect();
        ranges.map_err(|_| ConfigError::Value("introduce_ranges holds something that is no range such as 10.0.0.0/8"))
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => format!("line {}: {message}", text[..span.start.min(text.len())].matches('\n').count() + 1),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        Config::read(Some(file.path())).map_err(|error| error.to_string())
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = parse("insecure_open = true\nlisten_on = \"x\"\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("listen_on") && !error.contains('\n'), "{error}");
        assert!(parse("[limits]\ntransfer = 1\n").unwrap_err().contains("transfer"));
        assert!(parse("listen = [\"nowhere\"]").unwrap_err().contains("line 1"));
    }

    #[test]
    fn the_example_says_what_holds_without_it() {
        let example = include_str!("../seeder.example.toml");
        assert_eq!(parse(example).unwrap(), Config::default());
        let keys = example.lines().filter(|line| line.contains(" = ")).count();
        assert_eq!(keys, 34, "every key is shown");
    }

    #[test]
    fn a_quota_has_a_pattern_and_a_limit() {
        let text =
            "[[quotas]]\nrepositories = \"team/**\"\nbytes = 1000\n[[quotas]]\nrepositories = \"**\"\ntags = 5\n";
        let config = parse(text).unwrap();
        assert!(config.check().is_ok());
        assert_eq!((config.quotas[0].bytes, config.quotas[0].tags, config.quotas[1].tags), (Some(1000), None, Some(5)));
        let unlimited = parse("[[quotas]]\nrepositories = \"a\"\n").unwrap();
        assert!(unlimited.check().unwrap_err().to_string().contains("bytes or tags"));
        assert!(parse("[[quotas]]\nrepositories = \"a/*\"\nbytes = 1\n").unwrap_err().contains("team/**"));
        assert!(parse(&"[[quotas]]\nrepositories = \"a\"\nbytes = 1\n".repeat(65)).unwrap().check().is_err());
    }

    #[test]
    fn the_example_of_a_cluster_is_one() {
        let example = include_str!("../seeder.example.toml");
        let lines = example.split_once("# [[join.kubernetes]]").unwrap().1.lines();
        let toml = lines
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| (line.starts_with('[') || line.contains(" = ")) && !line.starts_with("keys_file"));
        let text: Vec<_> = std::iter::once("[[join.kubernetes]]").chain(toml).collect();
        let config = parse(&text.join("\n")).unwrap();
        config.check().unwrap();
        assert_eq!(config.join.kubernetes[0].allow[0].labels().unwrap().zone.unwrap().as_str(), "a");
    }

    #[test]
    fn each_mistake_in_a_cluster_is_named() {
        let whole = [
            "name = \"prod\"",
            "issuer = \"https://k\"",
            "keys_url = \"https://k/keys\"",
            "[[join.kubernetes.allow]]",
            "namespace = \"shoal\"",
            "service_account = \"agent\"",
        ];
        let refused = |from: &str, to: &str| {
            let text = format!("[[join.kubernetes]]\n{}", whole.join("\n")).replace(from, to);
            parse(&text).and_then(|config| config.check().map_err(|error| error.to_string())).unwrap_err()
        };
        for (from, to, expected) in [
            ("name = \"prod\"", "", "needs a name and an issuer"),
            ("https://k/keys", "http://k/keys", "begins with https://"),
            ("https://k/keys", "", "either keys_url or keys_file"),
            ("keys_url", "keys_file = \"x\"\nkeys_url", "either keys_url or keys_file"),
            ("keys_url = \"https://k/keys\"", "keys_file = \"x\"\nca = \"y\"", "are for keys_url"),
            ("namespace = \"shoal\"", "", "needs namespace and service_account"),
            ("namespace", "machine = \"*-a\"\nnamespace", "* stands at the end"),
            ("namespace", "labels = { region = \"EU\" }\nnamespace", "a label is"),
            ("namespace", "labels = { planet = \"x\" }\nnamespace", "unknown field"),
        ] {
            assert!(refused(from, to).contains(expected), "{from} → {to}: {}", refused(from, to));
        }
    }

    #[test]
    fn only_on_purpose_does_it_listen_to_other_machines() {
        let mut config = parse("listen = [\"127.0.0.1:0\", \"[::1]:0\"]").unwrap();
        assert!(config.check().is_ok());
        config.listen.push("0.0.0.0:5000".parse().unwrap());
        assert!(matches!(config.check(), Err(ConfigError::Exposed(_))));
        config.insecure_open = true;
        assert!(config.check().is_ok());
        config.introduce_ranges.push("10.0.0.0".into());
        assert!(config.check().is_err());
    }

    #[test]
    fn with_a_certificate_and_users_it_listens_to_other_machines_and_with_one_of_them_it_does_not() {
        let text =
            |tls: &str, rules: bool| format!("listen = [\"0.0.0.0:5000\"]\naccess_rules = {rules}\n[tls]\n{tls}");
        let pair = "certificate = \"c.pem\"\nkey = \"k.pem\"";
        assert!(parse(&text(pair, true)).unwrap().check().is_ok());
        for (tls, rules) in [(pair, false), ("", true)] {
            let refused = parse(&text(tls, rules)).unwrap().check().unwrap_err();
            assert!(matches!(refused, ConfigError::Exposed(_)), "{refused}");
            assert!(refused.to_string().contains("[tls]") && refused.to_string().contains("access_rules"), "{refused}");
        }
    }

    #[test]
    fn a_certificate_without_its_key_and_a_key_without_its_certificate_are_refused() {
        for (tls, missing) in [
            ("certificate = \"c\"", "set tls.key"),
            ("key = \"k\"", "set tls.certificate"),
            ("client_ca = \"a\"", "needs tls.certificate"),
        ] {
            let refused = parse(&format!("[tls]\n{tls}")).unwrap().check().unwrap_err().to_string();
            assert!(refused.contains(missing), "{tls}: {refused}");
        }
    }
}
