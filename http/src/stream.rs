//! A hand-off where the kernel cannot send the file, because its bytes are encrypted on the way: read in chunks, as the
//! client takes them.

use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::stream::try_unfold;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};

use crate::{
    handoff::{BodySource, Handoff, Meter, Segment},
    reply::Body,
};

/// Most bytes that are read of a file at once, and so what a body holds in memory: enough that the call to another thread
/// costs little beside encrypting them, and little with hundreds of bodies at once.
const CHUNK: u64 = 128 << 10;

/// What is left of a body.
struct Rest {
    file: Arc<File>,
    segments: VecDeque<Segment>,
    source: Option<Box<dyn BodySource>>,
    meter: Option<Box<dyn Meter>>,
}

/// The answer of `handoff` with a body that is read as it is asked for. Its meter is told of bytes as they leave the file:
/// ahead of the socket by a chunk and what the connection buffers.
pub(crate) fn streamed(handoff: Handoff) -> Response<Body> {
    let Handoff { head, file, segments, source, meter, .. } = handoff;
    let rest = Rest { file, segments: segments.into(), source, meter };
    let frames = try_unfold(rest, |mut rest| async move {
        match rest.next().await {
            Ok(bytes) => Ok(bytes.map(|bytes| (Frame::data(bytes), rest))),
            Err(error) => {
                tracing::debug!(%error, "a transfer ended early");
                Err(error)
            }
        }
    });
    head.map(|()| StreamBody::new(frames).boxed_unsync())
}

impl Rest {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.segments.front().is_some_and(Segment::is_empty) {
            self.segments.pop_front();
        }
        let (bytes, payload) = match self.segments.front_mut() {
            None => return Ok(None),
            Some(Segment::Bytes(bytes)) => (std::mem::take(bytes), 0),
            Some(Segment::File(range)) => {
                let until = match &mut self.source {
                    None => range.end,
                    Some(source) => source.wait(range.start).await.map_err(io::Error::other)?.min(range.end),
                };
                let (at, len) = (range.start, (until - range.start).min(CHUNK));
                let file = Arc::clone(&self.file);
                let read = tokio::task::spawn_blocking(move || read(&file, at, len)).await;
                let bytes = read.map_err(io::Error::other)??;
                range.start += len;
                (bytes, len)
            }
        };
        if let Some(meter) = &mut self.meter {
            meter.written(payload);
            if self.segments.iter().all(Segment::is_empty) {
                meter.finished();
            }
        }
        Ok(Some(bytes))
    }
}

fn read(file: &File, at: u64, len: u64) -> io::Result<Bytes> {
    let mut bytes = BytesMut::zeroed(usize::try_from(len).map_err(io::Error::other)?);
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes.freeze())
}
