//! The reading side of a connection: strict about frames, and the place where a piece's bytes become a piece.

use std::{sync::Arc, time::Duration};

use shoal_proto::{
    envelope::EnvelopeError,
    have::{HAVE_BATCH_MAX, Have},
    layout::PIECES_MAX,
    message::{CloseReason, KIND_DATA, KIND_MESSAGE, Message, PEERS_MAX, PROOFS_MAX, PeerInfo},
    signed::Capability,
};
use shoal_transfer::ids::RequestId;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    Down, Event, Heard, LinkId, SILENCE_MAX, Shared,
    frames::{Frames, ReadError, Source},
    greeting::tidy,
    piece::{After, Receipts, Verdict, Whole},
};
use crate::store::{FinishError, WriteError};

/// The core is told of a piece's progress at most this often: enough to see a slow peer, cheap at full speed.
const PROGRESS_STEP: u64 = 256 << 10;
/// On a slow link so much counts as progress, once a [`PROGRESS_PAUSE`]. A byte a second does not: who sends less than
/// this loses the piece to another.
const PROGRESS_LEAST: u64 = 16 << 10;
/// See [`PROGRESS_LEAST`].
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);
/// Envelopes in one frame: what is passed on is a handful, and each may cost a signature check.
const ENVELOPES_MAX: usize = 64;

/// Reads until the connection ends; says why.
pub(super) async fn run(link: LinkId, shared: &Arc<Shared>, receipts: &Arc<Receipts>, source: Source) -> Down {
    let mut reader = Reader {
        link,
        shared,
        receipts,
        events: &shared.events,
        frames: Frames::new(source, Arc::clone(&shared.buffers)),
        told: None,
    };
    loop {
        match reader.frame().await {
            Ok(()) => {}
            Err(down) => return down,
        }
    }
}

struct Reader<'a> {
    link: LinkId,
    shared: &'a Arc<Shared>,
    receipts: &'a Arc<Receipts>,
    events: &'a mpsc::Sender<Event>,
    frames: Frames,
    told: Option<Told>,
}

/// The request whose progress was told last, the bytes, and when.
struct Told {
    request: RequestId,
    bytes: u64,
    at: Instant,
}

impl From<ReadError> for Down {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => Self::Io(error),
            ReadError::Frame(error) => Self::Protocol(error.to_string()),
        }
    }
}

/// Limits the silence within and between frames.
async fn in_time<T>(future: impl Future<Output = Result<T, ReadError>>, limit: Duration) -> Result<T, Down> {
    match timeout(limit, future).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Down::Stalled("fell silent")),
    }
}

fn violation<T>(what: &str) -> Result<T, Down> {
    Err(Down::Protocol(what.to_owned()))
}

impl Reader<'_> {
    /// Takes one frame. No frame is acted on before it is whole, but for the bytes of pieces.
    async fn frame(&mut self) -> Result<(), Down> {
        if self.receipts.is_idle() {
            self.frames.relax();
        }
        let header = in_time(self.frames.header(), SILENCE_MAX).await?;
        match header.kind {
            KIND_DATA => self.data(header.body_len).await,
            KIND_MESSAGE => {
                let body = in_time(self.frames.body(header.body_len), SILENCE_MAX).await?;
                match Message::from_body(&body) {
                    Ok(message) => self.message(message).await,
                    Err(error) => violation(&error.to_string()),
                }
            }
            // A word of a later minor version.
            _ => in_time(self.frames.body(header.body_len), SILENCE_MAX).await.map(drop),
        }
    }

    async fn tell(&self, heard: Heard) -> Result<(), Down> {
        let event = Event::Heard { link: self.link, heard };
        // Without the loop there is nobody left to serve.
        self.events.send(event).await.map_err(|_| Down::Here(CloseReason::Shutdown))
    }

    async fn data(&mut self, body_len: usize) -> Result<(), Down> {
        let Some(mut left) = body_len.checked_sub(4).filter(|len| *len > 0) else {
            return violation("a data frame without data");
        };
        let id = in_time(self.frames.id(), SILENCE_MAX).await?;
        if self.receipts.admit(id, left as u64) == Verdict::Unasked {
            return violation("data that was not asked for");
        }
        self.shared.counters.add_received(left as u64);
        self.shared.download.turn(left).await;
        while left > 0 {
            let chunk = in_time(self.frames.chunk(left), SILENCE_MAX).await?;
            left -= chunk.len();
            let Some(mut partial) = self.receipts.take(id) else { continue };
            // Hash and page cache: microseconds as a rule, but a full disk cache makes the write wait.
            let sender = self.receipts.sender();
            let heard = match self.shared.disk.promptly(|| partial.write(chunk, sender)) {
                Ok(()) => {
                    let bytes = partial.written();
                    match self.receipts.put_back(id, partial) {
                        After::More(request) => self.progress(request, bytes),
                        After::Whole(whole) => Some(self.finish(whole)),
                        After::TakenBack(partial) => Some(Heard::Returned(Box::new(partial))),
                    }
                }
                Err(error) => {
                    drop(partial);
                    self.write_failed(id, &error)
                }
            };
            if let Some(heard) = heard {
                self.tell(heard).await?;
            }
        }
        Ok(())
    }

    fn progress(&mut self, request: RequestId, bytes: u64) -> Option<Heard> {
        let now = Instant::now();
        if let Some(told) = self.told.as_ref().filter(|told| told.request == request) {
            let least = if now - told.at >= PROGRESS_PAUSE { PROGRESS_LEAST } else { PROGRESS_STEP };
            if bytes < told.bytes + least {
                return None;
            }
        }
        self.told = Some(Told { request, bytes, at: now });
        Some(Heard::Progress { request, bytes })
    }

    fn finish(&self, whole: Whole) -> Heard {
        let Whole { request, partial } = whole;
        let (digest, piece, bytes) = (*partial.digest(), partial.piece(), partial.written());
        let sole_sender = partial.is_only_from(self.receipts.sender());
        match self.shared.disk.promptly(|| partial.finish()) {
            Ok(_) => Heard::Stored { request, digest, piece, bytes },
            Err(FinishError::Corrupt | FinishError::Short) => Heard::Corrupt { request, digest, piece, sole_sender },
        }
    }

    fn write_failed(&self, id: u32, error: &WriteError) -> Option<Heard> {
        tracing::error!(%error, "a piece cannot be written");
        let (request, digest) = self.receipts.fail(id)?;
        Some(Heard::WriteFailed { request, digest, full: matches!(error, WriteError::DiskFull) })
    }

    async fn message(&mut self, message: Message) -> Result<(), Down> {
        let heard = match message {
            Message::Hello { .. } | Message::Proof { .. } => return violation("a second greeting"),
            Message::Close { reason } => return Err(Down::Closed(reason)),
            Message::Capability { proofs, .. } if proofs.len() > PROOFS_MAX => return violation("too many proofs"),
            Message::Capability { capability, proofs } => {
                match capability.open::<Capability>(&*self.shared.fleet.keys()) {
                    Ok(capability) => Heard::Capability(Box::new(capability), proofs),
                    // A newer key set may know the key; until then the capability counts for nothing.
                    Err(EnvelopeError::Key { .. }) => {
                        self.shared.fleet.unknown_key();
                        return Ok(());
                    }
                    Err(error) => return violation(&error.to_string()),
                }
            }
            Message::Signed(envelopes) if envelopes.is_empty() => return Ok(()),
            Message::Signed(envelopes) if envelopes.len() > ENVELOPES_MAX => return violation("too many envelopes"),
            Message::Signed(envelopes) => Heard::Signed(envelopes),
            Message::Ask { id, question } => Heard::Ask { id, question },
            Message::Tell { id, answer } => Heard::Tell { id, answer },
            Message::Have { have: Have::Added(pieces), .. } if pieces.len() > HAVE_BATCH_MAX => {
                return violation("too many pieces at once");
            }
            Message::Have { have: Have::Set(bytes), .. } if bytes.len() > PIECES_MAX.div_ceil(8) as usize => {
                return violation("a have-set of no blob");
            }
            Message::Have { digest, have } => Heard::Have { digest, have },
            Message::Request { id, digest, piece, offset, priority } => {
                Heard::Request { id, digest, piece, offset, priority }
            }
            Message::Refuse { id, reason } => match self.receipts.refused(id) {
                Some((request, partial)) => {
                    if let Some(partial) = partial {
                        self.tell(Heard::Returned(Box::new(partial))).await?;
                    }
                    Heard::Refused { request, reason }
                }
                None if self.receipts.was_abandoned(id) => return Ok(()),
                None => return violation("a refusal of nothing"),
            },
            Message::Cancel { id } => Heard::Cancel { id },
            Message::Peers { peers, .. } if peers.len() > PEERS_MAX => return violation("too many peers at once"),
            Message::Peers { image, peers } => {
                Heard::Peers { image, peers: peers.into_iter().map(|peer| tidy(peer, None)).collect::<Vec<PeerInfo>>() }
            }
            Message::BadPiece { digest, piece } => Heard::BadPiece { digest, piece },
        };
        self.tell(heard).await
    }
}
