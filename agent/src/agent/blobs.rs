//! Blobs that are open: being fetched, or served to peers that spoke of them.
//!
//! A blob is *opening* while its piece hashes are fetched and its file is made; whoever wants it meanwhile waits for the
//! same. It is *open* while the core knows it. A stored blob that nobody talks about is closed: it costs nothing, and is
//! opened again when a peer shows that it may read it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use shoal_proto::{
    Digest, have::Have, layout::Layout, message::Question, name::Repository, signed::Blake3, tree::PieceHashes,
};
use shoal_transfer::{
    event::{Goal, Input},
    ids::{Arena, BlobId, PeerId},
};
use tokio::{sync::oneshot, task::block_in_place, time::Instant};

use super::{Done, Shell};
use crate::{
    handle::{Want, WantError},
    store::{Blob, OpenedStatement, Store},
    upstream::{Credentials, UpstreamError},
};

/// Blobs with less than this many bytes are not announced themselves: who looks for them looks for their image.
pub(super) const SMALL_BLOB_MAX: u64 = 4 << 20;
/// A blob that nobody talks about stays open for so long: peers come and go in bursts.
const BLOB_IDLE_MAX: Duration = Duration::from_secs(60);
/// The seeder is asked for piece hashes first; after this long, connected peers as well.
const HASHES_HEAD_START: Duration = Duration::from_millis(300);
/// How long piece hashes are looked for before whoever wants the blob is told that it cannot be had.
const HASHES_MAX: Duration = Duration::from_secs(20);
/// The same where the seeder answered that it has none: then hardly anybody will.
const HASHES_DENIED_MAX: Duration = Duration::from_secs(2);
/// Peers that are asked for the same piece hashes at once.
const HASHES_ASKED_MAX: usize = 3;

/// A blob that the core knows.
#[derive(Debug)]
pub(super) struct OpenBlob {
    pub(super) blob: Arc<Blob>,
    pub(super) image: Option<Digest>,
    /// Where the seeder has it; unknown for blobs that are only served.
    pub(super) repository: Option<Repository>,
    pub(super) credentials: Credentials,
    pub(super) goal: Goal,
    /// What the seeder said last, for clients that wait in vain.
    pub(super) trouble: Option<String>,
    idle_since: Option<Instant>,
}

/// A blob that is wanted and cannot be read yet.
#[derive(Debug)]
struct Opening {
    want: Wanted,
    replies: Vec<oneshot::Sender<Result<Arc<Blob>, WantError>>>,
    started: Instant,
    /// The seeder's last word, once it has failed.
    failed: Option<Arc<UpstreamError>>,
    /// Peers asked for the hashes.
    asked: BTreeSet<PeerId>,
    waiting_for: usize,
    /// Whether the file is being made.
    making: bool,
}

/// What was wanted of a blob.
#[derive(Debug, Clone)]
struct Wanted {
    image: Digest,
    repository: Repository,
    statement: OpenedStatement,
    background: bool,
    credentials: Credentials,
}

/// How the opening of a blob went on.
#[derive(Debug)]
pub(super) struct Opened {
    digest: Digest,
    result: OpenResult,
}

#[derive(Debug)]
enum OpenResult {
    Blob(Arc<Blob>),
    /// The seeder gave no hashes; peers may.
    NoHashes(Arc<UpstreamError>),
    Failed(WantError),
}

/// The blobs that the core knows. Bounded by those that are stored.
#[derive(Debug, Default)]
pub(super) struct Blobs {
    pub(super) arena: Arena<BlobId, OpenBlob>,
    by_digest: HashMap<Digest, BlobId>,
    opening: BTreeMap<Digest, Opening>,
}

impl Blobs {
    pub(super) fn get(&self, digest: &Digest) -> Option<(BlobId, &OpenBlob)> {
        let id = *self.by_digest.get(digest)?;
        Some((id, self.arena.get(id)?))
    }

    pub(super) fn by_id(&self, blob: BlobId) -> Option<&OpenBlob> {
        self.arena.get(blob)
    }

    /// Open blobs of an image that are not whole.
    pub(super) fn of_image(&self, image: &Digest) -> impl Iterator<Item = BlobId> {
        let image = *image;
        let of = move |open: &OpenBlob| open.image == Some(image) && !open.blob.is_complete();
        self.arena.iter().filter(move |(_, open)| of(open)).map(|(id, _)| id)
    }
}

impl Shell {
    /// A blob is wanted.
    pub(super) fn on_want(&mut self, want: Want) {
        let Want { image, repository, statement, background, credentials, reply } = want;
        let digest = statement.statement.digest;
        let wanted = Wanted { image, repository, statement, background, credentials };
        if let Some(opening) = self.blobs.opening.get_mut(&digest) {
            opening.want.background &= background;
            opening.replies.push(reply);
            return;
        }
        // Cached for what is in use; else one row of the store and an open().
        let held = self.blobs.get(&digest).map(|(_, open)| open.blob.clone());
        let held = held.or_else(|| block_in_place(|| self.store.blob(&digest)));
        if let Some(blob) = held.filter(|blob| !blob.is_gone()) {
            let result = if *blob.statement() == wanted.statement.statement {
                self.fetch_blob(&blob, wanted);
                Ok(blob)
            } else {
                let error = format!("{digest} is held with another BLAKE3 root; remove it and pull again");
                Err(WantError::Store { digest, error, full: false })
            };
            let _ = reply.send(result);
            return;
        }
        let opening = Opening {
            want: wanted.clone(),
            replies: vec![reply],
            started: Instant::now(),
            failed: None,
            asked: BTreeSet::new(),
            waiting_for: 0,
            making: false,
        };
        self.blobs.opening.insert(digest, opening);
        self.ask_seeder_for_hashes(wanted);
    }

    /// Fetches piece hashes from the seeder and makes the blob's file. Bounded by the client's own limits on requests.
    fn ask_seeder_for_hashes(&self, wanted: Wanted) {
        let (upstream, store, done, stop) =
            (self.upstream.clone(), self.store.clone(), self.done.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let Wanted { repository, statement, credentials, .. } = wanted;
            let digest = statement.statement.digest;
            let open = async {
                match upstream.hashes(&repository, &statement.statement, &credentials).await {
                    Ok(hashes) => begin(store, statement, hashes).await,
                    Err(error) => OpenResult::NoHashes(Arc::new(error)),
                }
            };
            let result = tokio::select! {
                () = stop.cancelled() => return,
                result = open => result,
            };
            let _ = done.send(Done::Opened(Box::new(Opened { digest, result }))).await;
        });
    }

    pub(super) fn on_opened(&mut self, opened: Opened) {
        let Opened { digest, result } = opened;
        match result {
            OpenResult::Blob(blob) => {
                let Some(opening) = self.blobs.opening.remove(&digest) else { return };
                self.fetch_blob(&blob, opening.want);
                for reply in opening.replies {
                    let _ = reply.send(Ok(blob.clone()));
                }
            }
            OpenResult::NoHashes(error) => {
                tracing::debug!(%digest, %error, "the seeder gives no piece hashes");
                let Some(opening) = self.blobs.opening.get_mut(&digest) else { return };
                opening.failed = Some(error);
                self.ask_peers_for_hashes(&digest);
            }
            OpenResult::Failed(error) => self.opening_failed(&digest, &error),
        }
    }

    fn opening_failed(&mut self, digest: &Digest, error: &WantError) {
        let Some(opening) = self.blobs.opening.remove(digest) else { return };
        tracing::warn!(%error, "a blob cannot be fetched");
        for reply in opening.replies {
            let _ = reply.send(Err(error.clone()));
        }
    }

    /// Asks connected peers of the image for piece hashes, and dials others.
    fn ask_peers_for_hashes(&mut self, digest: &Digest) {
        let Some(opening) = self.blobs.opening.get(digest) else { return };
        let (image, room) = (opening.want.image, HASHES_ASKED_MAX.saturating_sub(opening.waiting_for));
        let fresh: Vec<PeerId> =
            self.peers.connected().map(|(id, ..)| id).filter(|id| !opening.asked.contains(id)).take(room).collect();
        for peer in &fresh {
            self.show(*peer, &image, digest);
            self.ask(*peer, Question::Hashes(*digest), super::answers::For::Hashes(*digest));
        }
        if let Some(opening) = self.blobs.opening.get_mut(digest) {
            opening.waiting_for += fresh.len();
            opening.asked.extend(fresh);
        }
        let interested: Vec<PeerId> = self
            .images
            .get(&image)
            .map(|image| image.peers.iter().copied().take(HASHES_ASKED_MAX).collect())
            .unwrap_or_default();
        for peer in interested {
            self.dial_once(peer);
        }
        self.find_blob(digest, Some(image));
    }

    /// A peer has answered with piece hashes, or has none.
    pub(super) fn on_hashes(&mut self, digest: &Digest, hashes: Option<Vec<Blake3>>) {
        let Some(opening) = self.blobs.opening.get_mut(digest) else { return };
        opening.waiting_for = opening.waiting_for.saturating_sub(1);
        if opening.making {
            return;
        }
        let statement = opening.want.statement.clone();
        let checked = hashes.and_then(|hashes| {
            let layout = Layout::new(statement.statement.size).ok()?;
            PieceHashes::check(layout, hashes, &statement.statement.root).ok()
        });
        let Some(hashes) = checked else { return self.ask_peers_for_hashes(digest) };
        opening.making = true;
        let (store, done, digest) = (self.store.clone(), self.done.clone(), *digest);
        self.tasks.spawn(async move {
            let result = begin(store, statement, hashes).await;
            let _ = done.send(Done::Opened(Box::new(Opened { digest, result }))).await;
        });
    }

    /// Looks after blobs whose hashes do not come.
    pub(super) fn tick_openings(&mut self, now: Instant) {
        let late = |opening: &Opening| opening.failed.is_some() || now - opening.started >= HASHES_HEAD_START;
        let waiting: Vec<Digest> =
            self.blobs.opening.iter().filter(|(_, o)| !o.making && late(o)).map(|(digest, _)| *digest).collect();
        for digest in waiting {
            let Some(opening) = self.blobs.opening.get(&digest) else { continue };
            match opening.failed.clone() {
                Some(error) if now - opening.started >= patience(&error) => {
                    self.opening_failed(&digest, &WantError::Upstream { digest, error });
                }
                _ => self.ask_peers_for_hashes(&digest),
            }
        }
    }

    /// Makes the core fetch a blob that can be read.
    fn fetch_blob(&mut self, blob: &Arc<Blob>, wanted: Wanted) {
        let Wanted { image, repository, background, credentials, .. } = wanted;
        let goal = Goal::Fetch { background };
        let (layout, have) = (blob.layout(), blob.have());
        let local = have.iter().map(|piece| layout.len_of(piece)).sum();
        self.history.wanted(&image, *blob.digest(), layout.size(), local, Instant::now());
        let open = OpenBlob {
            blob: blob.clone(),
            image: Some(image),
            repository: Some(repository),
            credentials,
            goal,
            trouble: None,
            idle_since: None,
        };
        let known = self.blobs.by_digest.get(blob.digest()).copied();
        if let Some(id) = known
            && let Some(old) = self.blobs.arena.get_mut(id)
        {
            // What a client waits for stays urgent, whoever warms it besides.
            let upgrade = old.goal == Goal::Serve || (old.goal != goal && !background);
            let goal = if upgrade { goal } else { old.goal };
            *old = OpenBlob { goal, ..open };
            if upgrade {
                self.feed(Input::GoalChanged { blob: id, goal });
            }
            return;
        }
        if blob.is_complete() {
            return;
        }
        self.open_blob(open);
    }

    fn open_blob(&mut self, open: OpenBlob) -> BlobId {
        let (blob, image, goal) = (open.blob.clone(), open.image, open.goal);
        let have = blob.have();
        let have = if have.is_complete() { Have::All } else { Have::Set(have.to_bytes()) };
        let id = self.blobs.arena.insert(open);
        self.blobs.by_digest.insert(*blob.digest(), id);
        let introduced: Vec<PeerId> = match image.and_then(|image| self.images.get(&image)) {
            Some(image) if goal != Goal::Serve => image.peers.iter().copied().collect(),
            _ => Vec::new(),
        };
        let layout = blob.layout();
        self.feed(Input::BlobOpened {
            blob: id,
            size: layout.size(),
            piece_len: layout.piece_len(),
            have,
            goal,
            prefix: None,
            introduced: introduced.into(),
        });
        if let Some(image) = image {
            self.tell_candidates(id, &image);
        }
        id
    }

    /// The open blob of that digest; one that is stored is opened to be served.
    pub(super) fn serve_blob(&mut self, digest: &Digest) -> Option<BlobId> {
        if let Some((id, _)) = self.blobs.get(digest) {
            return Some(id);
        }
        self.store.info(digest).filter(|info| info.stored > 0)?;
        let blob = block_in_place(|| self.store.blob(digest))?;
        let image = self.images.of_blob(digest);
        let repository = image.and_then(|image| self.images.get(&image)).map(|image| image.repository.clone());
        let open = OpenBlob {
            blob,
            image,
            repository,
            credentials: Credentials::none(),
            goal: Goal::Serve,
            trouble: None,
            idle_since: None,
        };
        Some(self.open_blob(open))
    }

    /// The core forgets a blob; what is stored stays.
    pub(super) fn close_blob(&mut self, digest: &Digest) {
        if let Some(id) = self.blobs.by_digest.remove(digest) {
            self.blobs.arena.remove(id);
            self.tell_gone(id, digest);
            self.fetches.forget_blob(digest);
            self.readers.forget_blob(id);
            self.feed(Input::BlobClosed { blob: id });
        }
    }

    /// Closes blobs that nobody talks about, and connections that serve nobody.
    pub(super) fn tick_idle(&mut self, now: Instant) {
        let mut closing = Vec::new();
        for (id, open) in self.blobs.arena.iter_mut() {
            if !self.core.is_idle(id) {
                open.idle_since = None;
            } else if now - *open.idle_since.get_or_insert(now) >= BLOB_IDLE_MAX {
                closing.push(*open.blob.digest());
            }
        }
        for digest in closing {
            self.close_blob(&digest);
        }
        self.close_idle_links(now);
    }

    /// The store has let blobs go.
    pub(super) fn on_evicted(&mut self) {
        for digest in self.store.take_evicted() {
            self.close_blob(&digest);
            self.withdraw(&digest);
        }
    }

    /// A peer says that it got a bad piece: what is stored is hashed again, a blob at a time.
    pub(super) fn verify_again(&mut self, digest: &Digest) {
        if self.blobs.get(digest).is_none() || !self.fetches.start_verifying(digest) {
            return;
        }
        let (store, done, digest) = (self.store.clone(), self.done.clone(), *digest);
        self.tasks.spawn_blocking(move || {
            let bad = match store.verify(&digest) {
                Ok(checked) => checked.map_or(0, |checked| checked.bad.len()),
                Err(error) => {
                    tracing::error!(%error, %digest, "a stored blob cannot be verified");
                    0
                }
            };
            let _ = done.blocking_send(Done::Verified { digest, bad });
        });
    }

    pub(super) fn on_verified(&mut self, digest: &Digest, bad: usize) {
        let Some((_, open)) = self.blobs.get(digest).filter(|_| bad > 0) else { return };
        let (blob, image, credentials) = (open.blob.clone(), open.image, open.credentials.clone());
        let repository = open.repository.clone();
        self.close_blob(digest);
        if let (Some(image), Some(repository)) = (image, repository) {
            let statement = blob.signed().clone();
            self.fetch_blob(&blob, Wanted { image, repository, statement, background: true, credentials });
        }
    }
}

/// How long peers are asked for hashes that the seeder did not give.
fn patience(error: &UpstreamError) -> Duration {
    if error.is_unreachable() { HASHES_MAX } else { HASHES_DENIED_MAX }
}

/// Makes the blob's file. Disk and database: on a blocking thread.
async fn begin(store: Store, statement: OpenedStatement, hashes: PieceHashes) -> OpenResult {
    let digest = statement.statement.digest;
    match tokio::task::spawn_blocking(move || store.begin(&statement, hashes)).await {
        Ok(Ok(blob)) => OpenResult::Blob(blob),
        Ok(Err(error)) => {
            OpenResult::Failed(WantError::Store { digest, full: error.is_full(), error: error.to_string() })
        }
        Err(error) => OpenResult::Failed(WantError::Store { digest, full: false, error: error.to_string() }),
    }
}
