//! Challenges (`WWW-Authenticate`) that may be passed on: a client sends its password to wherever one points.

use http::{HeaderMap, HeaderValue, Uri, header};

/// Whether a challenge of the seeder at `seeder` points nowhere, or to the seeder itself. Schemes that programs answer by
/// themselves (`Negotiate`, `NTLM`) are none of a registry's.
pub(super) fn is_sound(challenge: &HeaderValue, seeder: &str) -> bool {
    let Ok(text) = challenge.to_str() else { return false };
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or_else(|| (text.trim(), ""));
    let rest = rest.to_ascii_lowercase();
    // A second challenge in the same line would be judged by nobody.
    let more = ["bearer ", "basic ", "negotiate", "ntlm", "digest "].iter().any(|scheme| rest.contains(scheme));
    if more {
        return false;
    }
    match scheme.to_ascii_lowercase().as_str() {
        "basic" => true,
        // One realm, written as everybody reads it.
        "bearer" => realms(&rest) == 1 && realm(&rest).is_some_and(|realm| is_seeders(realm, seeder)),
        _ => false,
    }
}

/// How often a realm is named, however it is written. A repository in the scope may be called so.
fn realms(rest: &str) -> usize {
    rest.split("realm").skip(1).filter(|after| after.trim_start().starts_with('=')).count()
}

fn realm(rest: &str) -> Option<&str> {
    let (realm, _) = rest.split_once("realm=\"")?.1.split_once('"')?;
    Some(realm)
}

fn is_seeders(realm: &str, seeder: &str) -> bool {
    let parts = |text: &str| {
        let uri: Uri = text.parse().ok()?;
        Some((uri.scheme_str()?.to_owned(), uri.authority()?.as_str().to_ascii_lowercase()))
    };
    let found = parts(realm);
    found.is_some() && found == parts(seeder)
}

/// Takes the others out of an answer that is passed on as it is.
pub(super) fn keep_sound(headers: &mut HeaderMap, seeder: &str) {
    let sound: Vec<HeaderValue> =
        headers.get_all(header::WWW_AUTHENTICATE).iter().filter(|value| is_sound(value, seeder)).cloned().collect();
    headers.remove(header::WWW_AUTHENTICATE);
    for value in sound {
        headers.append(header::WWW_AUTHENTICATE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_challenge() {
        crate::mutate::fuzz("challenge", std::path::Path::new("fuzz/corpus/challenge"), &[], |data| {
            if let Ok(value) = HeaderValue::from_bytes(data) {
                // `Basic` points nowhere, whatever it says.
                let points = data.trim_ascii().to_ascii_lowercase().starts_with(b"bearer");
                if points && is_sound(&value, "https://s:1") {
                    let text = String::from_utf8_lossy(data).to_ascii_lowercase();
                    let (_, realm) = text.split_once("realm=\"").expect("it has a realm");
                    assert!(
                        ["/", "\"", "?", "#"].iter().any(|end| realm.starts_with(&format!("https://s:1{end}"))),
                        "{text}"
                    );
                }
            }
        });
    }

    #[test]
    fn a_client_is_sent_nowhere_but_to_the_seeder() {
        let seeder = "https://seeder.example:5000";
        let good = [
            "Basic realm=\"shoal\"",
            "basic",
            "Bearer realm=\"https://seeder.example:5000/token\",service=\"shoal\",scope=\"repository:a:pull\"",
            "bearer realm=\"https://Seeder.Example:5000/v2/token\"",
            "Bearer realm=\"https://seeder.example:5000/token\",scope=\"repository:team/realm:pull\"",
        ];
        let bad = [
            "Bearer realm=\"https://evil.example/token\"",
            "Bearer realm=\"http://seeder.example:5000/token\"",
            "Bearer realm=\"https://seeder.example/token\"",
            "Bearer realm=\"https://seeder.example:5000@evil.example/token\"",
            "Bearer realm=\"https://user@seeder.example:5000/token\"",
            "Bearer realm=\"/token\"",
            "Bearer realm=\"https://seeder.example:5000/token\",realm=\"https://evil.example/\"",
            "Bearer realm=\"https://seeder.example:5000/token\",realm =\"https://evil.example/\"",
            "Basic realm=\"x\", Bearer realm=\"https://evil.example/token\"",
            "Bearer service=\"x\"",
            "Bearer realm=\"https://seeder.example:5000/",
            "Bearer realm=https://evil.example/token,x=\"\",realm=\"https://seeder.example:5000/token\"",
            "Negotiate",
            "NTLM",
            "",
        ];
        let sound = |text: &str| is_sound(&HeaderValue::from_str(text).unwrap(), seeder);
        for text in good {
            assert!(sound(text), "{text}");
        }
        for text in bad {
            assert!(!sound(text), "{text}");
        }
        let mut headers = HeaderMap::new();
        for text in [bad[0], good[0], good[2]] {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_str(text).unwrap());
        }
        keep_sound(&mut headers, seeder);
        assert_eq!(headers.get_all(header::WWW_AUTHENTICATE).iter().collect::<Vec<_>>(), [good[0], good[2]]);
    }
}
