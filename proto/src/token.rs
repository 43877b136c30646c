//! Join tokens: what a node is given so that it may become a member, once or a few times.
//!
//! A token carries the fleet's root key, so that the node knows whom it joins before it sends anything, and a secret. The
//! secret never travels: a join shows the token's id and a MAC over the join itself, which is of no use to another node.

use std::{fmt, str::FromStr};

use bincode::{Decode, Encode};

use crate::{
    api::{TokenId, TokenShown, join_bytes},
    signed::{NodeId, UnixSeconds},
};

/// What every token begins with.
const PREFIX: &str = "shoal-join-";
const SECRET_LEN: usize = 16;
const ID_CONTEXT: &str = "shoal 2026 join token id";
const KEY_CONTEXT: &str = "shoal 2026 join token key";

/// A join token: `shoal-join-`, then root key and secret in hex. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The root key of the fleet that it joins.
    pub root: [u8; 32],
    secret: [u8; SECRET_LEN],
}

/// A text that is no join token. It is not repeated: it may be a mistyped one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token; `shoal-seeder join-token create` prints one")]
pub struct TokenError;

/// What checks that somebody knows a token's secret.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct TokenKey([u8; 32]);

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(hidden)")
    }
}

impl JoinToken {
    /// A token of the fleet with this root key. `secret` must be random.
    #[must_use]
    pub const fn new(root: [u8; 32], secret: [u8; SECRET_LEN]) -> Self {
        Self { root, secret }
    }

    /// Its name at the seeder.
    #[must_use]
    pub fn id(&self) -> TokenId {
        let hash = blake3::derive_key(ID_CONTEXT, &self.secret);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        TokenId(id)
    }

    /// What the seeder keeps of it.
    #[must_use]
    pub fn key(&self) -> TokenKey {
        TokenKey(blake3::derive_key(KEY_CONTEXT, &self.secret))
    }

    /// The token as `node` shows it in a join that it signs at `time`.
    #[must_use]
    pub fn show(&self, node: &NodeId, time: UnixSeconds) -> TokenShown {
        let mac = blake3::keyed_hash(&self.key().0, &join_bytes(&self.root, node, time));
        TokenShown { id: self.id(), mac: *mac.as_bytes() }
    }
}

impl TokenKey {
    /// Whether `shown` was made with the token's secret for this join. Takes the same time whatever the answer.
    #[must_use]
    pub fn holds(&self, shown: &TokenShown, root: &[u8; 32], node: &NodeId, time: UnixSeconds) -> bool {
        blake3::keyed_hash(&self.0, &join_bytes(root, node, time)) == blake3::Hash::from_bytes(shown.mac)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{}", hex::encode(self.root), hex::encode(self.secret))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id())
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TokenError)?;
        let mut bytes = [0; 32 + SECRET_LEN];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| TokenError)?;
        let (mut root, mut secret) = ([0; 32], [0; SECRET_LEN]);
        root.copy_from_slice(&bytes[..32]);
        secret.copy_from_slice(&bytes[32..]);
        Ok(Self { root, secret })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_shown_is_good_for_one_node_and_one_moment() {
        let token = JoinToken::new([1; 32], [2; 16]);
        let (node, other) = (NodeId([3; 32]), NodeId([4; 32]));
        let shown = token.show(&node, 100);
        assert!(token.key().holds(&shown, &[1; 32], &node, 100));
        assert!(!token.key().holds(&shown, &[1; 32], &other, 100));
        assert!(!token.key().holds(&shown, &[1; 32], &node, 101));
        assert!(!token.key().holds(&shown, &[9; 32], &node, 100));
        assert!(!JoinToken::new([1; 32], [5; 16]).key().holds(&shown, &[1; 32], &node, 100));
    }

    #[test]
    fn tokens_are_read_as_they_are_written_and_never_shown() {
        let token = JoinToken::new([1; 32], [0xab; 16]);
        let text = token.to_string();
        assert_eq!(format!("{text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?} {:?}", token.key()).contains("abab"));
        for bad in ["", "shoal-join-", &text[1..], &text[..text.len() - 1], &format!("{text}0"), "shoal-join-zz"] {
            assert_eq!(bad.parse::<JoinToken>(), Err(TokenError));
        }
    }
}
