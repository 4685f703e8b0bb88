//! The head of a request: which service, with what path and headers, and by whose token. Pure.
//!
//! Limits: those of [`hop3_common::wire`] for path, headers and idempotency key.

use std::time::Duration;

use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{
        AUTHORIZATION, CONNECTION, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
        SEC_WEBSOCKET_PROTOCOL, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
    spec::Millis,
    wire::{
        CALL_KEY, HEADERS_BYTES_MAX, HEADERS_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PATH_BYTES_MAX,
        ServiceRequest,
    },
};

/// A token, where `Authorization` cannot be set.
const TOKEN: &str = "hop3-token";
/// A shorter deadline.
const DEADLINE: &str = "hop3-request-deadline";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// A WebSocket subprotocol that carries a token: browsers can set nothing else.
const BEARER_PROTOCOL: &str = "hop3.bearer.";
/// Longest token that is looked at, bytes.
const TOKEN_BYTES_MAX: usize = 512;
/// Longest method, bytes.
const METHOD_BYTES_MAX: usize = 32;

/// The service that a request is for, and its path there.
pub(super) fn split(uri: &Uri) -> Result<(ServiceName, String), Problem> {
    let whole = uri.path_and_query().map_or("", |path| path.as_str());
    let Some(whole) = whole.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
        let message = "no service is named: services are at /NAME and below";
        return Err(Problem::new(Code::NotFound, message));
    };
    if whole.len() > PATH_BYTES_MAX {
        let message = format!("the path with its query has more than {PATH_BYTES_MAX} bytes");
        return Err(Problem::new(Code::TooLarge, message));
    }
    let end = whole.find(['/', '?']).unwrap_or(whole.len());
    let (name, rest) = whole.split_at(end);
    let name = name.parse().map_err(|error| {
        let message = format!("the path does not begin with a service's name: {error}");
        Problem::new(Code::InvalidField, message)
    })?;
    let path = if rest.starts_with('/') {
        rest.to_owned()
    } else {
        format!("/{rest}")
    };
    Ok((name, path))
}

/// The token that a request carries.
pub(super) fn token(headers: &HeaderMap) -> Option<&str> {
    let text = |value: &'_ HeaderValue| value.len() <= TOKEN_BYTES_MAX && value.to_str().is_ok();
    let get = |name: &str| headers.get(name).filter(|value| text(value));
    let bearer = get(AUTHORIZATION.as_str())
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    bearer
        .or_else(|| get(TOKEN).and_then(|value| value.to_str().ok()))
        .or_else(|| protocols(headers).find_map(|name| name.strip_prefix(BEARER_PROTOCOL)))
}

/// The WebSocket subprotocols that a client offers, tokens included.
fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
}

/// Whether a client offers the WebSocket subprotocol `name`.
pub(super) fn offers(headers: &HeaderMap, name: &str) -> bool {
    protocols(headers).any(|known| known == name)
}

/// The request as the guest sees it, without its body; and the deadline that it asks for.
pub(super) fn request(
    parts: &Parts,
    path: String,
    websocket: bool,
) -> Result<(ServiceRequest, Option<Duration>), Problem> {
    let method = parts.method.as_str();
    let tunnel = matches!(method, "CONNECT" | "TRACE") && !websocket;
    if tunnel || method.len() > METHOD_BYTES_MAX {
        let message = format!("a service takes no {:.32}", method);
        return Err(Problem::new(Code::InvalidField, message));
    }
    let deadline = deadline(&parts.headers)?;
    let request = ServiceRequest {
        // A WebSocket over HTTP/2 begins with CONNECT: to the guest they are the same.
        method: if websocket { "GET" } else { method }.to_owned(),
        path,
        headers: headers(parts, websocket)?,
        body: Bytes::new(),
        more: false,
        idempotency_key: idempotency_key(&parts.headers)?,
        from: None,
    };
    Ok((request, deadline))
}

fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Problem> {
    let Some(value) = headers.get(DEADLINE) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("?");
    match text.parse::<Millis>() {
        Ok(millis) if millis.0 > 0 => Ok(Some(Duration::from_millis(millis.0))),
        Ok(_) => Err(field(DEADLINE, "must be more than 0")),
        Err(error) => Err(field(DEADLINE, error)),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(key) if key.starts_with(CALL_KEY) => {
            let message = format!("must not begin with `{CALL_KEY}`: such keys are Hop3's own");
            Err(field(IDEMPOTENCY_KEY, message))
        }
        Ok(key) if (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => {
            let range = format!("must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible characters");
            Err(field(IDEMPOTENCY_KEY, range))
        }
    }
}

fn field(name: &str, what: impl std::fmt::Display) -> Problem {
    Problem::new(
        Code::InvalidField,
        format!("the header `{name}` is wrong: {what}"),
    )
}

/// Whether a header is of the connection, not of the request or reply.
pub(super) fn of_connection(name: &HeaderName) -> bool {
    let known = [
        CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
    ];
    known.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

/// Whether a header is for the gateway only.
fn of_gateway(name: &HeaderName) -> bool {
    *name == AUTHORIZATION || *name == EXPECT || matches!(name.as_str(), TOKEN | DEADLINE)
}

/// The headers for the guest. Their values are copied into one piece of memory.
fn headers(parts: &Parts, websocket: bool) -> Result<Vec<(String, Bytes)>, Problem> {
    let all = &parts.headers;
    let bytes: usize = all
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if all.len() > HEADERS_MAX || bytes > HEADERS_BYTES_MAX {
        let message = format!(
            "the request has {} headers with {bytes} bytes: no more than {HEADERS_MAX} with \
             {HEADERS_BYTES_MAX} bytes may be",
            all.len()
        );
        return Err(Problem::new(Code::TooLarge, message));
    }
    let listed: Vec<&str> = all
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let mut values = BytesMut::with_capacity(bytes + 1);
    let mut out = Vec::with_capacity(all.len() + 2);
    for (name, value) in all {
        let unlisted = !listed
            .iter()
            .any(|known| name.as_str().eq_ignore_ascii_case(known));
        if of_connection(name) || of_gateway(name) || !unlisted {
            continue;
        }
        if *name == SEC_WEBSOCKET_PROTOCOL {
            continue;
        }
        values.put_slice(value.as_bytes());
        out.push((name.as_str().to_owned(), values.split().freeze()));
    }
    let offered: Vec<&str> = protocols(all)
        .filter(|name| !name.starts_with(BEARER_PROTOCOL))
        .collect();
    if !offered.is_empty() {
        let name = SEC_WEBSOCKET_PROTOCOL.as_str().to_owned();
        out.push((name, Bytes::from(offered.join(", "))));
    }
    if websocket {
        // Of the connection, but how else would the guest know?
        let value = Bytes::from_static(b"websocket");
        out.push((UPGRADE.as_str().to_owned(), value));
    }
    if let (Some(authority), false) = (parts.uri.authority(), all.contains_key(HOST)) {
        let value = Bytes::copy_from_slice(authority.as_str().as_bytes());
        out.push((HOST.as_str().to_owned(), value));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::Request;

    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method("POST").uri("/a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn names(request: &ServiceRequest) -> Vec<&str> {
        request
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }

    #[test]
    fn the_first_segment_is_the_service() {
        let split = |uri: &str| split(&uri.parse().unwrap());
        for (uri, path) in [
            ("/shop", "/"),
            ("/shop/", "/"),
            ("/shop?q=/x", "/?q=/x"),
            ("/shop/a//b/?q", "/a//b/?q"),
            ("http://host/shop/a%2Fb", "/a%2Fb"),
        ] {
            let (name, rest) = split(uri).unwrap();
            assert_eq!((name.as_str(), rest.as_str()), ("shop", path), "{uri}");
        }
        let code = |uri: &str| split(uri).unwrap_err().code;
        assert_eq!(code("/"), Code::NotFound);
        assert_eq!(code("*"), Code::NotFound);
        assert_eq!(code("//shop"), Code::InvalidField);
        assert_eq!(code("/Shop/a"), Code::InvalidField);
        assert_eq!(
            code(&format!("/shop/{}", "x".repeat(PATH_BYTES_MAX))),
            Code::TooLarge
        );
    }

    #[test]
    fn tokens_are_found_and_never_passed_on() {
        for header in [
            ("authorization", "Bearer s3cret"),
            ("authorization", "bearer s3cret"),
            ("hop3-token", "s3cret"),
            ("sec-websocket-protocol", "chat, hop3.bearer.s3cret"),
        ] {
            let parts = parts(&[header, ("x-a", "1")]);
            assert_eq!(token(&parts.headers), Some("s3cret"), "{header:?}");
            let (request, _) = request(&parts, "/".to_owned(), false).unwrap();
            let seen = format!("{request:?}");
            assert!(!seen.contains("s3cret"), "{seen}");
            assert!(names(&request).contains(&"x-a"));
        }
        assert_eq!(token(&parts(&[("authorization", "Basic x")]).headers), None);
        assert_eq!(token(&HeaderMap::new()), None);
    }

    #[test]
    fn headers_of_the_connection_stay_here() {
        let parts = parts(&[
            ("connection", "close, X-Hop"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-hop", "1"),
            ("hop3-request-deadline", "500ms"),
            ("idempotency-key", "k1"),
            ("accept", "*/*"),
        ]);
        let (plain, deadline) = request(&parts, "/".to_owned(), false).unwrap();
        assert_eq!(names(&plain), ["idempotency-key", "accept"]);
        assert_eq!(plain.idempotency_key.as_deref(), Some("k1"));
        assert_eq!(deadline, Some(Duration::from_millis(500)));
        let (socket, _) = request(&parts, "/".to_owned(), true).unwrap();
        assert_eq!(socket.method, "GET");
        assert!(names(&socket).contains(&"upgrade"));
    }

    #[test]
    fn wrong_headers_are_named() {
        let wrong =
            |headers: &[(&str, &str)]| request(&parts(headers), "/".to_owned(), false).unwrap_err();
        let long = "x".repeat(IDEMPOTENCY_KEY_BYTES_MAX + 1);
        for (name, value) in [
            ("idempotency-key", long.as_str()),
            ("idempotency-key", ""),
            ("idempotency-key", "hop3:x"),
            ("hop3-request-deadline", "soon"),
            ("hop3-request-deadline", "0"),
        ] {
            let problem = wrong(&[(name, value)]);
            assert_eq!(problem.code, Code::InvalidField);
            assert!(problem.message.contains(name), "{problem}");
        }
        let big = "x".repeat(HEADERS_BYTES_MAX);
        assert_eq!(wrong(&[("x", &big)]).code, Code::TooLarge);
        assert_eq!(wrong(&[("x", "1"); HEADERS_MAX + 1]).code, Code::TooLarge);
    }
}
