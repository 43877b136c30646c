//! What a service answers with, and how ranged content becomes an answer.

use std::{fs::File, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use shoal_proto::range::{Selection, select};

use crate::{
    ApiError,
    handoff::{Handoff, Segment},
};

/// A response body that stays in hyper.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A service's answer.
#[derive(Debug)]
pub enum Reply {
    /// Sent by hyper.
    Response(Response<Body>),
    /// Sent by `sendfile`, outside hyper. The answer to a HEAD may be one as well: then only its head is sent.
    Handoff(Box<Handoff>),
}

impl Reply {
    /// The status that the client gets.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Response(response) => response.status(),
            Self::Handoff(handoff) => handoff.head.status(),
        }
    }

    /// The headers that the client gets.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Response(response) => response.headers_mut(),
            Self::Handoff(handoff) => handoff.head.headers_mut(),
        }
    }
}

impl From<Response<Body>> for Reply {
    fn from(response: Response<Body>) -> Self {
        Self::Response(response)
    }
}

impl From<Handoff> for Reply {
    fn from(handoff: Handoff) -> Self {
        Self::Handoff(Box::new(handoff))
    }
}

impl From<ApiError> for Reply {
    fn from(error: ApiError) -> Self {
        Self::Response(error.into_response())
    }
}

/// A body of `data`.
pub fn full(data: impl Into<Bytes>) -> Body {
    Full::new(data.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Separates the parts of a `multipart/byteranges` body. Fixed: a part is framed by its length as well, and clients
/// split at the boundary only where a part ends.
const BOUNDARY: &str = "shoal-byteranges-7f3a9c51e2d84b06";

/// How content of a known size answers a request: status, headers and what to send. Made once, then turned into a
/// response from memory or a hand-off from a file.
#[derive(Debug)]
pub struct Content {
    head: Response<()>,
    segments: Vec<Segment>,
}

impl Content {
    /// Content of `size` bytes and media type `content_type`, as the `Range` and `If-Range` headers of `request` ask for
    /// it. `etag` is the entity tag with its quotes. A body that is asked for as a whole gets 200, ranges get 206
    /// (several as `multipart/byteranges`), and ranges past the end 416.
    #[must_use]
    pub fn new(request: &HeaderMap, size: u64, content_type: &HeaderValue, etag: Option<&HeaderValue>) -> Self {
        let fresh = match request.get(header::IF_RANGE) {
            None => true,
            Some(expected) => etag == Some(expected),
        };
        let range = request.get(header::RANGE).filter(|_| fresh).and_then(|value| value.to_str().ok());
        let mut content = match select(range, size) {
            Selection::Whole => Self::of(StatusCode::OK, vec![Segment::File(0..size)], content_type),
            Selection::Unsatisfiable => Self::unsatisfiable(size),
            Selection::Parts(parts) => match parts.as_slice() {
                [only] => {
                    let mut content =
                        Self::of(StatusCode::PARTIAL_CONTENT, vec![Segment::File(only.clone())], content_type);
                    content.insert(header::CONTENT_RANGE, &content_range(only, size));
                    content
                }
                several => Self::multipart(several, size, content_type),
            },
        };
        content.insert(header::ACCEPT_RANGES, "bytes");
        if let Some(etag) = etag {
            content.head.headers_mut().insert(header::ETAG, etag.clone());
        }
        content
    }

    fn of(status: StatusCode, segments: Vec<Segment>, content_type: &HeaderValue) -> Self {
        let mut head = Response::new(());
        *head.status_mut() = status;
        let len: u64 = segments.iter().map(Segment::len).sum();
        head.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
        head.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(len));
        Self { head, segments }
    }

    fn unsatisfiable(size: u64) -> Self {
        let mut content =
            Self::of(StatusCode::RANGE_NOT_SATISFIABLE, Vec::new(), &HeaderValue::from_static("text/plain"));
        content.insert(header::CONTENT_RANGE, &format!("bytes */{size}"));
        content
    }

    fn multipart(parts: &[Range<u64>], size: u64, content_type: &HeaderValue) -> Self {
        let inner = content_type.to_str().unwrap_or("application/octet-stream");
        let mut segments = Vec::with_capacity(2 * parts.len() + 1);
        for (at, part) in parts.iter().enumerate() {
            let lead = if at == 0 { "" } else { "\r\n" };
            let range = content_range(part, size);
            let text = format!("{lead}--{BOUNDARY}\r\nContent-Type: {inner}\r\nContent-Range: {range}\r\n\r\n");
            segments.push(Segment::Bytes(text.into()));
            segments.push(Segment::File(part.clone()));
        }
        segments.push(Segment::Bytes(format!("\r\n--{BOUNDARY}--\r\n").into()));
        let outer = HeaderValue::from_str(&format!("multipart/byteranges; boundary={BOUNDARY}"));
        Self::of(StatusCode::PARTIAL_CONTENT, segments, &outer.expect("the boundary is plain ASCII"))
    }

    fn insert(&mut self, name: http::HeaderName, value: &str) {
        let value = HeaderValue::from_str(value).expect("digits and ASCII words");
        self.head.headers_mut().insert(name, value);
    }

    /// The headers that the client gets.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.head.headers_mut()
    }

    /// The bytes of the content that the answer holds, framing aside.
    #[must_use]
    pub fn payload_len(&self) -> u64 {
        self.segments.iter().map(Segment::payload_len).sum()
    }

    /// Sends it from `file` by hand-off.
    #[must_use]
    pub fn from_file(self, file: Arc<File>) -> Handoff {
        Handoff::new(self.head, file, self.segments)
    }

    /// Sends it from memory.
    ///
    /// # Panics
    /// If `content` is not of the size that was given.
    #[must_use]
    pub fn from_memory(self, content: &Bytes) -> Response<Body> {
        let slice = |range: &Range<u64>| {
            let index = |at: u64| usize::try_from(at).expect("content in memory has an index");
            content.slice(index(range.start)..index(range.end))
        };
        let body = match self.segments.as_slice() {
            [Segment::File(range)] => slice(range),
            several => {
                let mut body = BytesMut::new();
                for segment in several {
                    match segment {
                        Segment::Bytes(bytes) => body.extend_from_slice(bytes),
                        Segment::File(range) => body.extend_from_slice(&slice(range)),
                    }
                }
                body.freeze()
            }
        };
        self.head.map(|()| full(body))
    }

    /// The head alone, for HEAD.
    #[must_use]
    pub fn into_head(self) -> Response<Body> {
        self.head.map(|()| empty())
    }
}

fn content_range(part: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end - 1)
}
