//! A member as it is kept.

use bincode::{Decode, Encode};
use shoal_proto::{
    api::TokenId,
    codec,
    signed::{Labels, UnixSeconds},
};

use super::decode;
use crate::{kubernetes::Account, store::StoreError};

/// What a record begins with. Records of the first format begin with the labels, that is with 0 or 1.
const FORMAT: u8 = 2;

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Member {
    /// Where it stands.
    pub labels: Labels,
    /// Names its memberships in the revocation list.
    pub serial: u64,
    /// By what it joined.
    pub joined_by: JoinedBy,
    /// When it joined.
    pub joined_at: UnixSeconds,
    /// When its last membership ends.
    pub not_after: UnixSeconds,
    /// When it was revoked.
    pub revoked_at: Option<UnixSeconds>,
}

/// By what a member joined.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum JoinedBy {
    /// A join token.
    Token(TokenId),
    /// The word of a Kubernetes cluster.
    Account(Account),
}

/// The first format.
#[derive(Encode, Decode)]
struct First {
    labels: Labels,
    serial: u64,
    token: TokenId,
    joined_at: UnixSeconds,
    not_after: UnixSeconds,
    revoked_at: Option<UnixSeconds>,
}

impl Member {
    /// The member as bytes.
    pub(super) fn to_record(&self) -> Vec<u8> {
        let mut bytes = vec![FORMAT];
        bytes.extend(codec::encode(self));
        bytes
    }

    /// Reads what [`Self::to_record`] has written, now or in the first format.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn from_record(bytes: &[u8]) -> Result<Self, StoreError> {
        if let Some(rest) = bytes.strip_prefix(&[FORMAT]) {
            return decode(rest);
        }
        let First { labels, serial, token, joined_at, not_after, revoked_at } = decode(bytes)?;
        Ok(Self { labels, serial, joined_by: JoinedBy::Token(token), joined_at, not_after, revoked_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_so_is_one_of_the_first_format() {
        for region in [None, "eu".parse().ok()] {
            let labels = Labels { region, ..Labels::default() };
            let token = TokenId([0; 16]);
            let account = Account {
                cluster: "prod".into(),
                namespace: "shoal".into(),
                name: "agent".into(),
                pod: Some("agent-7".into()),
                machine: None,
            };
            let (serial, joined_at, not_after, revoked_at) = (7, 8, 9, Some(10));
            for joined_by in [JoinedBy::Token(token), JoinedBy::Account(account)] {
                let member = Member { labels: labels.clone(), serial, joined_by, joined_at, not_after, revoked_at };
                assert_eq!(Member::from_record(&member.to_record()).unwrap(), member);
            }
            let first = First { labels: labels.clone(), serial, token, joined_at, not_after, revoked_at };
            let member = Member::from_record(&codec::encode(&first)).unwrap();
            assert_eq!((&member.labels, member.serial, &member.joined_by), (&labels, 7, &JoinedBy::Token(token)));
        }
        assert!(Member::from_record(&[]).is_err() && Member::from_record(&[FORMAT]).is_err());
    }
}
