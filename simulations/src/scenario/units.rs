//! Quantities as people write them: `"256 MiB"`, `"2 Gb/s"`, `"87 ms"`. A wrong one says what would be right.

use core::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, Visitor},
};

use crate::num::{floor, nanos};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Rate(pub(crate) f64);

/// A length of time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(pub(crate) u64);

/// A part of something, 0 to 1. Also written as `"20 %"`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Part(pub(crate) f64);

/// A unit's name and what one of it is.
type Units = [(&'static str, f64)];

const BYTES: &Units = &[
    ("B", 1.0),
    ("kB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
];
const RATES: &Units = &[
    ("b/s", 0.125),
    ("kb/s", 125.0),
    ("Mb/s", 125e3),
    ("Gb/s", 125e6),
    ("Tb/s", 125e9),
    ("B/s", 1.0),
    ("kB/s", 1e3),
    ("MB/s", 1e6),
    ("GB/s", 1e9),
    ("KiB/s", 1024.0),
    ("MiB/s", 1_048_576.0),
    ("GiB/s", 1_073_741_824.0),
];
const SPANS: &Units =
    &[("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86400.0)];
const PARTS: &Units = &[("%", 0.01), ("", 1.0)];

/// Longest time: more is a slip of the pen, and would not fit 64 bits of nanoseconds some day.
const SPAN_MAX_S: f64 = 1e8;

/// Reads `"<number> <unit>"`.
fn read(text: &str, units: &Units, example: &str) -> Result<f64, String> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | '_'))).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let value: f64 =
        number.replace('_', "").parse().map_err(|_| format!("{text:?} is no quantity; write {example}"))?;
    if value < 0.0 {
        return Err(format!("{text:?} is negative; write {example}"));
    }
    let unit = unit.trim();
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor).ok_or_else(|| {
        let names: Vec<_> = units.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        format!("{text:?} has no unit that is known; write {example} (units: {})", names.join(" "))
    })?;
    Ok(value * factor)
}

struct Quantity<T> {
    example: &'static str,
    text: fn(&str) -> Result<T, String>,
    number: fn(f64) -> Result<T, String>,
}

impl<T> Visitor<'_> for Quantity<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.example)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.text)(text).map_err(E::custom)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        (self.number)(number as f64).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.number)(number as f64).map_err(E::custom)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        (self.number)(number).map_err(E::custom)
    }
}

const SIZE: &str = "a size such as \"256 MiB\" or \"1.2 GB\"";
const RATE: &str = "a rate such as \"2 Gb/s\" or \"300 MB/s\"";
const SPAN: &str = "a time such as \"87 ms\" or \"30 s\"";
const PART: &str = "a part such as 0.2 or \"20 %\"";

fn no_unit<T>(number: f64, example: &str) -> Result<T, String> {
    Err(format!("{number} has no unit; write {example}"))
}

impl Bytes {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        read(text, BYTES, SIZE).map(|bytes| Self(floor(bytes + 0.5)))
    }
}

impl Rate {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let rate = read(text, RATES, RATE)?;
        if rate > 0.0 { Ok(Self(rate)) } else { Err(format!("{text:?}: a rate is more than nothing; write {RATE}")) }
    }
}

impl Span {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let secs = read(text, SPANS, SPAN)?;
        if secs > SPAN_MAX_S {
            return Err(format!("{text:?} is longer than three years; write {SPAN}"));
        }
        Ok(Self(nanos(secs)))
    }
}

impl Part {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        Self::of(read(text, PARTS, PART)?)
    }

    fn of(part: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&part) {
            Ok(Self(part))
        } else {
            Err(format!("{part} is not within 0 and 1; write {PART}"))
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = |number: f64| {
            if number < 0.0 { Err(format!("{number} is negative; write {SIZE}")) } else { Ok(Self(floor(number))) }
        };
        deserializer.deserialize_any(Quantity { example: SIZE, text: Self::parse, number })
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Quantity { example: RATE, text: Self::parse, number: |n| no_unit(n, RATE) })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Quantity { example: SPAN, text: Self::parse, number: |n| no_unit(n, SPAN) })
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Quantity { example: PART, text: Self::parse, number: Self::of })
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let short = self.to_string();
        let exact = Self::parse(&short) == Ok(*self);
        serializer.collect_str(&if exact { short } else { format!("{} B", self.0) })
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let short = self.to_string();
        let exact = Self::parse(&short) == Ok(*self);
        serializer.collect_str(&if exact { short } else { format!("{} B/s", self.0) })
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let short = self.to_string();
        let exact = Self::parse(&short) == Ok(*self);
        serializer.collect_str(&if exact { short } else { format!("{} ns", self.0) })
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

/// The number in the largest of `names` that leaves at least one of it.
fn scaled(f: &mut fmt::Formatter<'_>, value: f64, names: &[(&str, f64)]) -> fmt::Result {
    let (name, factor) = names.iter().rev().find(|(_, factor)| value >= *factor).unwrap_or(&names[0]);
    let number = value / factor;
    let digits = if (number - number.round()).abs() < 5e-3 {
        0
    } else if number < 10.0 {
        2
    } else {
        1
    };
    write!(f, "{number:.digits$} {name}")
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0 as f64, &[BYTES[0], BYTES[5], BYTES[6], BYTES[7], BYTES[8]])
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, &RATES[..5])
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, crate::num::secs(self.0), SPANS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_written() {
        assert_eq!(Bytes::parse("1.5 GiB"), Ok(Bytes(3 << 29)));
        assert_eq!(Bytes::parse("60MB"), Ok(Bytes(60_000_000)));
        assert_eq!(Rate::parse("2 Gb/s"), Ok(Rate(250e6)));
        assert_eq!(Span::parse("0.25 ms"), Ok(Span(250_000)));
        assert_eq!(Part::parse("20 %"), Ok(Part(0.2)));
        let shown = (Bytes(3 << 29).to_string(), Rate(250e6).to_string(), Span(87_000_000).to_string());
        assert_eq!(shown, ("1.50 GiB".to_owned(), "2 Gb/s".to_owned(), "87 ms".to_owned()));
    }

    #[test]
    fn what_is_no_quantity_says_what_would_be_one() {
        for (error, says) in [
            (Bytes::parse("12 parsec").unwrap_err(), "units: B kB"),
            (Bytes::parse("-1 MiB").unwrap_err(), "negative"),
            (Rate::parse("-2 Gb/s").unwrap_err(), "negative"),
            (Rate::parse("0 Gb/s").unwrap_err(), "more than nothing"),
            (Rate::parse("fast").unwrap_err(), "\"2 Gb/s\""),
            (Rate::parse("2 GB").unwrap_err(), "GB/s"),
            (Span::parse("soon").unwrap_err(), "\"87 ms\""),
            (Part::parse("120 %").unwrap_err(), "within 0 and 1"),
        ] {
            assert!(error.contains(says), "{error}");
        }
    }
}
