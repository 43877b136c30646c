//! A connection that is up: its near end, and its two tasks.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use shoal_proto::{
    layout::PieceIndex,
    message::{Answer, CloseReason, Message, Priority},
    signed::NodeId,
};
use shoal_transfer::ids::{RequestId, UploadId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    CLOSE_TIMEOUT, Down, Event, LinkId, OUTBOX_BYTES_MAX, OUTBOX_MAX, Shared, frames,
    piece::{Partial, Receipts},
    reader,
    writer::{self, Out, Upload},
};
use crate::store::Blob;

/// The two tasks of a connection, seen as one.
pub(super) struct Tasks {
    id: LinkId,
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Out>,
    /// Bytes of answers in the outbox, about.
    weight: Arc<AtomicUsize>,
    receipts: Arc<Receipts>,
    stop: CancellationToken,
}

impl Tasks {
    /// The near end of a new connection, its tasks, and what they are to be given.
    pub(super) fn new(id: LinkId, shared: &Arc<Shared>, node: NodeId) -> (Link, Self, mpsc::Receiver<Out>) {
        let (outbox, queue) = mpsc::channel(OUTBOX_MAX);
        let (receipts, stop) = (Arc::new(Receipts::new(node)), shared.stop.child_token());
        let weight = Arc::new(AtomicUsize::new(0));
        let tasks = Self {
            id,
            shared: shared.clone(),
            outbox: outbox.clone(),
            weight: weight.clone(),
            receipts: receipts.clone(),
            stop: stop.clone(),
        };
        (Link { id, outbox, weight, receipts, stop }, tasks, queue)
    }

    pub(super) async fn run(self, reader: frames::Source, writer: writer::Sink, queue: mpsc::Receiver<Out>) {
        let Self { id, shared, outbox, weight, receipts, stop } = self;
        let events = shared.events.clone();
        let read = reader::run(id, &shared, &receipts, reader);
        let write = writer::run(id, &shared, &weight, queue, writer);
        tokio::pin!(read, write);
        // Whichever ends first says why. When this side ends it, the writer still says goodbye.
        let down = tokio::select! {
            down = &mut read => {
                if matches!(down, Down::Protocol(_)) && outbox.try_send(Out::Close(CloseReason::Protocol)).is_ok() {
                    let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut write).await;
                }
                down
            }
            down = &mut write => down,
            () = stop.cancelled() => {
                let goodbye = tokio::time::timeout(CLOSE_TIMEOUT, &mut write).await;
                goodbye.unwrap_or(Down::Here(CloseReason::Shutdown))
            }
        };
        shared.counters.disconnected(&down);
        let _ = events.send(Event::Down { link: id, down }).await;
    }
}

/// The near end of a connection: what the loop holds.
#[derive(Debug)]
pub struct Link {
    id: LinkId,
    outbox: mpsc::Sender<Out>,
    /// Bytes of answers in the outbox, about.
    weight: Arc<AtomicUsize>,
    receipts: Arc<Receipts>,
    stop: CancellationToken,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The peer lets frames pile up: the connection is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer does not read: {OUTBOX_MAX} frames or {OUTBOX_BYTES_MAX} bytes wait for it")]
pub struct Overflow;

/// A piece to be asked for.
#[derive(Debug)]
pub struct Fetch {
    /// The core's request.
    pub request: RequestId,
    /// Where its bytes go; the request starts where those stop.
    pub partial: Partial,
    /// How urgent.
    pub priority: Priority,
}

/// A piece to be sent.
#[derive(Debug)]
pub struct Serve {
    /// The upload.
    pub upload: UploadId,
    /// The peer's id for its request.
    pub request: u32,
    /// The blob.
    pub blob: Arc<Blob>,
    /// The piece; stored.
    pub piece: PieceIndex,
    /// The first byte of the piece that is wanted.
    pub offset: u32,
    /// How urgent.
    pub priority: Priority,
}

/// What became of a request that was taken back.
#[derive(Debug)]
pub enum TakenBack {
    /// What had come of the piece.
    Partial(Box<Partial>),
    /// Bytes are being written right now; `Returned`, `Stored` or `Corrupt` of [`Heard`](super::Heard) will follow.
    InHand,
    /// It was over.
    Over,
}

impl Link {
    /// Its name.
    #[must_use]
    pub const fn id(&self) -> LinkId {
        self.id
    }

    /// Sends a message.
    ///
    /// # Errors
    /// Too much waits to be sent; close the connection.
    pub fn send(&self, message: Message) -> Result<(), Overflow> {
        let weight = weight(&message);
        if weight > 0 && self.weight.fetch_add(weight, Ordering::Relaxed) + weight > OUTBOX_BYTES_MAX {
            return Err(Overflow);
        }
        self.push(Out::Message(Box::new(message)))
    }

    /// Asks for a piece. What comes of it is told under `fetch.request`.
    ///
    /// # Errors
    /// Too much waits to be sent; close the connection.
    pub fn fetch(&self, fetch: Fetch) -> Result<(), Overflow> {
        let Fetch { request, partial, priority } = fetch;
        let (digest, piece) = (*partial.digest(), partial.piece().get());
        let offset = partial.offset();
        let id = self.receipts.open(request, partial);
        self.send(Message::Request { id, digest, piece, offset, priority })
    }

    /// Takes a request for a piece back.
    ///
    /// # Errors
    /// Too much waits to be sent; close the connection.
    pub fn take_back(&self, request: RequestId) -> Result<TakenBack, Overflow> {
        match self.receipts.take_back(request) {
            None => Ok(TakenBack::Over),
            Some((id, partial)) => {
                self.send(Message::Cancel { id })?;
                Ok(partial.map_or(TakenBack::InHand, |partial| TakenBack::Partial(Box::new(partial))))
            }
        }
    }

    /// Sends a piece. Answered by [`Heard::UploadEnded`](super::Heard::UploadEnded).
    ///
    /// # Errors
    /// Too much waits to be sent; close the connection.
    pub fn serve(&self, serve: Serve) -> Result<(), Overflow> {
        self.push(Out::Serve(Box::new(Upload::new(serve))))
    }

    /// Stops sending a piece. Answered by [`Heard::UploadEnded`](super::Heard::UploadEnded).
    ///
    /// # Errors
    /// Too much waits to be sent; close the connection.
    pub fn stop_serving(&self, upload: UploadId) -> Result<(), Overflow> {
        self.push(Out::StopServing(upload))
    }

    /// Says why, and ends the connection.
    pub fn close(&self, reason: CloseReason) {
        // A full queue means that nobody would read the reason either.
        let _ = self.push(Out::Close(reason));
        self.stop.cancel();
    }

    /// What had come of pieces that were asked for: to be called once the connection is down.
    #[must_use]
    pub fn leftovers(&self) -> Vec<Partial> {
        self.receipts.leftovers()
    }

    fn push(&self, out: Out) -> Result<(), Overflow> {
        match self.outbox.try_send(out) {
            // A connection that is closed says so itself, by its last event.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Overflow),
        }
    }
}

/// The bytes of a message that may be long, about.
pub(super) fn weight(message: &Message) -> usize {
    let Message::Tell { answer, .. } = message else { return 0 };
    match answer {
        Answer::Hashes(hashes) => 32 * hashes.len(),
        Answer::Bundle(bundle) => 4096 + 512 * bundle.statements.len(),
        Answer::Signed(envelopes) => 512 * envelopes.len(),
        Answer::Peers(_) | Answer::Nothing => 0,
    }
}
