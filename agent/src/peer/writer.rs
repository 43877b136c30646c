//! The writing side of a connection: control frames first, then pieces, a frame of each in turn.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::net::SendFlags;
use shoal_proto::message::{CloseReason, DATA_HEADER_LEN, Message, Priority, RefuseReason, data_header};
use shoal_transfer::ids::UploadId;
use tokio::{
    io::{AsyncWriteExt, Interest, WriteHalf},
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::TlsStream;

use super::{
    Down, Event, Heard, KEEP_ALIVE, LinkId, Serve, Shared, WRITE_STALL_MAX,
    buffers::Buffer,
    disk::Disk,
    link,
    stride::Stride,
    wire::{Unsent, Wire},
};
use crate::store::InUse;

/// Control frames are gathered up to about this much before they are written.
const BATCH_LEN: usize = 64 << 10;

/// What the writer is told.
#[derive(Debug)]
pub(super) enum Out {
    Message(Box<Message>),
    Serve(Box<Upload>),
    StopServing(UploadId),
    Close(CloseReason),
}

/// A piece on its way out.
#[derive(Debug)]
pub(super) struct Upload {
    upload: UploadId,
    request: u32,
    blob: InUse,
    piece: shoal_proto::layout::PieceIndex,
    /// The next byte, in the blob.
    at: u64,
    end: u64,
    start: u64,
    priority: Priority,
}

impl Upload {
    pub(super) fn new(serve: Serve) -> Self {
        let Serve { upload, request, blob, piece, offset, priority } = serve;
        let range = blob.layout().range(piece);
        let at = (range.start + u64::from(offset)).min(range.end);
        Self { upload, request, blob: blob.guard(), piece, at, end: range.end, start: at, priority }
    }

    /// Bytes of the piece in the next frame, of which none is longer than `stride`.
    fn frame_len(&self, stride: usize) -> usize {
        usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(stride)
    }
}

/// The writing half of a connection.
pub(super) enum Sink {
    Tls(WriteHalf<TlsStream<Wire>>, Unsent),
    Plain(OwnedWriteHalf),
}

/// Writes until the connection ends; says why.
pub(super) async fn run(
    link: LinkId,
    shared: &Arc<Shared>,
    weight: &Arc<AtomicUsize>,
    mut queue: mpsc::Receiver<Out>,
    sink: Sink,
) -> Down {
    let (control, uploads, buffer) = (Vec::new(), VecDeque::new(), None);
    let mut writer = Writer { link, shared, weight, sink, stride: Stride::default(), control, uploads, buffer };
    if let Err(error) = writer.sink.limit_unsent(writer.stride.len()) {
        return error.into();
    }
    loop {
        let result = writer.turn(&mut queue).await;
        if let Err(down) = result {
            return down;
        }
    }
}

struct Writer<'a> {
    link: LinkId,
    shared: &'a Arc<Shared>,
    weight: &'a Arc<AtomicUsize>,
    sink: Sink,
    stride: Stride,
    control: Vec<u8>,
    /// Served in turn, the most urgent ones before all others. Bounded by the loop's upload slots.
    uploads: VecDeque<Upload>,
    /// For frames that pass through user space; nothing while none do.
    buffer: Option<Buffer>,
}

impl Writer<'_> {
    /// Takes what waits, writes control frames, then one data frame; waits if there is nothing.
    async fn turn(&mut self, queue: &mut mpsc::Receiver<Out>) -> Result<(), Down> {
        if self.uploads.is_empty() {
            self.buffer = None;
            match timeout(KEEP_ALIVE, queue.recv()).await {
                Ok(Some(out)) => self.take(out).await?,
                Ok(None) => return Err(Down::Here(CloseReason::Shutdown)),
                Err(_) => self.control = Message::Signed(Vec::new()).to_frame(),
            }
        }
        while self.control.len() < BATCH_LEN {
            match queue.try_recv() {
                Ok(out) => self.take(out).await?,
                Err(_) => break,
            }
        }
        self.control().await?;
        if self.shared.upload.is_capped()
            && let Some(upload) = self.best_upload().map(|at| &self.uploads[at])
        {
            self.shared.upload.turn(upload.frame_len(self.stride.len())).await;
            // What was said meanwhile may take the upload back.
            while self.control.len() < BATCH_LEN
                && let Ok(out) = queue.try_recv()
            {
                self.take(out).await?;
            }
            self.control().await?;
        }
        match self.best_upload().and_then(|at| self.uploads.remove(at)) {
            Some(upload) => self.data(upload).await,
            None => Ok(()),
        }
    }

    /// Writes the control frames that wait.
    async fn control(&mut self) -> Result<(), Down> {
        if !self.control.is_empty() {
            let control = std::mem::take(&mut self.control);
            stalled(self.sink.write(&control)).await?;
        }
        Ok(())
    }

    async fn take(&mut self, out: Out) -> Result<(), Down> {
        match out {
            Out::Message(message) => {
                self.weight.fetch_sub(link::weight(&message), Ordering::Relaxed);
                self.control.extend_from_slice(&message.to_frame());
            }
            Out::Serve(upload) => self.uploads.push_back(*upload),
            Out::StopServing(id) => {
                if let Some(at) = self.uploads.iter().position(|upload| upload.upload == id)
                    && let Some(upload) = self.uploads.remove(at)
                {
                    self.ended(&upload).await?;
                }
            }
            Out::Close(reason) => {
                self.control.extend_from_slice(&Message::Close { reason }.to_frame());
                let control = std::mem::take(&mut self.control);
                stalled(self.sink.write(&control)).await?;
                let _ = self.sink.shutdown().await;
                return Err(Down::Here(reason));
            }
        }
        Ok(())
    }

    /// Where the most urgent upload stands, and among equals the one that waited longest.
    fn best_upload(&self) -> Option<usize> {
        self.uploads.iter().enumerate().min_by_key(|(at, upload)| (upload.priority, *at)).map(|(at, _)| at)
    }

    /// One frame of an upload.
    async fn data(&mut self, mut upload: Upload) -> Result<(), Down> {
        let len = upload.frame_len(self.stride.len());
        let blob = upload.blob.blob();
        // Only what is verified ever leaves: a check of the disk may have taken the piece back meanwhile.
        if len > 0 && blob.has(upload.piece) {
            let (file, begun) = (blob.file().clone(), Instant::now());
            let sent = match &self.sink {
                Sink::Tls(..) => self.copied(&file, &upload, len).await,
                Sink::Plain(_) => {
                    let disk = &self.shared.disk;
                    self.sink.send_file(disk, &file, upload.request, upload.at, len).await.map(|()| true)
                }
            };
            if sent? {
                if self.stride.took(len, begun.elapsed()) {
                    self.sink.limit_unsent(self.stride.len())?;
                }
                upload.at += len as u64;
                self.shared.counters.add_sent(len as u64);
                if upload.at < upload.end {
                    self.uploads.push_back(upload);
                    return Ok(());
                }
                return self.ended(&upload).await;
            }
        }
        if upload.at < upload.end {
            let refusal = Message::Refuse { id: upload.request, reason: RefuseReason::Failed };
            self.control.extend_from_slice(&refusal.to_frame());
        }
        self.ended(&upload).await
    }

    /// Reads a frame's bytes and writes them; false if the file fails.
    async fn copied(&mut self, file: &std::fs::File, upload: &Upload, len: usize) -> Result<bool, Down> {
        let buffer = self.buffer.get_or_insert_with(|| self.shared.buffers.take());
        let (header, body) = buffer.split_at_mut(DATA_HEADER_LEN);
        header.copy_from_slice(&data_header(upload.request, len));
        if let Err(error) = self.shared.disk.read(file, &mut body[..len], upload.at).await {
            tracing::error!(%error, digest = %upload.blob.blob().digest(), "a stored piece cannot be read");
            return Ok(false);
        }
        stalled(self.sink.write(&buffer[..DATA_HEADER_LEN + len])).await?;
        Ok(true)
    }

    async fn ended(&self, upload: &Upload) -> Result<(), Down> {
        let heard = Heard::UploadEnded { upload: upload.upload, bytes: upload.at - upload.start };
        let event = Event::Heard { link: self.link, heard };
        self.shared.events.send(event).await.map_err(|_| Down::Here(CloseReason::Shutdown))
    }
}

/// Limits the time that one write may take.
async fn stalled(write: impl Future<Output = io::Result<()>>) -> Result<(), Down> {
    within(WRITE_STALL_MAX, write).await
}

async fn within(limit: Duration, write: impl Future<Output = io::Result<()>>) -> Result<(), Down> {
    match timeout(limit, write).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Down::Stalled("takes nothing")),
    }
}

impl Sink {
    /// Limits what the kernel takes ahead of the network. What lies there can be neither overtaken nor taken back, and
    /// counts as sent: as a kernel would have it, a few MiB.
    fn limit_unsent(&self, bytes: usize) -> io::Result<()> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self {
            Self::Tls(_, unsent) => unsent.set(bytes),
            Self::Plain(stream) => socket2::SockRef::from(stream.as_ref()).set_tcp_notsent_lowat(bytes)?,
        }
        Ok(())
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tls(stream, _) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
            Self::Plain(stream) => stream.write_all(bytes).await,
        }
    }

    pub(super) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(stream, _) => stream.shutdown().await,
            Self::Plain(stream) => stream.shutdown().await,
        }
    }

    /// A data frame whose bytes go from the file to the socket within the kernel. Mode `plain` only.
    async fn send_file(
        &self,
        disk: &Disk,
        file: &std::fs::File,
        request: u32,
        at: u64,
        len: usize,
    ) -> Result<(), Down> {
        let Self::Plain(stream) = self else { return Err(Down::Here(CloseReason::Protocol)) };
        let stream = stream.as_ref();
        let header = data_header(request, len);
        let mut sent = 0;
        while sent < header.len() {
            within(WRITE_STALL_MAX, stream.writable()).await?;
            // `MORE` puts the header into one segment with the bytes that follow.
            let send = || rustix::net::send(stream, &header[sent..], SendFlags::MORE | SendFlags::NOSIGNAL);
            sent += tried(stream, send)?.unwrap_or(0);
        }
        let mut left = len;
        while left > 0 {
            within(WRITE_STALL_MAX, stream.writable()).await?;
            let mut offset = at + (len - left) as u64;
            let ready = disk.ready(file, offset, left).await?;
            let send = || disk.carry_out(&ready, || rustix::fs::sendfile(stream, file, Some(&mut offset), left));
            match tried(stream, send)? {
                Some(0) => return Err(Down::Io(io::Error::other("a stored piece's file is too short"))),
                moved => left -= moved.unwrap_or(0),
            }
        }
        Ok(())
    }
}

/// One system call on a socket that takes bytes; `None` if it took none after all.
fn tried(stream: &TcpStream, call: impl FnOnce() -> rustix::io::Result<usize>) -> Result<Option<usize>, Down> {
    match stream.try_io(Interest::WRITABLE, || call().map_err(io::Error::from)) {
        Ok(done) => Ok(Some(done)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
