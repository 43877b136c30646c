//! Query strings.

/// The parameters of a request, decoded. Few: looked up by walking.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn read(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v))).collect(),
        )
    }

    /// The first value of `name`.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of `name`.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A plus sign stays one: media types hold it, clients do not all encode it, and nothing here holds a blank.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |c: u8| u8::try_from(char::from(c).to_digit(16).unwrap_or(0)).unwrap_or(0);
                bytes.push(digit(*high) << 4 | digit(*low));
                rest = after;
            }
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Text as it may stand in a query.
pub(super) fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_may_repeat() {
        let query = Query::read("digest=sha256%3Aab&tag=a&tag=b%2fc&n&=x&bad=%zz%4");
        assert_eq!(query.first("digest"), Some("sha256:ab"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a", "b/c"]);
        assert_eq!((query.first("n"), query.first("bad"), query.first("none")), (Some(""), Some("%zz%4"), None));
        assert_eq!(Query::read("t=a/b+json").first("t"), Some("a/b+json"));
        assert_eq!(Query::read(&format!("x={}", encode("a/b c+:é"))).first("x"), Some("a/b c+:é"));
    }

    #[test]
    fn fuzz_query() {
        crate::mutate::fuzz("query", std::path::Path::new("fuzz/corpus/query"), &[], |data| {
            let Ok(text) = std::str::from_utf8(data) else { return };
            let query = Query::read(text);
            assert!(query.0.len() <= data.len());
            for (key, value) in &query.0 {
                assert_eq!(decode(&encode(key)), *key);
                assert_eq!(decode(&encode(value)), *value);
            }
        });
    }
}
