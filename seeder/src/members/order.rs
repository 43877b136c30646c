//! What an administrator orders about tokens, members and users, as the socket and the command line carry it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shoal_proto::{
    api::TokenId,
    signed::{Label, Labels, NodeId},
};

use super::{JoinedBy, Member, Members, OrderError, Token, decode};
use crate::{kubernetes::Account, store::StoreError, time::unix_seconds, users::Grants};

/// Tokens or members in one answer.
const PAGE: usize = 500;

/// An order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// Make a join token.
    CreateToken {
        /// Nodes that may join by it.
        uses: u32,
        /// Seconds for which it is good.
        ttl_s: u64,
        /// `region`, `zone`, `site`.
        labels: LabelTexts,
    },
    /// List the join tokens, after this one.
    ListTokens {
        /// Its id in hex.
        after: Option<String>,
    },
    /// Take a join token back.
    RevokeToken {
        /// Its id in hex.
        id: String,
    },
    /// List the members, after this one.
    ListMembers {
        /// Its id in hex.
        after: Option<String>,
    },
    /// Revoke a member.
    RevokeMember {
        /// Its id in hex.
        node: String,
    },
    /// Give the fleet new keys.
    RotateKeys {
        /// The root key in hex.
        root: RootKey,
    },
    /// Make a user, or give one other rights and another password.
    PutUser {
        /// Its name.
        name: String,
        /// What it may do.
        grants: Grants,
    },
    /// List the users.
    ListUsers,
    /// Remove a user.
    RemoveUser {
        /// Its name.
        name: String,
    },
}

/// A root key in hex. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootKey(pub String);

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootKey(hidden)")
    }
}

/// Labels as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelTexts {
    /// The region.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub region: Option<String>,
    /// The zone in it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub zone: Option<String>,
    /// The site in that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub site: Option<String>,
}

impl std::str::FromStr for LabelTexts {
    type Err = String;

    /// Reads `region=eu,zone=a`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut labels = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is no label; write region=eu"))?;
            let label = match name {
                "region" => &mut labels.region,
                "zone" => &mut labels.zone,
                "site" => &mut labels.site,
                _ => return Err(format!("there is no label `{name}`: it is region, zone or site")),
            };
            *label = Some(value.to_owned());
        }
        labels.read().map_err(|error| error.to_string())?;
        Ok(labels)
    }
}

impl LabelTexts {
    fn of(labels: &Labels) -> Self {
        let text = |label: &Option<Label>| label.as_ref().map(|label| label.as_str().to_owned());
        Self { region: text(&labels.region), zone: text(&labels.zone), site: text(&labels.site) }
    }

    /// The labels.
    ///
    /// # Errors
    /// One is none.
    pub fn read(&self) -> Result<Labels, OrderError> {
        let label = |text: &Option<String>| {
            let parsed = text.as_ref().map(|text| text.parse::<Label>()).transpose();
            parsed.map_err(|error| OrderError::Value(format!("{}: {error}", text.as_deref().unwrap_or_default())))
        };
        Ok(Labels { region: label(&self.region)?, zone: label(&self.zone)?, site: label(&self.site)? })
    }
}

fn bytes<const N: usize>(what: &'static str, text: &str) -> Result<[u8; N], OrderError> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text.trim(), &mut bytes)
        .map_err(|_| OrderError::Value(format!("`{text}` is no {what}: it has {} hex digits", 2 * N)))?;
    Ok(bytes)
}

impl Members {
    /// Carries an order out. A list comes as `{items, more}`.
    ///
    /// # Errors
    /// It cannot be.
    pub async fn execute(&self, order: Order) -> Result<Value, OrderError> {
        match order {
            Order::CreateToken { uses, ttl_s, labels } => {
                if uses == 0 || ttl_s == 0 {
                    return Err(OrderError::Value("a join token has at least one use and one second".into()));
                }
                let token = self.create_token(uses, ttl_s, labels.read()?).await?;
                Ok(serde_json::json!({ "token": token.to_string(), "id": token.id().to_string() }))
            }
            Order::ListTokens { after } => {
                let after = after.map(|id| bytes::<16>("token id", &id)).transpose()?;
                self.list(b"t", after, decode::<Token>, token_json).await
            }
            Order::RevokeToken { id } => {
                self.revoke_token(&TokenId(bytes("token id", &id)?)).await?;
                Ok(serde_json::json!({ "id": id }))
            }
            Order::ListMembers { after } => {
                let after = after.map(|id| bytes::<32>("node id", &id)).transpose()?;
                self.list(b"m", after, Member::from_record, member_json).await
            }
            Order::RevokeMember { node } => {
                let member = self.revoke(&NodeId(bytes("node id", &node)?)).await?;
                Ok(member_json(&node, &member))
            }
            Order::RotateKeys { root: RootKey(root) } => {
                let mut key = [0; 32];
                hex::decode_to_slice(root, &mut key)
                    .map_err(|_| OrderError::Value("a root key has 64 hex digits".into()))?;
                let version = self.rotate_keys(&key).await?;
                Ok(serde_json::json!({ "epoch": version.epoch, "counter": version.counter }))
            }
            Order::PutUser { name, grants } => {
                let password = self.users.put(&name, grants).await?;
                Ok(serde_json::json!({ "name": name, "password": password }))
            }
            Order::ListUsers => {
                let users = self.users.list().into_iter();
                let items: Vec<_> =
                    users.map(|(name, grants)| serde_json::json!({ "name": name, "grants": grants })).collect();
                Ok(serde_json::json!({ "items": items, "more": false }))
            }
            Order::RemoveUser { name } => {
                self.users.remove(&name).await?;
                Ok(serde_json::json!({ "name": name }))
            }
        }
    }

    async fn list<T, const N: usize>(
        &self,
        prefix: &[u8],
        after: Option<[u8; N]>,
        read: fn(&[u8]) -> Result<T, StoreError>,
        show: fn(&str, &T) -> Value,
    ) -> Result<Value, OrderError> {
        let after = after.map(|after| [prefix, &after].concat());
        let page = self.store.fleet_records(prefix.to_vec(), after, PAGE).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for (key, value) in &page.items {
            items.push(show(&hex::encode(&key[prefix.len()..]), &read(value)?));
        }
        Ok(serde_json::json!({ "items": items, "more": page.more }))
    }
}

fn token_json(id: &str, token: &Token) -> Value {
    let ended = token.not_after <= unix_seconds();
    let labels = LabelTexts::of(&token.labels);
    serde_json::json!({ "id": id, "uses_left": token.uses_left, "not_after": token.not_after, "ended": ended, "labels": labels })
}

fn member_json(node: &str, member: &Member) -> Value {
    let mut json = serde_json::json!({
        "node": node,
        "labels": LabelTexts::of(&member.labels),
        "serial": format!("{:016x}", member.serial),
        "joined_at": member.joined_at,
        "not_after": member.not_after,
        "revoked_at": member.revoked_at,
    });
    match &member.joined_by {
        JoinedBy::Token(token) => json["token"] = token.to_string().into(),
        JoinedBy::Account(Account { cluster, namespace, name, pod, machine }) => {
            json["kubernetes"] = serde_json::json!({
                "cluster": cluster,
                "service_account": format!("{namespace}/{name}"),
                "pod": pod,
                "machine": machine,
            });
        }
    }
    json
}
