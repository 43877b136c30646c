//! Tokens (Bearer) of clients: short-lived, and good for as much as whoever asked for them with a password, or with none.
//!
//! A client that is turned away is told where it gets one. So anonymous clients and users get on beside one another, which
//! by passwords alone they do not: whoever has none would give up at the challenge. A token says who, and nothing of what
//! that user may do: this is looked up at every request. Nothing of it is stored.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bincode::{Decode, Encode};
use shoal_proto::{codec, signed::UnixSeconds};

/// For how long a token is good: longer than a layer takes on a slow line, since clients ask for another only between two.
pub const TOKEN_S: u64 = 900;
/// Longest token in bytes.
const TOKEN_LEN_MAX: usize = 256;
const MAC_LEN: usize = 32;

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Token {
    /// None: whoever shows nothing.
    user: Option<String>,
    until: UnixSeconds,
}

/// Makes tokens, and knows its own.
pub(super) struct Tokens {
    key: [u8; 32],
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(hidden)")
    }
}

impl Tokens {
    pub(super) const fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// A token for `user`, whose password has this hash.
    pub(super) fn issue(&self, user: Option<&str>, password: Option<&[u8; 32]>, now: UnixSeconds) -> String {
        let token = codec::encode(&Token { user: user.map(str::to_owned), until: now.saturating_add(TOKEN_S) });
        let mac = self.mac(&token, password);
        URL_SAFE_NO_PAD.encode([token.as_slice(), mac.as_bytes()].concat())
    }

    /// For whom a token was made; none where it is not one, has ended, or the user has another password since. `password`
    /// gives the hash of a user's.
    pub(super) fn read(
        &self,
        text: &[u8],
        now: UnixSeconds,
        password: impl FnOnce(&str) -> Option<[u8; 32]>,
    ) -> Option<Option<String>> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (signed, mac) = bytes.split_last_chunk::<MAC_LEN>()?;
        let token = codec::decode::<Token, TOKEN_LEN_MAX>(signed).ok()?;
        let password = match &token.user {
            None => None,
            Some(user) => Some(password(user)?),
        };
        // Compared in the same time whatever they hold.
        let holds = self.mac(signed, password.as_ref()) == blake3::Hash::from_bytes(*mac);
        (holds && now < token.until).then_some(token.user)
    }

    fn mac(&self, token: &[u8], password: Option<&[u8; 32]>) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(token);
        if let Some(password) = password {
            hasher.update(password);
        }
        hasher.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_user_in_its_time_and_under_its_password() {
        let (tokens, others) = (Tokens::new([1; 32]), Tokens::new([2; 32]));
        let known = |name: &str| (name == "ci").then_some([7; 32]);
        let token = tokens.issue(Some("ci"), Some(&[7; 32]), 100);
        let read = |tokens: &Tokens, token: &str, now| tokens.read(token.as_bytes(), now, known);
        assert_eq!(read(&tokens, &token, 100), Some(Some("ci".into())));
        assert_eq!(read(&tokens, &token, 100 + TOKEN_S), None, "it has ended");
        assert_eq!(read(&others, &token, 100), None, "another seeder's");
        assert_eq!(tokens.read(token.as_bytes(), 100, |_| Some([8; 32])), None, "another password since");
        assert_eq!(tokens.read(token.as_bytes(), 100, |_| None), None, "the user is gone");
        let anonymous = tokens.issue(None, None, 100);
        assert_eq!(read(&tokens, &anonymous, 100), Some(None));
        let ended = tokens.issue(Some("ci"), Some(&[7; 32]), 0);
        for bad in ["", "x", &token[1..], &token[..token.len() - 2], &format!("{token}AA"), &ended] {
            assert_eq!(read(&tokens, bad, TOKEN_S), None, "{bad}");
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            assert_eq!(read(&tokens, &URL_SAFE_NO_PAD.encode(&bytes), 100), None, "byte {at}");
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn fuzz_client_token() {
        crate::mutate::fuzz(
            "client_token",
            std::path::Path::new("fuzz/corpus/client_token"),
            &[Tokens::new([1; 32]).issue(Some("ci"), Some(&[7; 32]), 100).into_bytes()],
            |data| {
                if let Some(user) = Tokens::new([1; 32]).read(data, 100, |_| Some([7; 32])) {
                    assert_eq!(user.as_deref(), Some("ci"), "it was forged");
                }
            },
        );
    }
}
