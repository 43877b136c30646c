//! What the seeder lately said of clients: who may read which repository.
//!
//! Clients and credentials are known by a keyed hash alone, under a key that the process makes at its start: nothing here
//! can be used as a password, and nothing is written down.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use shoal_proto::name::Repository;

use crate::upstream::{Credentials, UpstreamError};

/// An answer stands for so long. A client's pull is over by then as a rule; who loses a right keeps it no longer.
pub(super) const FRESH: Duration = Duration::from_secs(30);
/// Answers kept: some for each client and repository. Over this many the oldest go.
const GRANTS_MAX: usize = 4096;

type Key = [u8; 32];

#[derive(Debug, Clone)]
struct Grant {
    /// None: it may read.
    refused: Option<UpstreamError>,
    at: Instant,
}

/// What the seeder lately said.
#[derive(Debug)]
pub(super) struct Grants {
    key: Key,
    table: Mutex<BTreeMap<Key, Grant>>,
}

impl Grants {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the kernel gives random bytes once it has booted");
        Self { key, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Key, Grant>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, repository: &Repository, credentials: &Credentials) -> Key {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(repository.as_str().as_bytes());
        // No name holds a zero byte.
        hasher.update(b"\0").update(credentials.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Takes note of what the seeder answered, if it says anything about rights.
    pub(super) fn note<T>(
        &self,
        repository: &Repository,
        credentials: &Credentials,
        answer: &Result<T, UpstreamError>,
        now: Instant,
    ) {
        let refused = match answer {
            Ok(_) => None,
            Err(error @ UpstreamError::Unauthorized(_)) => Some(error.clone()),
            Err(_) => return,
        };
        let mut table = self.table();
        if table.len() >= GRANTS_MAX {
            let oldest = table.iter().min_by_key(|(_, grant)| grant.at).map(|(key, _)| *key);
            oldest.and_then(|key| table.remove(&key));
        }
        table.insert(self.key(repository, credentials), Grant { refused, at: now });
    }

    /// The seeder's answer, if it was given just now.
    pub(super) fn fresh(
        &self,
        repository: &Repository,
        credentials: &Credentials,
        now: Instant,
    ) -> Option<Result<(), UpstreamError>> {
        let grant = self.table().get(&self.key(repository, credentials)).cloned()?;
        (now.duration_since(grant.at) < FRESH).then(|| grant.refused.map_or(Ok(()), Err))
    }

    /// Whether the client may go on while the seeder cannot be asked: it was let in at most `grace` ago, and not refused
    /// since.
    pub(super) fn without_seeder(
        &self,
        repository: &Repository,
        credentials: &Credentials,
        grace: Duration,
        now: Instant,
    ) -> bool {
        let grant = self.table().get(&self.key(repository, credentials)).cloned();
        grant.is_some_and(|grant| grant.refused.is_none() && now.duration_since(grant.at) < grace)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode, header};

    use super::*;
    use crate::upstream::Challenge;

    fn credentials(text: &'static str) -> Credentials {
        Credentials::of(&HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(text))]))
    }

    fn refused() -> UpstreamError {
        let challenge = Challenge { status: StatusCode::UNAUTHORIZED, www_authenticate: vec![], body: "".into() };
        UpstreamError::Unauthorized(Box::new(challenge))
    }

    #[test]
    fn an_answer_counts_for_one_client_and_one_repository_and_not_for_long() {
        let (grants, now) = (Grants::new(), Instant::now());
        let (a, b): (Repository, Repository) = ("team/a".parse().unwrap(), "team/b".parse().unwrap());
        let (one, two) = (credentials("Basic one"), credentials("Basic two"));
        grants.note(&a, &one, &Ok(()), now);
        grants.note::<()>(&a, &two, &Err(refused()), now);
        assert_eq!(grants.fresh(&a, &one, now), Some(Ok(())));
        assert_eq!(grants.fresh(&a, &two, now), Some(Err(refused())));
        assert_eq!(grants.fresh(&a, &Credentials::none(), now), None);
        assert_eq!(grants.fresh(&b, &one, now), None);
        assert_eq!(grants.fresh(&a, &one, now + FRESH), None);
        let hour = Duration::from_secs(3600);
        assert!(grants.without_seeder(&a, &one, hour, now + FRESH));
        assert!(!grants.without_seeder(&a, &one, hour, now + hour), "bounded");
        assert!(!grants.without_seeder(&a, &one, Duration::ZERO, now), "denied by default");
        assert!(!grants.without_seeder(&a, &two, hour, now) && !grants.without_seeder(&b, &one, hour, now));
        grants.note::<()>(&a, &one, &Err(refused()), now);
        assert!(!grants.without_seeder(&a, &one, hour, now), "a refusal ends it");
    }

    #[test]
    fn answers_do_not_pile_up() {
        let (grants, now) = (Grants::new(), Instant::now());
        for n in 0..GRANTS_MAX + 10 {
            let name: Repository = format!("r{n}").parse().unwrap();
            grants.note(&name, &Credentials::none(), &Ok(()), now);
        }
        assert_eq!(grants.table().len(), GRANTS_MAX);
    }
}
