//! What a guest may answer. A reply that breaks HTTP is the guest's fault, and is named as that.

use hop3_common::{
    codes::{Code, Problem},
    wire::{HEADERS_BYTES_MAX, HEADERS_MAX, ServiceReply},
};

/// Checks a reply.
///
/// # Errors
/// [`Code::ReplyInvalid`], with what is wrong.
pub(crate) fn check(reply: &ServiceReply) -> Result<(), Problem> {
    if !(100..=599).contains(&reply.status) {
        let status = reply.status;
        return Err(invalid(format!(
            "its status {status} is not from 100 to 599"
        )));
    }
    if reply.status < 200 && (reply.status != 101 || reply.stream.is_none()) {
        let status = reply.status;
        let text = format!("its status {status} is no end: of 1xx only 101 is, with a stream");
        return Err(invalid(text));
    }
    if reply.headers.len() > HEADERS_MAX {
        return Err(invalid(format!("it has more than {HEADERS_MAX} headers")));
    }
    let mut bytes = 0;
    for (name, value) in &reply.headers {
        bytes += name.len() + value.len();
        if name.is_empty() || !name.bytes().all(is_token) {
            let name: String = name.chars().take(80).collect();
            return Err(invalid(format!(
                "`{name}` is no header's name in lower case"
            )));
        }
        if !value
            .iter()
            .all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
        {
            return Err(invalid(format!("header `{name}` has a control character")));
        }
    }
    if bytes > HEADERS_BYTES_MAX {
        return Err(invalid(format!(
            "its headers have more than {HEADERS_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

pub(crate) fn invalid(what: impl std::fmt::Display) -> Problem {
    Problem::new(
        Code::ReplyInvalid,
        format!("the guest's reply is invalid: {what}"),
    )
}

/// A character of a header's name (RFC 9110's token, lower case).
fn is_token(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn reply(status: u16, headers: &[(&str, &[u8])]) -> ServiceReply {
        let owned =
            |(name, value): &(&str, &[u8])| ((*name).to_owned(), Bytes::copy_from_slice(value));
        ServiceReply {
            status,
            headers: headers.iter().map(owned).collect(),
            body: Bytes::new(),
            stream: None,
        }
    }

    #[test]
    fn bad_replies_are_named() {
        let wrong = |status, headers: &[(&str, &[u8])]| {
            let problem = check(&reply(status, headers)).unwrap_err();
            assert_eq!(problem.code, Code::ReplyInvalid);
            problem.message
        };
        assert!(wrong(99, &[]).contains("99"));
        assert!(wrong(600, &[]).contains("600"));
        assert!(wrong(103, &[]).contains("103"));
        assert!(wrong(101, &[]).contains("with a stream"));
        assert!(wrong(200, &[("a b", b"")]).contains("`a b`"));
        assert!(wrong(200, &[("X-Y", b"")]).contains("lower case"));
        assert!(wrong(200, &[("x", b"a\r\nset-cookie: b")]).contains("control"));
        assert!(wrong(200, &[("x", &[b'a'; HEADERS_BYTES_MAX])]).contains("bytes"));
        assert!(wrong(200, &[("x", b"a" as &[u8]); 65]).contains("more than 64"));
        check(&reply(200, &[("x", b"a\tb"), ("x", b"\xff")])).unwrap();
    }

    proptest! {
        /// What passes here, the HTTP library takes.
        #[test]
        fn what_passes_is_http(
            status in 0u16..700,
            name in "[a-zA-Z:_-]{0,6}",
            value in proptest::collection::vec(any::<u8>(), 0..6),
        ) {
            if check(&reply(status, &[(&name, &value)])).is_ok() {
                prop_assert!(axum::http::StatusCode::from_u16(status).is_ok());
                prop_assert!(axum::http::HeaderName::from_bytes(name.as_bytes()).is_ok());
                prop_assert!(axum::http::HeaderValue::from_bytes(&value).is_ok());
            }
        }
    }
}
