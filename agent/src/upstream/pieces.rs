//! Pieces from the seeder, as they arrive.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use shoal_proto::{
    Digest,
    api::{PIECES_GIVEN_MAX, PiecesGiven, PiecesWanted, REPLY_LEN_MAX},
    codec,
    have::HaveSet,
    layout::{Layout, PieceIndex},
    name::Repository,
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{Credentials, SILENCE_MAX, Upstream, UpstreamError, client::Client};

/// Some bytes of a piece, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceChunk {
    /// The piece.
    pub piece: PieceIndex,
    /// Where they start within the piece.
    pub offset: u64,
    /// The bytes; never empty.
    pub data: Bytes,
    /// Whether the piece ends with them.
    pub last: bool,
}

/// The seeder's answer to [`PiecesWanted`]: which pieces, then their bytes. Dropping it gives the connection up.
#[derive(Debug)]
pub struct PieceStream {
    client: Client,
    path: String,
    body: Incoming,
    buffer: BytesMut,
    layout: Layout,
    /// Pieces to come, the current one last.
    left: Vec<PieceIndex>,
    given: Vec<PieceIndex>,
    retry_after_ms: u32,
    /// Bytes of the current piece that have come.
    offset: u64,
    _permit: OwnedSemaphorePermit,
}

impl Upstream {
    /// Says which pieces are wanted; the seeder picks. An answer without pieces is no error: see
    /// [`PieceStream::retry_after_ms`].
    ///
    /// # Errors
    /// As all requests; pieces that were not wanted are [`UpstreamError::Protocol`].
    pub async fn pieces(
        &self,
        repository: &Repository,
        digest: &Digest,
        layout: &Layout,
        wanted: &PiecesWanted,
        credentials: &Credentials,
    ) -> Result<PieceStream, UpstreamError> {
        let path = format!("/v2/{repository}/_shoal/pieces/{digest}");
        let body = Bytes::from(codec::encode(wanted));
        let request = self.call(&path, credentials, body);
        let answer = self.client.stream(&request).await;
        if answer.as_ref().err().is_some_and(UpstreamError::wants_renewal) {
            self.refused.notify_one();
        }
        let (response, permit) = answer?;
        let mut stream = PieceStream {
            client: self.client.clone(),
            path,
            body: response.into_body(),
            buffer: BytesMut::new(),
            layout: *layout,
            left: Vec::new(),
            given: Vec::new(),
            retry_after_ms: 0,
            offset: 0,
            _permit: permit,
        };
        let given = stream.head().await?;
        stream.take_given(&given, wanted)?;
        Ok(stream)
    }
}

impl PieceStream {
    /// The pieces that come, in order.
    #[must_use]
    pub fn given(&self) -> &[PieceIndex] {
        &self.given
    }

    /// Where none was given: ask again after so many milliseconds if peers do not bring them.
    #[must_use]
    pub const fn retry_after_ms(&self) -> u32 {
        self.retry_after_ms
    }

    /// The next bytes; `None` after the last piece. Cancel-safe.
    ///
    /// # Errors
    /// The connection breaks or falls silent; what came before is good as far as its hashes say.
    pub async fn next(&mut self) -> Result<Option<PieceChunk>, UpstreamError> {
        let Some(&piece) = self.left.last() else { return Ok(None) };
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        let missing = self.layout.len_of(piece) - self.offset;
        let take = self.buffer.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
        let data = self.buffer.split_to(take).freeze();
        let offset = self.offset;
        self.offset += take as u64;
        let last = take as u64 == missing;
        if last {
            self.left.pop();
            self.offset = 0;
        }
        Ok(Some(PieceChunk { piece, offset, data, last }))
    }

    /// Adds at least one byte to the buffer.
    async fn fill(&mut self) -> Result<(), UpstreamError> {
        loop {
            let frame = match timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(self.client.unreachable(&error.to_string())),
                Ok(None) => return Err(self.client.unreachable("the stream of pieces ended early")),
                Err(_) => return Err(self.client.unreachable("the stream of pieces fell silent")),
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                // The frame is ours alone as a rule: then nothing is copied.
                if self.buffer.is_empty() {
                    self.buffer = data.try_into_mut().unwrap_or_else(|data| BytesMut::from(&data[..]));
                } else {
                    self.buffer.extend_from_slice(&data);
                }
                return Ok(());
            }
        }
    }

    async fn head(&mut self) -> Result<PiecesGiven, UpstreamError> {
        while self.buffer.len() < 4 {
            self.fill().await?;
        }
        let len = self.buffer.get_u32_le() as usize;
        if len > REPLY_LEN_MAX {
            return Err(self.client.protocol(&self.path, "the head of the pieces is too long"));
        }
        while self.buffer.len() < len {
            self.fill().await?;
        }
        let head = self.buffer.split_to(len);
        codec::decode::<PiecesGiven, REPLY_LEN_MAX>(&head)
            .map_err(|error| self.client.protocol(&self.path, &error.to_string()))
    }

    fn take_given(&mut self, given: &PiecesGiven, wanted: &PiecesWanted) -> Result<(), UpstreamError> {
        let wrong = |error: &str| self.client.protocol(&self.path, error);
        let mut want = HaveSet::from_bytes(&self.layout, &wanted.want).map_err(|error| wrong(&error.to_string()))?;
        if given.pieces.len() > usize::from(wanted.max.min(PIECES_GIVEN_MAX)) {
            return Err(wrong("more pieces than were asked for"));
        }
        let mut pieces = Vec::with_capacity(given.pieces.len());
        for &index in &given.pieces {
            let piece = self.layout.piece(index).filter(|&piece| want.remove(piece));
            pieces.push(piece.ok_or_else(|| wrong("a piece that was not asked for"))?);
        }
        self.left = pieces.iter().rev().copied().collect();
        self.given = pieces;
        self.retry_after_ms = given.retry_after_ms;
        Ok(())
    }
}
