//! What repositories hold, counted against their quotas.
//!
//! **The count is what the records say.** Content counts for a quota when its record is there and `holder.1` names one of
//! the quota's repositories, whichever and however many. When the store opens, one walk over the holders adds it up, so
//! nothing is kept that could be wrong after a crash, and a quota may be changed at any time.
//!
//! **While a record changes.** Whoever adds or removes a holder of content *enters* before the change and leaves after
//! it is durable. The first who enters looks whether the content counts; one who adds what does not count yet has it counted,
//! or is refused; the last who leaves looks again and sets the count right, whatever became of the changes. So two
//! that push the same content at once pay once, and one that fails pays nothing.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use shoal_proto::{Digest, name::Repository};

use super::{
    Inner,
    session::Session,
    tables::{BlobRecord, Table, decode, holder_key, key_digest, odd_key, split_repository},
};
use crate::{
    quota::{Exceeded, Measure, QUOTAS_MAX, Quota, Usage},
    store::StoreError,
};

#[cfg(test)]
mod tests;

/// Which quotas: one bit for each.
pub(super) type Mask = u64;
const _: () = assert!(QUOTAS_MAX <= Mask::BITS as usize);

/// All quotas of a store.
#[derive(Debug)]
pub(super) struct Quotas(Vec<Rule>);

/// A quota and its count.
#[derive(Debug)]
struct Rule {
    quota: Quota,
    count: Mutex<Count>,
}

#[derive(Debug, Default)]
struct Count {
    bytes: u64,
    tags: u64,
    /// Content whose holders are being changed.
    changing: HashMap<Digest, Change>,
}

/// Content whose holders are being changed.
#[derive(Debug)]
struct Change {
    /// By how many.
    by: usize,
    size: u64,
    counted: bool,
}

impl Rule {
    fn count(&self) -> MutexGuard<'_, Count> {
        self.count.lock().expect("nobody panics while holding a quota")
    }

    fn exceeded(&self, measure: Measure, limit: u64, used: u64, more: u64) -> StoreError {
        let repositories = self.quota.repositories.to_string();
        StoreError::Quota(Exceeded { repositories, measure, limit, used, more })
    }
}

/// The numbers of the quotas in `mask`.
fn each(mask: Mask) -> impl Iterator<Item = usize> {
    (0..QUOTAS_MAX).filter(move |at| mask >> at & 1 == 1)
}

impl Quotas {
    /// The first [`QUOTAS_MAX`] of `quotas`, with nothing counted yet.
    pub(super) fn new(quotas: Vec<Quota>) -> Self {
        Self(quotas.into_iter().take(QUOTAS_MAX).map(|quota| Rule { quota, count: Mutex::default() }).collect())
    }

    /// Those of a repository.
    pub(super) fn of(&self, repository: &Repository) -> Mask {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, rule)| rule.quota.holds(repository))
            .fold(0, |mask, (at, _)| mask | 1 << at)
    }

    pub(super) fn usage(&self) -> Vec<Usage> {
        let usage = |rule: &Rule| {
            let count = rule.count();
            Usage { quota: rule.quota.clone(), used_bytes: count.bytes, used_tags: count.tags }
        };
        self.0.iter().map(usage).collect()
    }
}

/// A change of the holders of content: the counts are right when it is dropped, after the change.
#[derive(Debug)]
#[must_use = "the count is set right when it is dropped"]
pub(super) struct Charge<'a> {
    inner: &'a Inner,
    digest: Digest,
    mask: Mask,
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        for at in each(self.mask) {
            self.inner.leave(at, &self.digest);
        }
    }
}

/// Tags that are about to be there: not counted any more when it is dropped, unless they were kept.
#[derive(Debug)]
#[must_use = "the tags do not count when it is dropped"]
pub(super) struct NewTags<'a> {
    quotas: &'a Quotas,
    mask: Mask,
    tags: u64,
}

impl NewTags<'_> {
    /// The tags are there.
    pub(super) fn keep(mut self) {
        self.mask = 0;
    }
}

impl Drop for NewTags<'_> {
    fn drop(&mut self) {
        self.quotas.remove_tags(self.mask, self.tags);
    }
}

impl Quotas {
    /// Counts so many tags more of a repository, if all its quotas leave room.
    pub(super) fn add_tags(&self, repository: &Repository, tags: u64) -> Result<NewTags<'_>, StoreError> {
        let mut new = NewTags { quotas: self, mask: 0, tags };
        for at in each(if tags == 0 { 0 } else { self.of(repository) }) {
            let rule = &self.0[at];
            let mut count = rule.count();
            if let Some(limit) = rule.quota.tags.filter(|limit| count.tags.saturating_add(tags) > *limit) {
                let used = count.tags;
                drop(count);
                return Err(rule.exceeded(Measure::Tags, limit, used, tags));
            }
            count.tags += tags;
            new.mask |= 1 << at;
        }
        Ok(new)
    }

    /// So many tags of the repositories of these quotas are gone.
    pub(super) fn remove_tags(&self, mask: Mask, tags: u64) {
        for at in each(mask) {
            let mut count = self.0[at].count();
            count.tags = count.tags.saturating_sub(tags);
        }
    }
}

impl Inner {
    /// Begins to make `repository` a holder of content of that size.
    ///
    /// # Errors
    /// A quota leaves too little room for it.
    pub(super) fn charge(&self, repository: &Repository, digest: &Digest, size: u64) -> Result<Charge<'_>, StoreError> {
        self.enter(self.quotas.of(repository), digest, Some(size))
    }

    /// Begins to change who holds content, so that there are no more holders afterwards than before.
    pub(super) fn discharge(&self, repository: &Repository, digest: &Digest) -> Result<Charge<'_>, StoreError> {
        self.enter(self.quotas.of(repository), digest, None)
    }

    /// Begins to change content itself, for all that hold it.
    pub(super) fn discharge_all(&self, digest: &Digest) -> Result<Charge<'_>, StoreError> {
        let all = (0..self.quotas.0.len()).fold(0, |mask, at| mask | 1 << at);
        self.enter(all, digest, None)
    }

    fn enter(&self, mask: Mask, digest: &Digest, adds: Option<u64>) -> Result<Charge<'_>, StoreError> {
        let mut charge = Charge { inner: self, digest: *digest, mask: 0 };
        for at in each(mask) {
            let rule = &self.quotas.0[at];
            let mut count = rule.count();
            let Count { bytes, changing, .. } = &mut *count;
            if !changing.contains_key(digest) {
                let size = self.blob_record(digest)?.map(|record| record.size);
                let counted = size.is_some() && self.is_held_by(&rule.quota, digest)?;
                changing.insert(*digest, Change { by: 0, size: size.or(adds).unwrap_or(0), counted });
            }
            let change = changing.get_mut(digest).expect("it is there by now");
            change.by += 1;
            charge.mask |= 1 << at;
            if adds.is_some() && !change.counted {
                let limit = rule.quota.bytes.unwrap_or(u64::MAX);
                let (used, more) = (*bytes, change.size);
                if used.saturating_add(more) > limit {
                    drop(count);
                    return Err(rule.exceeded(Measure::Bytes, limit, used, more));
                }
                change.counted = true;
                *bytes += more;
            }
        }
        Ok(charge)
    }

    fn leave(&self, at: usize, digest: &Digest) {
        let rule = &self.quotas.0[at];
        let mut count = rule.count();
        let Count { bytes, changing, .. } = &mut *count;
        let change = changing.get_mut(digest).expect("whoever leaves has entered");
        change.by -= 1;
        if change.by > 0 {
            return;
        }
        let Change { size, counted, .. } = changing.remove(digest).expect("it was there a moment ago");
        let now =
            self.blob_record(digest).and_then(|there| Ok(there.is_some() && self.is_held_by(&rule.quota, digest)?));
        match now {
            Ok(true) if !counted => *bytes += size,
            Ok(false) if counted => *bytes = bytes.saturating_sub(size),
            Ok(_) => {}
            Err(error) => tracing::error!(%digest, %error, "a quota may be wrong until the seeder is started again"),
        }
    }

    /// Whether one of a quota's repositories holds content, as a blob or as a manifest.
    fn is_held_by(&self, quota: &Quota, digest: &Digest) -> Result<bool, StoreError> {
        for kind in [Table::Link, Table::Manifest] {
            let (name, all_below) = quota.repositories.parts();
            let key = holder_key(digest, kind, name);
            let held = match all_below {
                true => self.tables.scan(Table::Holder, &key, &key).next().transpose()?.is_some(),
                false => self.tables.has(Table::Holder, &key)?,
            };
            if held {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Refuses bytes for an upload that would be longer than a quota of its repository allows in all. Whether a shorter one
    /// fits is seen when it is whole: others may hold its content.
    pub(super) fn check_length(&self, session: &Session, more: u64) -> Result<(), StoreError> {
        for at in each(self.quotas.of(&session.by.repository)) {
            let rule = &self.quotas.0[at];
            let len = session.len()?.saturating_add(more);
            if let Some(limit) = rule.quota.bytes.filter(|limit| len > *limit) {
                let used = rule.count().bytes;
                return Err(rule.exceeded(Measure::Bytes, limit, used, len));
            }
        }
        Ok(())
    }

    /// Counts everything: when the store opens.
    pub(super) fn count_quotas(&self) -> Result<(), StoreError> {
        if self.quotas.0.is_empty() {
            return Ok(());
        }
        let mut sizes = self.tables.scan(Table::Blob, b"", b"").peekable();
        let mut current: (Vec<u8>, Mask) = (Vec::new(), 0);
        let mut settle = |key: &[u8], mask: Mask| -> Result<(), StoreError> {
            while let Some(item) = sizes.next_if(|item| item.as_ref().map_or(true, |(at, _)| **at <= *key)) {
                let (at, value) = item?;
                if *at == *key {
                    let record: BlobRecord = decode(&value).map_err(StoreError::failed("understand a record"))?;
                    each(mask).for_each(|at| self.quotas.0[at].count().bytes += record.size);
                }
            }
            Ok(())
        };
        for item in self.tables.scan(Table::Holder, b"", b"") {
            let (key, _) = item?;
            let (digest, repository) = split_holder(&key).ok_or_else(|| odd_key(&key))?;
            if digest != current.0 {
                settle(&current.0, current.1)?;
                current = (digest.to_vec(), 0);
            }
            current.1 |= self.quotas.of(&repository);
        }
        settle(&current.0, current.1)?;
        for item in self.tables.scan(Table::Tag, b"", b"") {
            let (key, _) = item?;
            let (repository, _) = split_repository(&key).ok_or_else(|| odd_key(&key))?;
            each(self.quotas.of(&repository)).for_each(|at| self.quotas.0[at].count().tags += 1);
        }
        Ok(())
    }
}

/// The digest as a key, and the repository, of a key of `holder.1`.
fn split_holder(key: &[u8]) -> Option<(&[u8], Repository)> {
    let len = match key.first()? {
        0 => 33,
        _ => 65,
    };
    let (digest, rest) = key.split_at_checked(len)?;
    key_digest(digest)?;
    let name = std::str::from_utf8(rest.get(1..)?).ok()?;
    Some((digest, name.parse().ok()?))
}
