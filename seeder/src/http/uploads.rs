//! Uploads: sessions, their bytes, mounts.

use http::{HeaderName, Response, StatusCode, header};
use http_body::Body as _;
use shoal_http::{
    ApiError, Body, RequestBody,
    body::{drain, next},
};
use shoal_proto::{
    Digest,
    digest::Algorithm,
    name::Repository,
    oci::{ErrorCode, UploadId},
};

use super::{Answer, Asked, DIGEST, Registry, bare, busy, rates::network, store_failed, value};
use crate::{
    access::Action,
    events::Event,
    store::{AppendError, BeginError, CommitError, Holder, StoreError, Uploader},
    users::Subject,
};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

impl Registry {
    pub(super) async fn begin_upload(&self, name: &Repository, asked: &Asked, body: RequestBody) -> Answer {
        if let Some(mount) = asked.query.first("mount") {
            let digest = digest(mount)?;
            if self.mount(name, digest, asked).await? {
                return Ok(created(name, &digest).into());
            }
        }
        let whole = asked.query.first("digest").map(digest).transpose()?;
        let hint = asked.query.first("digest-algorithm").map(str::parse::<Algorithm>).transpose();
        let hint = hint.map_err(|error| ApiError::new(ErrorCode::DigestInvalid, error.to_string()))?;
        let algorithm = whole.as_ref().map(Digest::algorithm).or(hint).unwrap_or(Algorithm::Sha256);
        let by = self.uploader(name, asked);
        let holder = by.user.clone().map_or_else(|| Holder::Address(network(asked.peer.remote.ip())), Holder::User);
        let upload = match self.store.begin_upload(&by, holder, algorithm).await {
            Ok(upload) => upload,
            Err(error) => {
                drain(body).await;
                return Err(match &error {
                    BeginError::TooMany | BeginError::TooManyOfOne(_) => busy(&error.to_string()),
                    BeginError::Store(error) => store_failed(error),
                });
            }
        };
        let Some(digest) = whole else {
            return Ok(session(StatusCode::ACCEPTED, name, &upload, 0).into());
        };
        let stored = async {
            self.receive(&by, &upload, None, body).await?;
            self.commit(&by, &upload, digest).await
        };
        if let Err(error) = stored.await {
            // The client does not know the session's name: nobody will go on with it.
            let _gone_already = self.store.cancel_upload(&by, &upload).await;
            return Err(error);
        }
        Ok(created(name, &digest).into())
    }

    /// Who asks, as the store knows the owner of an upload.
    fn uploader(&self, name: &Repository, asked: &Asked) -> Uploader {
        let user = match self.access.subject(&asked.headers) {
            Subject::User(name) => Some(name),
            Subject::Anonymous | Subject::Wrong => None,
        };
        Uploader { repository: name.clone(), user }
    }

    /// Links a blob of another repository that the client may read. Without a source there is nothing to ask for leave,
    /// so nothing is found: whether some other repository holds the bytes is not told.
    async fn mount(&self, name: &Repository, digest: Digest, asked: &Asked) -> Result<bool, ApiError> {
        let Some(from) = asked.query.first("from").and_then(|from| from.parse::<Repository>().ok()) else {
            return Ok(false);
        };
        let subject = self.access.subject(&asked.headers);
        if self.access.authorise(&subject, Some(&from), Action::Pull).is_err() {
            return Ok(false);
        }
        let mounted = self.store.link_blob(&from, name, digest).await.map_err(|e| store_failed(&e))?;
        if mounted {
            self.events.tell(&Event::BlobMounted { from: &from, repository: name, digest });
        }
        Ok(mounted)
    }

    pub(super) async fn upload_status(&self, name: &Repository, upload: &UploadId, asked: &Asked) -> Answer {
        let by = self.uploader(name, asked);
        let len = self.store.upload_len(&by, upload).await.map_err(|e| append_failed(&e, name, upload))?;
        Ok(session(StatusCode::NO_CONTENT, name, upload, len).into())
    }

    pub(super) async fn cancel_upload(&self, name: &Repository, upload: &UploadId, asked: &Asked) -> Answer {
        self.store
            .cancel_upload(&self.uploader(name, asked), upload)
            .await
            .map_err(|e| append_failed(&e, name, upload))?;
        Ok(bare(StatusCode::NO_CONTENT).into())
    }

    pub(super) async fn append_upload(
        &self,
        name: &Repository,
        upload: &UploadId,
        asked: &Asked,
        body: RequestBody,
    ) -> Answer {
        let len = self.receive_chunk(&self.uploader(name, asked), upload, asked, body).await?;
        Ok(session(StatusCode::ACCEPTED, name, upload, len).into())
    }

    pub(super) async fn finish_upload(
        &self,
        name: &Repository,
        upload: &UploadId,
        asked: &Asked,
        body: RequestBody,
    ) -> Answer {
        let Some(text) = asked.query.first("digest") else {
            drain(body).await;
            return Err(ApiError::new(ErrorCode::DigestInvalid, "the upload is finished with ?digest=<its digest>"));
        };
        let digest = match digest(text) {
            Ok(digest) => digest,
            Err(error) => {
                drain(body).await;
                return Err(error);
            }
        };
        let by = self.uploader(name, asked);
        if !body.is_end_stream() {
            self.receive_chunk(&by, upload, asked, body).await?;
        }
        self.commit(&by, upload, digest).await?;
        Ok(created(name, &digest).into())
    }

    /// Takes the bytes of a request that may say where they belong.
    async fn receive_chunk(
        &self,
        by: &Uploader,
        upload: &UploadId,
        asked: &Asked,
        body: RequestBody,
    ) -> Result<u64, ApiError> {
        let range = match chunk_range(asked) {
            Ok(range) => range,
            Err(error) => {
                drain(body).await;
                return Err(error);
            }
        };
        let len = self.receive(by, upload, range.as_ref().map(|range| range.start), body).await?;
        match range {
            Some(range) if range.end != len => {
                let message =
                    format!("the chunk ends at byte {len} of the upload, its Content-Range says {}", range.end);
                Err(ApiError::new(ErrorCode::SizeInvalid, message))
            }
            _ => Ok(len),
        }
    }

    /// Takes all bytes of `body` into the upload; returns the upload's length.
    async fn receive(
        &self,
        by: &Uploader,
        upload: &UploadId,
        at: Option<u64>,
        mut body: RequestBody,
    ) -> Result<u64, ApiError> {
        let mut append = match self.store.append(by, upload, at).await {
            Ok(append) => append,
            Err(error) => {
                drain(body).await;
                return Err(append_failed(&error, &by.repository, upload));
            }
        };
        loop {
            match next(&mut body).await {
                Ok(Some(data)) => {
                    if let Err(error) = append.write(data).await {
                        drop(append);
                        self.refuse(&error, by, upload).await;
                        drain(body).await;
                        return Err(store_failed(&error));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // What came is kept: the client can go on from there.
                    append.finish().await.map_err(|e| store_failed(&e))?;
                    return Err(error.into());
                }
            }
        }
        match append.finish().await {
            Ok(len) => Ok(len),
            Err(error) => {
                self.refuse(&error, by, upload).await;
                Err(store_failed(&error))
            }
        }
    }

    /// Forgets an upload for which there is no room: what it holds would only take up more of it.
    async fn refuse(&self, error: &StoreError, by: &Uploader, upload: &UploadId) {
        if matches!(error, StoreError::Quota(_)) {
            let _gone_already = self.store.cancel_upload(by, upload).await;
        }
    }

    async fn commit(&self, by: &Uploader, upload: &UploadId, digest: Digest) -> Result<(), ApiError> {
        let committed = self.store.commit_upload(by, upload, digest, self.sign()).await;
        if let Err(CommitError::Store(error)) = &committed {
            self.refuse(error, by, upload).await;
        }
        let info = committed.map_err(|error| match &error {
            CommitError::Unknown => ApiError::new(ErrorCode::BlobUploadUnknown, error.to_string()),
            CommitError::Busy => {
                ApiError::new(ErrorCode::BlobUploadInvalid, error.to_string()).status(StatusCode::CONFLICT)
            }
            CommitError::Digest { found } => ApiError::new(ErrorCode::DigestInvalid, error.to_string())
                .detail(serde_json::json!({ "expected": digest, "found": **found })),
            CommitError::Store(error) => store_failed(error),
        })?;
        self.events.tell(&Event::BlobPushed { repository: &by.repository, digest, size: info.size });
        Ok(())
    }
}

fn digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error: shoal_proto::digest::DigestError| ApiError::new(ErrorCode::DigestInvalid, error.to_string()))
}

/// The bytes of the upload that a request says it carries: `Content-Range: <first>-<last>`. Checked against its length
/// before a byte of it is read.
fn chunk_range(asked: &Asked) -> Result<Option<std::ops::Range<u64>>, ApiError> {
    let Some(text) = asked.headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let parsed = text.to_str().ok().and_then(|text| text.split_once('-')).and_then(|(first, last)| {
        let (first, last) = (number(first)?, number(last)?);
        (first <= last).then(|| first..last.saturating_add(1))
    });
    let Some(range) = parsed else {
        let message = "the Content-Range of a chunk reads <first byte>-<last byte>";
        return Err(ApiError::new(ErrorCode::BlobUploadInvalid, message));
    };
    let length = asked.header(header::CONTENT_LENGTH).and_then(number);
    if length.is_some_and(|length| length != range.end - range.start) {
        return Err(ApiError::new(ErrorCode::SizeInvalid, "Content-Range and Content-Length differ"));
    }
    Ok(Some(range))
}

fn location(name: &Repository, upload: &UploadId) -> String {
    format!("/v2/{name}/blobs/uploads/{}", upload.as_str())
}

/// How much an upload holds, as `Range` says it. One that holds nothing says `0-0`, as clients are used to.
fn held(len: u64) -> String {
    format!("0-{}", len.saturating_sub(1))
}

fn session(status: StatusCode, name: &Repository, upload: &UploadId, len: u64) -> Response<Body> {
    let mut response = bare(status);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, value(&location(name, upload)));
    headers.insert(header::RANGE, value(&held(len)));
    headers.insert(UPLOAD_UUID, value(upload.as_str()));
    response
}

fn created(name: &Repository, digest: &Digest) -> Response<Body> {
    let mut response = bare(StatusCode::CREATED);
    response.headers_mut().insert(header::LOCATION, value(&format!("/v2/{name}/blobs/{digest}")));
    response.headers_mut().insert(DIGEST, value(&digest.to_string()));
    response
}

fn append_failed(error: &AppendError, name: &Repository, upload: &UploadId) -> ApiError {
    match error {
        AppendError::Unknown => ApiError::new(ErrorCode::BlobUploadUnknown, error.to_string()),
        AppendError::Busy => {
            ApiError::new(ErrorCode::BlobUploadInvalid, error.to_string()).status(StatusCode::CONFLICT)
        }
        AppendError::Offset { len } => ApiError::new(ErrorCode::BlobUploadInvalid, error.to_string())
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(header::LOCATION, value(&location(name, upload)))
            .header(header::RANGE, value(&held(*len))),
        AppendError::Store(error) => store_failed(error),
    }
}
