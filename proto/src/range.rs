//! The `Range` header of RFC 9110 §14, as far as a registry serves it: byte ranges, several at once.

use std::ops::Range;

/// Most ranges of one request that are answered; a request with more gets the whole (RFC 9110 §14.2 allows to ignore
/// the header, and many tiny ranges are a known way to waste a server's work).
pub const RANGES_MAX: usize = 16;

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// 200 and everything: no header, one that is malformed or not in bytes.
    Whole,
    /// 206 with one part (`Content-Range`) or several (`multipart/byteranges`). Never empty; each within the blob.
    Parts(Vec<Range<u64>>),
    /// 416 with `Content-Range: bytes */size`.
    Unsatisfiable,
}

/// Reads a `Range` header against content of `size` bytes. A malformed header is ignored, as RFC 9110 §14.2 says; a range
/// that ends before it starts selects nothing, which is what the OCI conformance suite expects of a registry.
#[must_use]
pub fn select(header: Option<&str>, size: u64) -> Selection {
    let Some(specs) = header.and_then(ranges) else { return Selection::Whole };
    let parts: Vec<_> = specs.into_iter().filter_map(|spec| spec.within(size)).collect();
    let asked = parts.iter().fold(0, |sum: u64, part| sum.saturating_add(part.end - part.start));
    match parts.len() {
        0 => Selection::Unsatisfiable,
        // Ranges that overlap would multiply what one small request costs.
        2.. if asked > size => Selection::Whole,
        _ => Selection::Parts(parts),
    }
}

#[derive(Debug, Clone, Copy)]
enum Spec {
    From(u64, Option<u64>),
    Last(u64),
}

impl Spec {
    fn within(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From(first, last) => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
            Self::Last(count) => size.saturating_sub(count)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

fn ranges(header: &str) -> Option<Vec<Spec>> {
    let (unit, list) = header.trim().split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let specs: Option<Vec<Spec>> = list.split(',').map(|part| spec(part.trim())).collect();
    specs.filter(|specs| specs.len() <= RANGES_MAX)
}

fn spec(text: &str) -> Option<Spec> {
    let (first, last) = text.split_once('-')?;
    match (first.is_empty(), last.is_empty()) {
        (true, _) => number(last).map(Spec::Last),
        (false, true) => number(first).map(|first| Spec::From(first, None)),
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            Some(if first <= last { Spec::From(first, Some(last)) } else { Spec::Last(0) })
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // A number too large for us lies past every blob, whatever it is.
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let one = |r: Range<u64>| Selection::Parts(vec![r]);
        let cases = [
            (None, Selection::Whole),
            (Some("bytes=0-9"), one(0..10)),
            (Some("bytes=5-"), one(5..100)),
            (Some("bytes=-5"), one(95..100)),
            (Some("bytes=-500"), one(0..100)),
            (Some("bytes=90-500"), one(90..100)),
            (Some("Bytes = 0-0"), one(0..1)),
            (Some("bytes=0-1,50-59, -1"), Selection::Parts(vec![0..2, 50..60, 99..100])),
            (Some("bytes=100-"), Selection::Unsatisfiable),
            (Some("bytes=500-600,0-0"), one(0..1)),
            (Some("bytes=-0"), Selection::Unsatisfiable),
            (Some("bytes=99999999999999999999-"), Selection::Unsatisfiable),
            (Some("bytes=9-5"), Selection::Unsatisfiable),
            (Some("bytes=9-5,1-2"), one(1..3)),
            (Some("bytes=0-,0-"), Selection::Whole),
            (Some("bytes=a-b"), Selection::Whole),
            (Some("bytes=+1-2"), Selection::Whole),
            (Some("bytes="), Selection::Whole),
            (Some("pieces=0-9"), Selection::Whole),
            (Some("bytes=-"), Selection::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(select(header, 100), expected, "{header:?}");
        }
        assert_eq!(select(Some("bytes=0-"), 0), Selection::Unsatisfiable);
        let many = format!("bytes={}", vec!["0-0"; RANGES_MAX + 1].join(","));
        assert_eq!(select(Some(&many), 100), Selection::Whole);
    }
}
