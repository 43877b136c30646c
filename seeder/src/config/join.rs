//! `[join]`: who may join the fleet besides holders of join tokens.

use std::{net::IpAddr, path::PathBuf};

use http::Uri;
use serde::Deserialize;
use shoal_proto::signed::Labels;

use super::ConfigError;
use crate::members::order::LabelTexts;

/// The audience that tokens are made for unless the configuration says otherwise.
const AUDIENCE: &str = "shoal";

/// Who may join the fleet besides holders of join tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Join {
    /// Kubernetes clusters that vouch for the pods in which agents run.
    pub kubernetes: Vec<Kubernetes>,
}

/// A Kubernetes cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// What it is called in lists of members.
    pub name: String,
    /// What its tokens give as `iss`: the API server's `--service-account-issuer`.
    pub issuer: String,
    /// Where it publishes its keys: an URL, as `https://10.0.0.1:6443/openid/v1/jwks`.
    pub keys_url: String,
    /// A file of its keys instead, as `kubectl get --raw /openid/v1/jwks` prints them.
    pub keys_file: Option<PathBuf>,
    /// The authorities that may vouch for the URL; none: the system's.
    pub ca: Option<PathBuf>,
    /// A file with the token that the seeder shows at the URL, if it must.
    pub bearer_file: Option<PathBuf>,
    /// For whom tokens must be made; empty: `shoal`.
    pub audience: String,
    /// Which service accounts may join; the first rule that fits counts.
    pub allow: Vec<Allow>,
}

/// Lets a service account in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// On this machine alone, or on those whose names begin so: `eu-a-*`. Clusters tell from version 1.32 on.
    pub machine: Option<String>,
    /// Where its nodes stand.
    pub labels: LabelTexts,
}

/// Where a cluster's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeysAt {
    /// In a file.
    File(PathBuf),
    /// At an address.
    Url(Uri),
}

impl Join {
    /// What is wrong first, if anything is.
    ///
    /// # Errors
    /// That.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (number, cluster) in self.kubernetes.iter().enumerate() {
            cluster.check()?;
            let before = &self.kubernetes[..number];
            if before.iter().any(|other| other.name == cluster.name || other.issuer == cluster.issuer) {
                return Err(ConfigError::Value("two of join.kubernetes have the same name or issuer"));
            }
        }
        Ok(())
    }
}

impl Kubernetes {
    fn check(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.issuer.is_empty() {
            return Err(ConfigError::Value("each of join.kubernetes needs a name and an issuer"));
        }
        if self.allow.is_empty() {
            return Err(ConfigError::Value("join.kubernetes lets nobody in: it needs at least one allow"));
        }
        let at = self.keys_at()?;
        if matches!(at, KeysAt::File(_)) && (self.ca.is_some() || self.bearer_file.is_some()) {
            return Err(ConfigError::Value("join.kubernetes: ca and bearer_file are for keys_url"));
        }
        for rule in &self.allow {
            if rule.namespace.is_empty() || rule.service_account.is_empty() {
                return Err(ConfigError::Value("join.kubernetes.allow needs namespace and service_account"));
            }
            if rule.machine.as_ref().is_some_and(|machine| machine.trim_end_matches('*').contains('*')) {
                return Err(ConfigError::Value("join.kubernetes.allow: in machine, * stands at the end alone"));
            }
            rule.labels()?;
        }
        Ok(())
    }

    /// Where its keys are.
    ///
    /// # Errors
    /// Nowhere, at two places, or where anybody on the way could put others.
    pub fn keys_at(&self) -> Result<KeysAt, ConfigError> {
        match (&self.keys_file, self.keys_url.as_str()) {
            (Some(path), "") => Ok(KeysAt::File(path.clone())),
            (None, "") | (Some(_), _) => Err(ConfigError::Value("join.kubernetes needs either keys_url or keys_file")),
            (None, url) => {
                let uri: Uri = url.parse().map_err(|_| ConfigError::Value("join.kubernetes: keys_url is no URL"))?;
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
                match uri.scheme_str() {
                    Some("https") => Ok(KeysAt::Url(uri)),
                    Some("http") if here => Ok(KeysAt::Url(uri)),
                    _ => Err(ConfigError::Value("join.kubernetes: keys_url begins with https://")),
                }
            }
        }
    }

    /// For whom its tokens must be made.
    #[must_use]
    pub fn audience(&self) -> &str {
        if self.audience.is_empty() { AUDIENCE } else { &self.audience }
    }
}

impl Allow {
    /// Where its nodes stand.
    ///
    /// # Errors
    /// A label is none.
    pub fn labels(&self) -> Result<Labels, ConfigError> {
        self.labels.read().map_err(|_| {
            ConfigError::Value(
                "join.kubernetes.allow: a label is 1 to 63 of [a-z0-9._-] and starts and ends with a letter or digit",
            )
        })
    }
}
