//! Users of the registry: who may read, write and delete which repositories.
//!
//! A user is a name and a password that the seeder makes: 160 random bits, of which a hash is kept, so a slow hash would
//! slow down nobody but the registry. `anonymous` is whoever shows nothing; it has no password, and what it may read is
//! public: peers hand it on, and any member may have it. What nobody was given, nobody may do.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bincode::{Decode, Encode};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use shoal_proto::{codec, name::Repository};

mod tokens;

pub use tokens::TOKEN_S;

use self::tokens::Tokens;
use crate::{
    members::OrderError,
    store::{Store, StoreError, Swap},
    time::unix_seconds,
};

/// The user who shows nothing.
pub const ANONYMOUS: &str = "anonymous";
/// Most users. All of them are held in memory.
const USERS_MAX: usize = 10_000;
/// Longest record.
const RECORD_LEN_MAX: usize = 64 << 10;
/// Most patterns of one user and action.
const PATTERNS_MAX: usize = 256;
const PASSWORD_LEN: usize = 20;
const PASSWORD_CONTEXT: &str = "shoal 2026 user password";

/// Repositories: `team/app` itself, `team/**` all below `team/`, `**` all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Whether `repository` is one of them.
    #[must_use]
    pub fn holds(&self, repository: &Repository) -> bool {
        match self.0.strip_suffix("**") {
            Some(prefix) => repository.as_str().starts_with(prefix),
            None => repository.as_str() == self.0,
        }
    }
}

impl Pattern {
    /// What the names of its repositories begin with, and whether more may follow.
    pub(crate) fn parts(&self) -> (&str, bool) {
        self.0.strip_suffix("**").map_or((self.0.as_str(), false), |prefix| (prefix, true))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.strip_suffix("**") {
            Some("") => return Ok(Self(text.to_owned())),
            Some(prefix) => prefix.strip_suffix('/'),
            None => Some(text),
        };
        let good = name.is_some_and(|name| name.parse::<Repository>().is_ok());
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("`{text}` is no pattern; write team/app, team/** or **"))
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

/// What a user may do. Who may push may pull.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Grants {
    /// Read.
    pub pull: Vec<Pattern>,
    /// Write.
    pub push: Vec<Pattern>,
    /// Delete.
    pub delete: Vec<Pattern>,
}

/// A user as it is kept.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
struct User {
    /// Of the password; none for [`ANONYMOUS`].
    hash: Option<[u8; 32]>,
    grants: Grants,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("grants", &self.grants).finish_non_exhaustive()
    }
}

/// Who sends a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Somebody who showed nothing.
    Anonymous,
    /// A user, by its password.
    User(String),
    /// Somebody who showed what is no user's.
    Wrong,
}

/// The users.
#[derive(Debug)]
pub struct Users {
    store: Arc<dyn Store>,
    table: RwLock<BTreeMap<String, User>>,
    tokens: Tokens,
}

fn key(name: &str) -> Vec<u8> {
    [b"u", name.as_bytes()].concat()
}

fn hash(password: &str) -> [u8; 32] {
    blake3::derive_key(PASSWORD_CONTEXT, password.as_bytes())
}

impl Users {
    /// Takes up what the store holds; tokens are made with `token_key`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn load(store: Arc<dyn Store>, token_key: [u8; 32]) -> Result<Self, StoreError> {
        let page = store.fleet_records(b"u".to_vec(), None, USERS_MAX).await?;
        let mut table = BTreeMap::new();
        for (key, value) in page.items {
            let name = String::from_utf8(key[1..].to_vec()).map_err(StoreError::failed("understand a user"))?;
            let user =
                codec::decode::<User, RECORD_LEN_MAX>(&value).map_err(StoreError::failed("understand a user"))?;
            table.insert(name, user);
        }
        Ok(Self { store, table: RwLock::new(table), tokens: Tokens::new(token_key) })
    }

    /// Makes a user, or gives one other rights and another password; the password, which is shown this once.
    ///
    /// # Errors
    /// The name or the rights cannot be, or the store failed.
    pub async fn put(&self, name: &str, grants: Grants) -> Result<Option<String>, OrderError> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(word) {
            return Err(OrderError::Value(format!("`{name}` is no user's name: it is 1 to 64 of [a-z0-9._-]")));
        }
        if [&grants.pull, &grants.push, &grants.delete].iter().any(|list| list.len() > PATTERNS_MAX) {
            return Err(OrderError::Value(format!("a user has at most {PATTERNS_MAX} patterns of a sort")));
        }
        let mut bytes = [0; PASSWORD_LEN];
        getrandom::fill(&mut bytes).map_err(|_| OrderError::Random)?;
        let password = (name != ANONYMOUS).then(|| hex::encode(bytes));
        let user = User { hash: password.as_deref().map(hash), grants };
        let old = self.store.fleet_record(key(name)).await?;
        if old.is_none() && self.table.read().unwrap_or_else(PoisonError::into_inner).len() >= USERS_MAX {
            return Err(OrderError::Value(format!("there are {USERS_MAX} users, and no more fit")));
        }
        let swap = Swap { key: key(name), old, new: Some(codec::encode(&user)) };
        if !self.store.swap_fleet_records(vec![swap]).await? {
            return Err(OrderError::Busy);
        }
        self.table.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), user);
        Ok(password)
    }

    /// Forgets a user.
    ///
    /// # Errors
    /// There is none of that name, or the store failed.
    pub async fn remove(&self, name: &str) -> Result<(), OrderError> {
        let old = self.store.fleet_record(key(name)).await?.ok_or(OrderError::Unknown("user"))?;
        let swap = Swap { key: key(name), old: Some(old), new: None };
        if !self.store.swap_fleet_records(vec![swap]).await? {
            return Err(OrderError::Busy);
        }
        self.table.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    /// Names and rights.
    #[must_use]
    pub fn list(&self) -> Vec<(String, Grants)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|(name, user)| (name.clone(), user.grants.clone())).collect()
    }

    /// Who sends a request with these headers.
    #[must_use]
    pub fn subject(&self, headers: &HeaderMap) -> Subject {
        let Some(shown) = headers.get(header::AUTHORIZATION) else { return Subject::Anonymous };
        self.bearer(shown.as_bytes())
            .unwrap_or_else(|| self.basic(shown.as_bytes()).map_or(Subject::Wrong, Subject::User))
    }

    /// Whose token it is. None: it is no token at all.
    fn bearer(&self, shown: &[u8]) -> Option<Subject> {
        let (scheme, value) = shown.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let user = self.tokens.read(value.trim_ascii(), unix_seconds(), |name| self.password(name));
        Some(user.map_or(Subject::Wrong, |user| user.map_or(Subject::Anonymous, Subject::User)))
    }

    /// A token for `subject`. None for who shows what is no user's, and for who shows nothing where nothing is public.
    #[must_use]
    pub fn token(&self, subject: &Subject) -> Option<String> {
        match subject {
            Subject::Wrong => None,
            Subject::Anonymous => {
                let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
                table.contains_key(ANONYMOUS).then(|| self.tokens.issue(None, None, unix_seconds()))
            }
            Subject::User(name) => {
                let password = self.password(name)?;
                Some(self.tokens.issue(Some(name), Some(&password), unix_seconds()))
            }
        }
    }

    /// The hash of a user's password.
    fn password(&self, name: &str) -> Option<[u8; 32]> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(name)?.hash
    }

    fn basic(&self, shown: &[u8]) -> Option<String> {
        let (scheme, value) = shown.split_at_checked(6)?;
        if !scheme.eq_ignore_ascii_case(b"basic ") {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(value.trim_ascii()).ok()?).ok()?;
        let (name, password) = decoded.split_once(':')?;
        let known = self.password(name)?;
        // Compared in the same time whatever they hold.
        (blake3::Hash::from_bytes(known) == blake3::Hash::from_bytes(hash(password))).then(|| name.to_owned())
    }

    /// Whether `subject` may do what `of` picks from its rights, to `repository` (none: to all there are).
    #[must_use]
    pub fn may(
        &self,
        subject: &Subject,
        repository: Option<&Repository>,
        of: impl Fn(&Grants) -> Vec<&Pattern>,
    ) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let granted = |name: &str| {
            table.get(name).is_some_and(|user| {
                of(&user.grants).into_iter().any(|pattern| match repository {
                    Some(repository) => pattern.holds(repository),
                    None => pattern.0 == "**",
                })
            })
        };
        match subject {
            Subject::Anonymous => granted(ANONYMOUS),
            Subject::User(name) => granted(name) || granted(ANONYMOUS),
            Subject::Wrong => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::store::local::Local;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shown(name: &str, password: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&value).unwrap())])
    }

    #[test]
    fn a_pattern_holds_what_it_names_and_nothing_beside_it() {
        let holds = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().holds(&name.parse().unwrap());
        assert!(holds("team/app", "team/app") && !holds("team/app", "team/app2") && !holds("team/app", "team/app/x"));
        assert!(holds("team/**", "team/app/x") && !holds("team/**", "team") && !holds("team/**", "team2/app"));
        assert!(holds("**", "anything/at/all"));
        for bad in ["", "*", "team**", "team/*", "/**", "../**", "Team/**", "team//**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_is_known_by_its_password_until_it_is_removed_or_gets_another() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Local::open(dir.path(), 0).unwrap());
        let users = Users::load(store.clone(), [1; 32]).await.unwrap();
        let grants = Grants { push: patterns(&["team/**"]), ..Grants::default() };
        let password = users.put("ci", grants.clone()).await.unwrap().unwrap();
        let ci = Subject::User("ci".into());
        assert_eq!(users.subject(&shown("ci", &password)), ci);
        assert_eq!(users.subject(&HeaderMap::new()), Subject::Anonymous);
        for (name, wrong) in [("ci", ""), ("ci", "x"), ("nobody", &password), (ANONYMOUS, ""), ("", "")] {
            assert_eq!(users.subject(&shown(name, wrong)), Subject::Wrong, "{name}");
        }
        let bearer = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("Bearer x"))]);
        assert_eq!(users.subject(&bearer), Subject::Wrong);
        let team: Repository = "team/app".parse().unwrap();
        fn pushes(grants: &Grants) -> Vec<&Pattern> {
            grants.push.iter().collect()
        }
        assert!(users.may(&ci, Some(&team), pushes) && !users.may(&Subject::Anonymous, Some(&team), pushes));
        assert!(!users.may(&ci, None, pushes) && !users.may(&ci, Some(&"other".parse().unwrap()), pushes));
        let by_token = HeaderMap::from_iter([(
            header::AUTHORIZATION,
            HeaderValue::from_str(&format!("Bearer {}", users.token(&ci).unwrap())).unwrap(),
        )]);
        assert_eq!(users.subject(&by_token), ci);
        assert_eq!((users.token(&Subject::Wrong), users.token(&Subject::Anonymous)), (None, None), "nothing is public");
        let again = Users::load(store, [1; 32]).await.unwrap();
        assert_eq!(again.subject(&by_token), ci);
        assert_eq!(again.subject(&shown("ci", &password)), ci, "a restart forgets nobody");
        let next = again.put("ci", grants).await.unwrap().unwrap();
        assert_eq!(again.subject(&shown("ci", &password)), Subject::Wrong);
        assert_eq!(again.subject(&by_token), Subject::Wrong, "a token goes with its password");
        assert_eq!(again.subject(&shown("ci", &next)), ci);
        again.remove("ci").await.unwrap();
        assert_eq!(again.subject(&shown("ci", &next)), Subject::Wrong);
        assert!(matches!(again.remove("ci").await, Err(OrderError::Unknown(_))));
        assert!(matches!(again.put("../x", Grants::default()).await, Err(OrderError::Value(_))));
        assert_eq!(again.put(ANONYMOUS, Grants::default()).await.unwrap(), None);
    }
}
