//! Small pieces of HTTP: percent-encoding, query strings, header lines, cookies.

/// `%41` and, in a query, `+` decoded; what is not an escape stays as it is.
pub(crate) fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| hex(bytes.get(at + 1..at + 3)?));
        match (escaped.flatten(), byte) {
            (Some(decoded), _) => {
                out.push(decoded);
                at += 3;
                continue;
            }
            (None, b'+') if plus_is_space => out.push(b' '),
            (None, byte) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low] = digits else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

/// The first value of `name` in a query string.
pub(crate) fn query(text: &str, name: &str) -> Option<String> {
    text.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key, true) == name).then(|| decode(value, true))
    })
}

/// Lines `name: value`, as the host gives them.
pub(crate) fn headers(lines: &str) -> Vec<(String, String)> {
    let split = |line: &str| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_owned(), value.to_owned()))
    };
    lines.lines().filter_map(split).collect()
}

/// A header's value, by its name in any case.
pub(crate) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// A cookie's value in the value of a `cookie` header.
pub(crate) fn cookie<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    header.split(';').find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_broken_ones_left() {
        assert_eq!(decode("a%20b%2Fc", false), "a b/c");
        assert_eq!(decode("a+b%", true), "a b%");
        assert_eq!(decode("%zz%4", false), "%zz%4");
        assert_eq!(decode("%C3%A9", false), "é");
        assert_eq!(decode("%+1", false), "%+1");
    }

    #[test]
    fn queries_are_searched_by_name() {
        assert_eq!(query("a=1&b=x+y&b=2", "b").as_deref(), Some("x y"));
        assert_eq!(query("flag&a=1", "flag").as_deref(), Some(""));
        assert_eq!(query("a=1", "b"), None);
    }

    #[test]
    fn headers_and_cookies_are_found() {
        let all = headers("host: h\ncookie: a=1; session=s7\nempty: \n");
        assert_eq!(header(&all, "Host"), Some("h"));
        assert_eq!(header(&all, "empty"), Some(""));
        let cookies = header(&all, "cookie").unwrap_or_default();
        assert_eq!(cookie(cookies, "session"), Some("s7"));
        assert_eq!(cookie(cookies, "sess"), None);
    }
}
