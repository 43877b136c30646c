//! Hashing what is stored once more. What is not what its digest says is put aside: clients do not find it any more, and
//! the next push of the same content puts it back.

use std::{
    fs::{self, File},
    io::Read as _,
};

use shoal_proto::Digest;

use super::{
    Inner,
    tables::{BlobRecord, Place, Table, decode, digest_key, key_digest, odd_key},
    uploads::sync_dir,
};
use crate::{
    hash::Sha,
    store::{Scrubbed, StoreError},
};

/// Bytes that one step looks at, at least: what stopping waits for.
const STEP_BYTES: u64 = 256 << 20;
/// Blobs that one step looks at, at most.
const STEP_BLOBS: u64 = 1000;
const BUFFER_LEN: usize = 256 << 10;

impl Inner {
    pub(super) fn scrub_after(&self, after: Option<Digest>) -> Result<Scrubbed, StoreError> {
        let from = after.map(|digest| [digest_key(&digest), vec![0]].concat()).unwrap_or_default();
        let mut done = Scrubbed::default();
        for item in self.tables.scan(Table::Blob, b"", &from) {
            let (key, value) = item?;
            let digest = key_digest(&key).ok_or_else(|| odd_key(&key))?;
            // A record that cannot be read is as lost as its content.
            let record = decode::<BlobRecord>(&value).ok();
            let whole = |record: &BlobRecord| self.is_whole(&digest, record);
            if !record.as_ref().is_some_and(whole) && self.put_aside(&digest)? {
                done.damaged.push(digest);
            }
            done.checked += 1;
            done.bytes += record.map_or(0, |record| record.size);
            if done.bytes >= STEP_BYTES || done.checked >= STEP_BLOBS {
                done.last = Some(digest);
                break;
            }
        }
        Ok(done)
    }

    /// Whether every place that content is read from holds the bytes of the digest. One that cannot be read does not.
    fn is_whole(&self, digest: &Digest, record: &BlobRecord) -> bool {
        let key = digest_key(digest);
        let right = |bytes: &[u8]| Sha::of(digest.algorithm(), bytes) == *digest;
        let content = self.tables.get(Table::Content, &key);
        match record.place {
            Place::Table => content.is_ok_and(|content| content.is_some_and(|bytes| right(&bytes))),
            // Pushed as a manifest as well, its bytes are in both places.
            Place::File => {
                content.is_ok_and(|content| content.is_none_or(|bytes| right(&bytes)))
                    && self.hash_file(digest).is_ok_and(|found| found == *digest)
            }
        }
    }

    fn hash_file(&self, digest: &Digest) -> std::io::Result<Digest> {
        let mut file = File::open(self.blob_path(digest))?;
        let mut sha = Sha::new(digest.algorithm());
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(sha.finish()),
                len => sha.update(&buffer[..len]),
            }
        }
    }

    /// Moves damaged content to `quarantine`; false if it was deleted or pushed again meanwhile.
    fn put_aside(&self, digest: &Digest) -> Result<bool, StoreError> {
        let _nobody_relies = self.alone(digest);
        let record = self.blob_record(digest);
        if record.as_ref().is_ok_and(|record| record.as_ref().is_none_or(|record| self.is_whole(digest, record))) {
            return Ok(false);
        }
        let aside = self.dir.join("quarantine").join(digest.to_string().replace(':', "-"));
        let moved = match self.tables.get(Table::Content, &digest_key(digest)) {
            Ok(Some(content)) => fs::write(&aside, content),
            Ok(None) | Err(_) => fs::rename(self.blob_path(digest), &aside),
        };
        match moved {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("put a damaged blob aside")(error));
            }
            _ => sync_dir(&self.dir.join("quarantine"))?,
        }
        self.forget_content(digest)?;
        tracing::error!(%digest, quarantine = %aside.display(), "stored content is damaged; push it again");
        Ok(true)
    }
}
