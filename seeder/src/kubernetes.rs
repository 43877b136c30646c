//! Joining without join tokens: a Kubernetes cluster vouches for the pods in which agents run.
//!
//! An agent shows the token that the kubelet has projected into its pod, made for this seeder's audience and for an hour or
//! so. It is believed if a key has signed it that the cluster publishes, and if a rule of the configuration lets its service
//! account in; the rule says the labels. The cluster is not asked about single tokens.
//!
//! A token is good for one node: whoever steals one that its node has shown cannot join by it. It is shown anew at every
//! renewal, so a node whose pod is gone is a member for a day at the most.

mod keys;
mod source;
#[cfg(test)]
pub(crate) mod tests;
mod token;

use std::time::Instant;

use bincode::{Decode, Encode};
use shoal_http::client::ClientTlsError;
use shoal_proto::{
    member::CLOCK_SKEW_MAX_S,
    signed::{Labels, UnixSeconds},
};

use self::{
    source::Source,
    token::{Claims, Token},
};
use crate::config::{
    ConfigError,
    join::{Allow, Kubernetes},
};

/// Longest life of a token, in seconds: what is shown to a seeder was made for it, by the hour. One for a year is a secret
/// that somebody copied.
pub const TOKEN_LIFE_MAX_S: u64 = 86_400;

/// Why a service-account token does not let a node in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotVouched {
    /// No cluster is configured.
    #[error("this seeder takes no service-account tokens: it has no [[join.kubernetes]]")]
    NotTaken,
    /// It is no such token.
    #[error("this is no service-account token: {0}")]
    Malformed(&'static str),
    /// Signed in a way that is not taken, or not at all.
    #[error("the service-account token is signed neither by RS256 nor by ES256")]
    Algorithm,
    /// Of a cluster that is not configured.
    #[error("no [[join.kubernetes]] has the issuer of this service-account token")]
    Issuer,
    /// The cluster has no such key.
    #[error("the cluster publishes no key of the name that the service-account token gives")]
    Key,
    /// The signature does not hold.
    #[error("the signature of the service-account token does not hold")]
    Signature,
    /// Made for somebody else.
    #[error("the service-account token is not for this seeder: project it with the audience of [[join.kubernetes]]")]
    Audience,
    /// Its time is over.
    #[error("the service-account token has ended; the kubelet replaces the file in time, if the agent reads it there")]
    Ended,
    /// Its time has not begun.
    #[error(
        "the service-account token does not hold yet: the cluster's clock and the seeder's differ by over {CLOCK_SKEW_MAX_S} s"
    )]
    NotYet,
    /// It lasts too long, or for ever.
    #[error("the service-account token lasts for over {TOKEN_LIFE_MAX_S} s: project one with expirationSeconds")]
    TooLong,
    /// No rule lets this service account, or this machine, in.
    #[error("no rule of [[join.kubernetes.allow]] lets {0} in")]
    NotAllowed(String),
    /// The cluster's keys are not known.
    #[error("the cluster's keys cannot be had now: {0}")]
    Unavailable(String),
}

impl NotVouched {
    /// One word for machines.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotTaken => "service-account-not-taken",
            Self::Malformed(_) => "service-account-malformed",
            Self::Algorithm => "service-account-algorithm",
            Self::Issuer => "service-account-issuer",
            Self::Key => "service-account-key",
            Self::Signature => "service-account-signature",
            Self::Audience => "service-account-audience",
            Self::Ended => "service-account-ended",
            Self::NotYet => "service-account-not-yet-valid",
            Self::TooLong => "service-account-lasts-too-long",
            Self::NotAllowed(_) => "service-account-not-allowed",
            Self::Unavailable(_) => "service-account-keys-unavailable",
        }
    }
}

/// Who vouches for a member, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Account {
    /// The cluster's name in the configuration.
    pub cluster: String,
    /// The service account's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The pod that showed the token.
    pub pod: Option<String>,
    /// The machine that the pod ran on, where the cluster tells.
    pub machine: Option<String>,
}

/// What a good token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Who vouches.
    pub account: Account,
    /// Where the node stands, by the rule.
    pub labels: Labels,
    /// Names the token.
    pub token: [u8; 32],
    /// When it ends.
    pub until: UnixSeconds,
}

/// The clusters that may vouch for nodes.
#[derive(Debug, Default)]
pub struct Clusters(Vec<Cluster>);

#[derive(Debug)]
struct Cluster {
    name: String,
    issuer: String,
    audience: String,
    rules: Vec<Rule>,
    source: Source,
}

/// Lets a service account in.
#[derive(Debug)]
struct Rule {
    namespace: String,
    service_account: String,
    /// A machine's name, or its beginning before `*`. None: on any machine.
    machine: Option<String>,
    labels: Labels,
}

/// Why the clusters of a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClustersError {
    /// The configuration is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A cluster cannot be asked for its keys.
    #[error("join.kubernetes {name}: {error}")]
    Source {
        /// Which cluster.
        name: String,
        /// Why.
        error: ClientTlsError,
    },
}

impl Clusters {
    /// The clusters of a configuration. Opens no connection; blocks on the disk.
    ///
    /// # Errors
    /// The configuration is at fault, or a file with authorities.
    pub fn load(config: &[Kubernetes]) -> Result<Self, ClustersError> {
        let cluster = |config: &Kubernetes| {
            let source = Source::new(config, config.keys_at()?)
                .map_err(|error| ClustersError::Source { name: config.name.clone(), error })?;
            let rules: Result<_, _> = config.allow.iter().map(Rule::new).collect();
            let (issuer, audience) = (config.issuer.clone(), config.audience().to_owned());
            Ok(Cluster { name: config.name.clone(), issuer, audience, rules: rules?, source })
        };
        config.iter().map(cluster).collect::<Result<_, _>>().map(Self)
    }

    /// What a token says, if it is to be believed: its clock's `now` and the process's.
    ///
    /// # Errors
    /// It is not.
    pub async fn vouch(&self, text: &str, now: UnixSeconds, instant: Instant) -> Result<Vouched, NotVouched> {
        if self.0.is_empty() {
            return Err(NotVouched::NotTaken);
        }
        let token = Token::read(text)?;
        let cluster = self.0.iter().find(|cluster| cluster.issuer == token.issuer()).ok_or(NotVouched::Issuer)?;
        let key = cluster.source.key(&token.key, instant).await?;
        let claims = token.verify(&key)?;
        if !claims.is_for(&cluster.audience) {
            return Err(NotVouched::Audience);
        }
        let (from, until) = claims.lasts().ok_or(NotVouched::TooLong)?;
        if until <= now {
            return Err(NotVouched::Ended);
        }
        if from > now.saturating_add(CLOCK_SKEW_MAX_S) {
            return Err(NotVouched::NotYet);
        }
        if until > now.saturating_add(TOKEN_LIFE_MAX_S + CLOCK_SKEW_MAX_S) {
            return Err(NotVouched::TooLong);
        }
        let (account, labels) = cluster.allowed(claims)?;
        Ok(Vouched { account, labels, token: token.id(), until })
    }
}

impl Cluster {
    /// Whom the first rule that fits lets in.
    fn allowed(&self, claims: &Claims) -> Result<(Account, Labels), NotVouched> {
        let (namespace, name) = claims.account().ok_or(NotVouched::Malformed("its subject is no service account"))?;
        let rule = self.rules.iter().find(|rule| rule.fits(namespace, name, claims.machine()));
        let Some(rule) = rule else {
            let on = claims.machine().map_or_else(String::new, |machine| format!(" on {}", machine.escape_debug()));
            let who = format!("{}/{}{on}", namespace.escape_debug(), name.escape_debug());
            return Err(NotVouched::NotAllowed(who));
        };
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let account = Account {
            cluster: self.name.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            pod: owned(claims.pod()),
            machine: owned(claims.machine()),
        };
        Ok((account, rule.labels.clone()))
    }
}

impl Rule {
    fn new(config: &Allow) -> Result<Self, ConfigError> {
        let Allow { namespace, service_account, machine, .. } = config.clone();
        Ok(Self { namespace, service_account, machine, labels: config.labels()? })
    }

    fn fits(&self, namespace: &str, service_account: &str, machine: Option<&str>) -> bool {
        let there = match (&self.machine, machine) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(pattern), Some(machine)) => match pattern.strip_suffix('*') {
                Some(beginning) => machine.starts_with(beginning),
                None => pattern == machine,
            },
        };
        there && self.namespace == namespace && self.service_account == service_account
    }
}
