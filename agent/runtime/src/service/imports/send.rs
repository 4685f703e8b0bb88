//! Messages to topics and calls of services.

use bytes::Bytes;

use super::reply::is_token;
use super::{Answer, Cx, DENIED, INVALID, LIMIT, NOT_NOW, Refused, refuse};
use crate::service::types::{CALLS_MAX, Effect};

pub(super) fn publish(cx: &mut Cx<'_>, topic: (u32, u32), at: (u32, u32)) -> Answer<i32> {
    let (topic, payload) = (cx.text(topic)?, cx.bytes(at)?);
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let Some(topic) = topic.filter(|topic| is_topic(topic)) else {
        refuse!(INVALID);
    };
    if !cx
        .data
        .setup
        .publish
        .iter()
        .any(|grant| covers(grant, topic))
    {
        refuse!(DENIED);
    }
    let bytes = (topic.len() + payload.len()) as u64;
    let sent = cx.data.call.sent.published + bytes;
    if sent > cx.sent_max() || !cx.has_room() {
        refuse!(LIMIT);
    }
    let kept = cx.data.call.letters.map(|letters| letters.and(bytes));
    if kept == Some(None) {
        refuse!(LIMIT);
    }
    let (topic, payload) = (topic.to_owned(), Bytes::copy_from_slice(payload));
    cx.data.call.sent.published = sent;
    cx.data.call.letters = kept.flatten();
    cx.data.held.counters.effects += 1;
    let seq = cx.data.held.counters.effects;
    cx.data.call.effects.push(Effect::Publish {
        seq,
        topic,
        payload,
    });
    Ok(Ok(0))
}

/// Segments between slashes, none of them empty or a pattern.
fn is_topic(topic: &str) -> bool {
    topic
        .split('/')
        .all(|part| !part.is_empty() && part != "*" && !part.contains(char::is_control))
}

/// Whether a granted topic is `topic`, or one of which all below are granted.
fn covers(grant: &str, topic: &str) -> bool {
    match grant.strip_suffix('*') {
        Some(above) if above.ends_with('/') => {
            topic.len() > above.len() && topic.starts_with(above)
        }
        _ => grant == topic,
    }
}

pub(super) fn call(cx: &mut Cx<'_>, head: [(u32, u32); 3], at: (u32, u32)) -> Answer<i64> {
    let [service, method, path] = head;
    let (service, method, path) = (cx.text(service)?, cx.text(method)?, cx.text(path)?);
    let body = cx.bytes(at)?;
    if cx.data.call.is_quiet() {
        refuse!(NOT_NOW);
    }
    let (Some(service), Some(method), Some(path)) = (service, method, path) else {
        refuse!(INVALID);
    };
    let path_ok = path.starts_with('/') && path.bytes().all(|byte| matches!(byte, 33..127));
    if !is_token(method.as_bytes()) || !path_ok {
        refuse!(INVALID);
    }
    if !cx.data.setup.calls.contains(service) {
        refuse!(DENIED);
    }
    let bytes = service.len() + method.len() + path.len() + body.len();
    let sent = cx.data.call.sent.called + bytes as u64;
    if sent > cx.sent_max() || !cx.has_room() || cx.data.call.calls >= CALLS_MAX {
        refuse!(LIMIT);
    }
    let [service, method, path] = [service, method, path].map(str::to_owned);
    let body = Bytes::copy_from_slice(body);
    cx.data.call.sent.called = sent;
    cx.data.call.calls += 1;
    cx.data.held.counters.effects += 1;
    let call = cx.data.held.counters.effects;
    let effect = Effect::Call {
        call,
        service,
        method,
        path,
        body,
    };
    cx.data.call.effects.push(effect);
    Ok(Ok(call.cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_cover_themselves_and_what_is_below_a_star() {
        assert!(covers("a/b", "a/b") && !covers("a/b", "a/b/c") && !covers("a/b", "a"));
        assert!(covers("a/*", "a/b") && covers("a/*", "a/b/c"));
        assert!(!covers("a/*", "a/") && !covers("a/*", "a") && !covers("a/*", "ab/c"));
        assert!(!covers("*", "a") && !covers("a*", "ab"));
        assert!(is_topic("a/b") && !is_topic("a//b") && !is_topic("") && !is_topic("a/*"));
    }
}
