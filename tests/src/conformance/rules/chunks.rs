//! Pushing in chunks: order, resumption, and chunks that say what is not so.

use anyhow::{Result, ensure};
use bytes::Bytes;
use shoal_proto::digest::Algorithm;

use super::ALGORITHMS;
use crate::conformance::{
    Answer, Case, Probe, Table,
    data::Content,
    pairs,
    push::{begin, chunk, finish, range_of, with},
};

pub(super) fn table() -> Table {
    let mut table = Table::new("push/chunked");
    table.each("416-out-of-order-and-session-survives", pairs(MISPLACED, &ALGORITHMS), out_of_order);
    table.each("416-out-of-order-put-and-session-survives", pairs(MISPLACED, &ALGORITHMS), out_of_order_put);
    table.each("416-tells-what-is-held", MISPLACED, told);
    table.each("416-replayed-chunk", ALGORITHMS, replayed);
    table.each("malformed-content-range-is-refused", MALFORMED, malformed);
    table.each("wrong-length-is-refused", [10, 5000], wrong_length);
    table.each("twenty-chunks-of-one-byte", ALGORITHMS, one_byte);
    table.each("many-uneven-chunks", ALGORITHMS, uneven);
    table.each("resumed-by-get", ALGORITHMS, resumed);
    table.each("with-and-without-range", ALGORITHMS, mixed);
    table.each("range-without-length", ALGORITHMS, range_without_length);
    table.each("last-chunk-in-put", pairs(["with-range", "without-range"], &ALGORITHMS), last_in_put);
    table.each("wrong-digest-after-chunks", ALGORITHMS, wrong_digest);
    table.each("large-chunks", ALGORITHMS, large);
    table.rule("sessions-side-by-side", side_by_side);
    table
}

/// Where a chunk begins that should begin at byte 400.
#[derive(Debug, Clone, Copy)]
struct Misplaced(&'static str, usize);

impl Case for Misplaced {
    fn label(&self) -> String {
        self.0.to_owned()
    }
}

const MISPLACED: [Misplaced; 4] =
    [Misplaced("skips", 700), Misplaced("overlaps", 200), Misplaced("restarts", 0), Misplaced("off-by-one", 401)];
const MALFORMED: [&str; 8] = ["5", "a-b", "-5", "400-", "409-400", "400--409", "0x190-0x199", "99999999999999999999-1"];

/// A session that holds the first 400 bytes of a blob of 1,000.
async fn begun(p: &Probe, algorithm: Algorithm) -> Result<(Content, String)> {
    let content = p.noise_by(algorithm, "chunked", 1000);
    let session = begin(p, p.repository(), "").await?;
    let taken = chunk(p, &session, 0, content.bytes.slice(..400)).await?;
    taken.is(202)?.says("range", "0-399")?;
    Ok((content, taken.location()?))
}

/// The rest can still be pushed, as the session itself says how.
async fn completes(p: &Probe, session: &str, content: &Content) -> Result<()> {
    let held = p.get(session).await?;
    held.is(204)?.says("range", "0-399")?;
    let session = chunk(p, &held.location()?, 400, content.bytes.slice(400..)).await?.is(202)?.location()?;
    finish(p, &session, content).await?.is(201)?;
    p.get(p.at(format!("blobs/{}", content.digest))).await?.is(200)?.holds(&content.bytes).map(drop)
}

fn misplaced(content: &Content, first: usize) -> (String, Bytes) {
    let bytes = content.bytes.slice(first..(first + 300).min(content.bytes.len()));
    (range_of(first, bytes.len()), bytes)
}

async fn send_misplaced(p: &Probe, session: &str, content: &Content, first: usize) -> Result<Answer> {
    let (range, bytes) = misplaced(content, first);
    p.patch(session).header("content-range", range).octets(bytes).await
}

async fn out_of_order(p: Probe, (Misplaced(_, first), algorithm): (Misplaced, Algorithm)) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    send_misplaced(&p, &session, &content, first).await?.is(416)?;
    completes(&p, &session, &content).await
}

async fn out_of_order_put(p: Probe, (Misplaced(_, first), algorithm): (Misplaced, Algorithm)) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    let (range, bytes) = misplaced(&content, first);
    let target = with(&session, &format!("digest={}", content.digest));
    p.put(target).header("content-range", range).octets(bytes).await?.is(416)?;
    completes(&p, &session, &content).await
}

/// The answer says where to go on, so that a client need not ask.
async fn told(p: Probe, Misplaced(_, first): Misplaced) -> Result<()> {
    let (content, session) = begun(&p, Algorithm::Sha256).await?;
    let refused = send_misplaced(&p, &session, &content, first).await?;
    let session = refused.is(416)?.says("range", "0-399")?.location()?;
    completes(&p, &session, &content).await
}

/// As a client does that did not see the answer to its chunk: taken twice, the blob would be wrong.
async fn replayed(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    for _ in 0..2 {
        chunk(&p, &session, 0, content.bytes.slice(..400)).await?.is(416)?;
    }
    completes(&p, &session, &content).await
}

async fn malformed(p: Probe, range: &'static str) -> Result<()> {
    let (content, session) = begun(&p, Algorithm::Sha256).await?;
    let answer = p.patch(&session).header("content-range", range).octets(content.bytes.slice(400..410)).await?;
    answer.is_one_of(&[400, 416])?;
    completes(&p, &session, &content).await
}

/// The range says another length than the body has.
async fn wrong_length(p: Probe, len: usize) -> Result<()> {
    let (content, session) = begun(&p, Algorithm::Sha256).await?;
    let answer =
        p.patch(&session).header("content-range", range_of(400, len)).octets(content.bytes.slice(400..)).await?;
    answer.is_one_of(&[400, 416])?;
    completes(&p, &session, &content).await
}

async fn in_lengths(p: &Probe, content: &Content, lengths: &[usize]) -> Result<()> {
    let mut session = begin(p, p.repository(), "").await?;
    let mut first = 0;
    for len in lengths {
        let taken = chunk(p, &session, first, content.bytes.slice(first..first + len)).await?;
        first += len;
        session = taken.is(202)?.says("range", format!("0-{}", first - 1))?.location()?;
    }
    ensure!(first == content.bytes.len(), "the rule's own lengths");
    finish(p, &session, content).await?.is(201)?;
    p.get(p.at(format!("blobs/{}", content.digest))).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn one_byte(p: Probe, algorithm: Algorithm) -> Result<()> {
    in_lengths(&p, &p.noise_by(algorithm, "bytes", 20), &[1; 20]).await
}

async fn uneven(p: Probe, algorithm: Algorithm) -> Result<()> {
    let lengths = [1, 65_536, 3, 65_535, 100_000, 64, 8191];
    in_lengths(&p, &p.noise_by(algorithm, "uneven", lengths.iter().sum()), &lengths).await
}

async fn large(p: Probe, algorithm: Algorithm) -> Result<()> {
    let lengths = [1_500_000, 1_500_000, 7];
    in_lengths(&p, &p.noise_by(algorithm, "large", lengths.iter().sum()), &lengths).await
}

async fn resumed(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    for _ in 0..2 {
        p.get(&session).await?.is(204)?.says("range", "0-399")?;
    }
    completes(&p, &session, &content).await
}

async fn mixed(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    let taken = p.patch(&session).octets(content.bytes.slice(400..500)).streamed().await?;
    let session = taken.is(202)?.says("range", "0-499")?.location()?;
    let taken = p.patch(&session).octets(content.bytes.slice(500..600)).await?;
    let session = taken.is(202)?.says("range", "0-599")?.location()?;
    let session = chunk(&p, &session, 600, content.bytes.slice(600..)).await?.is(202)?.location()?;
    finish(&p, &session, &content).await?.is(201).map(drop)
}

async fn range_without_length(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    let rest = content.bytes.slice(400..);
    let patch = p.patch(&session).header("content-range", range_of(400, rest.len())).octets(rest).streamed();
    let session = patch.await?.is(202)?.says("range", "0-999")?.location()?;
    finish(&p, &session, &content).await?.is(201).map(drop)
}

async fn last_in_put(p: Probe, (how, algorithm): (&'static str, Algorithm)) -> Result<()> {
    let (content, session) = begun(&p, algorithm).await?;
    let put = p.put(with(&session, &format!("digest={}", content.digest)));
    let put = if how == "with-range" { put.header("content-range", "400-999") } else { put };
    put.octets(content.bytes.slice(400..)).await?.is(201)?;
    p.get(p.at(format!("blobs/{}", content.digest))).await?.is(200)?.holds(&content.bytes).map(drop)
}

async fn wrong_digest(p: Probe, algorithm: Algorithm) -> Result<()> {
    let (_, session) = begun(&p, algorithm).await?;
    let other = p.noise_by(algorithm, "other", 400);
    finish(&p, &session, &other).await?.fails(400, &["DIGEST_INVALID"])?;
    p.head(p.at(format!("blobs/{}", other.digest))).await?.is(404).map(drop)
}

async fn side_by_side(p: Probe) -> Result<()> {
    let contents = ["a", "b", "c"].map(|name| p.noise(name, 900));
    let mut sessions = Vec::new();
    for _ in &contents {
        sessions.push(begin(&p, p.repository(), "").await?);
    }
    for first in (0..900).step_by(300) {
        for (session, content) in sessions.iter_mut().zip(&contents) {
            let bytes = content.bytes.slice(first..first + 300);
            *session = chunk(&p, session, first, bytes).await?.is(202)?.location()?;
        }
    }
    for (session, content) in sessions.iter().zip(&contents) {
        finish(&p, session, content).await?.is(201)?;
    }
    Ok(())
}
