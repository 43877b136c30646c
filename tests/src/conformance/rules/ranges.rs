//! Pulling parts of blobs (RFC 9110 §14).

use anyhow::{Result, ensure};
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::conformance::{Answer, Case, Probe, Table, data::Content, pairs, push};

pub(super) fn table() -> Table {
    let mut table = Table::new("pull/range");
    let blobs = pairs(LENGTHS, &ALGORITHMS);
    table.each("part", pairs(PARTS, &blobs), part);
    table.each("416-unsatisfiable", pairs(UNSATISFIABLE, &blobs), unsatisfiable);
    table.each("not-a-byte-range-is-ignored-or-refused", IGNORED, ignored);
    table.each("several", blobs.clone(), several);
    table.each("if-range-matches", blobs.clone(), if_range_matches);
    table.each("if-range-differs-gives-the-whole", blobs.clone(), if_range_differs);
    table.each("accept-ranges-is-told", blobs.clone(), accept_ranges);
    table.each("resume-in-three-parts", blobs.clone(), resume);
    table.each("digest-header-names-the-whole", blobs, digest_header);
    table.rule("404-unknown", unknown);
    table.rule("of-an-empty-blob", of_empty);
    table.rule("head-with-a-range-has-no-body", head);
    table
}

/// What many servers keep in memory, and what they keep in files.
const LENGTHS: [usize; 2] = [2048, 1_500_000];

/// A range (`N` is the blob's length, `M` that less one), with its first and last byte; a negative number counts from
/// the end.
#[derive(Debug, Clone, Copy)]
struct Part(&'static str, i64, i64);

impl Case for Part {
    fn label(&self) -> String {
        self.0.to_owned()
    }
}

const PARTS: [Part; 9] = [
    Part("500-1499", 500, 1499),
    Part("500-", 500, -1),
    Part("-500", -500, -1),
    Part("0-0", 0, 0),
    Part("0-", 0, -1),
    Part("0-M", 0, -1),
    Part("M-M", -1, -1),
    Part("2000-99999999", 2000, -1),
    Part("-99999999", 0, -1),
];
const UNSATISFIABLE: [&str; 5] = ["N-", "N-N", "500-0", "99999999-199999999", "-0"];
const IGNORED: [&str; 7] =
    ["items=0-1", "bytes", "bytes=", "bytes=a-b", "bytes=--1", "bytes=1-2-3", "bytes=99999999999999999999999-"];

fn spell(range: &str, len: usize) -> String {
    format!("bytes={}", range.replace('N', &len.to_string()).replace('M', &(len - 1).to_string()))
}

async fn pushed(p: &Probe, (len, algorithm): (usize, Algorithm)) -> Result<Content> {
    let content = p.noise_by(algorithm, "ranged", len);
    push::blob(p, p.repository(), &content).await?;
    Ok(content)
}

fn path(p: &Probe, content: &Content) -> String {
    p.at(format!("blobs/{}", content.digest))
}

fn is_part(answer: &Answer, content: &Content, first: usize, last: usize) -> Result<()> {
    let told = format!("bytes {first}-{last}/{}", content.bytes.len());
    answer.is(206)?.says("content-range", told)?.says("content-length", last + 1 - first)?;
    answer.holds(&content.bytes[first..=last]).map(drop)
}

async fn part(p: Probe, (Part(range, first, last), blob): (Part, (usize, Algorithm))) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let len = content.bytes.len();
    let index = |at: i64| usize::try_from(at).unwrap_or_else(|_| len - usize::try_from(-at).unwrap_or(0));
    let answer = p.get(path(&p, &content)).header("range", spell(range, len)).await?;
    is_part(&answer, &content, index(first), index(last))
}

async fn unsatisfiable(p: Probe, (range, blob): (&'static str, (usize, Algorithm))) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let len = content.bytes.len();
    let answer = p.get(path(&p, &content)).header("range", spell(range, len)).await?;
    answer.is(416)?;
    // RFC 9110 §15.5.17: it should say the length.
    let told = answer.header("content-range");
    ensure!(told.is_empty() || told == format!("bytes */{len}"), "Content-Range: {told}");
    Ok(())
}

async fn ignored(p: Probe, range: &'static str) -> Result<()> {
    let content = pushed(&p, (2048, Algorithm::Sha256)).await?;
    let answer = p.get(path(&p, &content)).header("range", range).await?;
    if answer.is_one_of(&[200, 400, 416])?.status() == 200 {
        answer.holds(&content.bytes)?;
    }
    Ok(())
}

async fn several(p: Probe, blob: (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let answer = p.get(path(&p, &content)).header("range", "bytes=0-9,100-109,-10").await?;
    // Several ranges may be ignored.
    if answer.is_one_of(&[200, 206])?.status() == 200 {
        return answer.holds(&content.bytes).map(drop);
    }
    let media_type = answer.header("content-type");
    ensure!(media_type.starts_with("multipart/byteranges; boundary="), "Content-Type: {media_type}");
    let boundary = media_type.rsplit('=').next().unwrap_or_default().trim_matches('"');
    let len = content.bytes.len();
    let mut rest: &[u8] = answer.body();
    for (first, last) in [(0, 9), (100, 109), (len - 10, len - 1)] {
        let head_len = rest.windows(4).position(|window| window == b"\r\n\r\n").map_or(rest.len(), |at| at + 4);
        let (head, body) = rest.split_at(head_len);
        let head = String::from_utf8_lossy(head).to_lowercase();
        let told = format!("content-range: bytes {first}-{last}/{len}");
        ensure!(head.contains(&format!("--{boundary}").to_lowercase()) && head.contains(&told), "a part says {head}");
        let (part, after) = body.split_at(body.len().min(last + 1 - first));
        ensure!(part == &content.bytes[first..=last], "the part {first}-{last} has other bytes");
        rest = after;
    }
    ensure!(rest.starts_with(format!("\r\n--{boundary}--").as_bytes()), "it ends with {rest:?}");
    Ok(())
}

async fn if_range_matches(p: Probe, blob: (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let target = path(&p, &content);
    let etag = p.head(&target).await?.header("etag").to_owned();
    let answer = p.get(&target).header("range", "bytes=5-14").header("if-range", etag).await?;
    is_part(&answer, &content, 5, 14)
}

async fn if_range_differs(p: Probe, blob: (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let answer = p.get(path(&p, &content)).header("range", "bytes=5-14").header("if-range", "\"other\"").await?;
    answer.is(200)?.holds(&content.bytes).map(drop)
}

async fn accept_ranges(p: Probe, blob: (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, blob).await?;
    p.get(path(&p, &content)).await?.says("accept-ranges", "bytes").map(drop)
}

async fn resume(p: Probe, blob: (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let len = content.bytes.len();
    let mut whole = Vec::with_capacity(len);
    while whole.len() < len {
        let last = (whole.len() + len.div_ceil(3)).min(len) - 1;
        let range = format!("bytes={}-{last}", whole.len());
        let answer = p.get(path(&p, &content)).header("range", range).await?;
        is_part(&answer, &content, whole.len(), last)?;
        whole.extend_from_slice(answer.body());
    }
    ensure!(whole == content.bytes, "the parts do not make the whole");
    Ok(())
}

async fn digest_header(p: Probe, blob: (usize, Algorithm)) -> Result<()> {
    let content = pushed(&p, blob).await?;
    let answer = p.get(path(&p, &content)).header("range", "bytes=1-2").await?;
    answer.is(206)?.says("docker-content-digest", content.digest).map(drop)
}

async fn unknown(p: Probe) -> Result<()> {
    let none = p.noise("none", 10);
    p.get(path(&p, &none)).header("range", "bytes=0-1").await?.fails(404, &["BLOB_UNKNOWN"])
}

async fn of_empty(p: Probe) -> Result<()> {
    let content = pushed(&p, (0, Algorithm::Sha256)).await?;
    let answer = p.get(path(&p, &content)).header("range", "bytes=0-").await?;
    // There is no first byte; a server may also ignore the header.
    if answer.is_one_of(&[200, 416])?.status() == 200 {
        answer.holds(b"")?;
    }
    Ok(())
}

async fn head(p: Probe) -> Result<()> {
    let content = pushed(&p, (2048, Algorithm::Sha256)).await?;
    let answer = p.head(path(&p, &content)).header("range", "bytes=0-1").await?;
    // A range is defined for GET alone, but many answer as they would then.
    answer.is_one_of(&[200, 206])?.holds(b"").map(drop)
}
