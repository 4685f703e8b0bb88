//! What the gateway decides, apart from how it is done: where a request belongs, whom to ask,
//! what an attempt's outcome means, how long to pause. No clock, no I/O.

use std::time::Duration;

use hop3_common::{
    codes::{Code, Problem},
    spec::{KeyFrom, State, service::shard_of},
    wire::{ServiceReply, ServiceRequest},
};

use crate::{Attempt, ServiceInfo};

/// Least time between two attempts of a request, even while instances come and go: a router that
/// changes fast must not make requests spin.
pub(crate) const ATTEMPT_FLOOR: Duration = Duration::from_millis(1);
/// First pause after an instance refused and nothing has changed since.
pub(crate) const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest such pause: a full instance is asked again at least this often.
pub(crate) const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What to do after an attempt.
#[derive(Debug)]
pub(crate) enum Next {
    /// It is decided.
    Done(Result<ServiceReply, Problem>),
    /// Try again later: it surely did not happen.
    Again(Problem),
    /// Try again later: it may have happened, and repeating it changes nothing.
    Repeat(Problem),
}

/// Whether repeating the request changes nothing.
pub(crate) fn repeatable(request: &ServiceRequest) -> bool {
    matches!(request.method.as_str(), "GET" | "HEAD" | "OPTIONS")
        || request.idempotency_key.is_some()
}

/// What an attempt's outcome means for a request.
pub(crate) fn judge(attempt: Attempt, repeatable: bool) -> Next {
    match attempt {
        Attempt::Replied(reply) => Next::Done(Ok(reply)),
        Attempt::Failed(problem) => Next::Done(Err(problem)),
        Attempt::NotDelivered(problem) => Next::Again(problem),
        Attempt::Unknown(problem) if repeatable => Next::Repeat(problem),
        Attempt::Unknown(problem) => Next::Done(Err(unknown(problem))),
    }
}

fn unknown(problem: Problem) -> Problem {
    if problem.code == Code::OutcomeUnknown {
        return problem;
    }
    let message = format!(
        "the request may have happened or not: {}. It was not repeated, for it has neither a safe \
         method nor an `Idempotency-Key`",
        problem.message
    );
    Problem::new(Code::OutcomeUnknown, message)
}

/// The pause after `refusals` attempts in a row that were refused (from 1).
pub(crate) fn pause(refusals: u32) -> Duration {
    let doublings = refusals.saturating_sub(1).min(16);
    PAUSE_MIN.saturating_mul(1 << doublings).min(PAUSE_MAX)
}

/// The least busy of `loads` (index, requests in flight) that is not in `tried`; among equals the
/// next one from `turn` on. Its place in `loads`.
pub(crate) fn least_busy(loads: &[(u32, u32)], tried: &[u32], turn: usize) -> Option<usize> {
    let len = loads.len();
    (0..len)
        .map(|step| (turn % len + step) % len)
        .filter(|&at| !tried.contains(&loads[at].0))
        .min_by_key(|&at| loads[at].1)
}

/// Which instance a request is for: `None` is any replica.
///
/// # Errors
/// There is no such instance, or the request lacks its key: the message says where it belongs.
pub fn target(
    info: &ServiceInfo,
    index: Option<u32>,
    request: &ServiceRequest,
) -> Result<Option<u32>, Problem> {
    if let Some(index) = index {
        if index < info.count {
            return Ok(Some(index));
        }
        let message = format!(
            "service `{}` has no instance {index}: it has {}, counted from 0",
            info.name, info.count
        );
        return Err(Problem::new(Code::InvalidField, message));
    }
    match info.state {
        State::None => Ok(None),
        State::Single => Ok(Some(0)),
        State::Keyed => key(info, request).map(|key| Some(shard_of(&key, info.count))),
    }
}

fn key(info: &ServiceInfo, request: &ServiceRequest) -> Result<Vec<u8>, Problem> {
    let (found, place) = match &info.key {
        KeyFrom::Path(n) => {
            let path = request.path.split('?').next().unwrap_or_default();
            let segment = path.split('/').nth(usize::from(*n)).map(unescape);
            (segment, format!("segment {n} of the path"))
        }
        KeyFrom::Header(name) => {
            let header = request.headers.iter().find(|(known, _)| known == name);
            let value = header.map(|(_, value)| value.to_vec());
            (value, format!("the header `{name}`"))
        }
    };
    found.filter(|key| !key.is_empty()).ok_or_else(|| {
        let message = format!(
            "the request has no key: service `{}` expects it in {place}",
            info.name
        );
        Problem::new(Code::InvalidField, message)
    })
}

/// A path segment without its percent escapes, so that every spelling of a key is the same key.
/// What is not an escape stays.
fn unescape(segment: &str) -> Vec<u8> {
    let hex = |b: Option<&u8>| b.and_then(|&b| char::from(b).to_digit(16));
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let pair = (hex(bytes.get(at + 1)), hex(bytes.get(at + 2)));
        if let (b'%', (Some(high), Some(low))) = (byte, pair) {
            out.push(u8::try_from(high * 16 + low).unwrap_or_default());
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use hop3_common::spec::Millis;
    use proptest::prelude::*;

    use super::*;

    fn keyed(key: &str) -> ServiceInfo {
        ServiceInfo {
            name: "store".parse().unwrap(),
            state: State::Keyed,
            count: 8,
            key: key.parse().unwrap(),
            public: true,
            deadline: Millis(1),
            request_bytes_max: 1,
        }
    }

    fn request(path: &str) -> ServiceRequest {
        ServiceRequest {
            method: "POST".to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Bytes::new(),
            more: false,
            idempotency_key: None,
            from: None,
        }
    }

    #[test]
    fn a_key_has_one_shard_however_it_is_spelt() {
        let info = keyed("path/2");
        let shard = |path: &str| target(&info, None, &request(path));
        let expected = Ok(Some(shard_of(b"pump 1", 8)));
        for path in ["/x/pump%201", "/y/pump%201/z?q=/a/b", "/x/%70ump%201"] {
            assert_eq!(shard(path), expected, "{path}");
        }
        assert_eq!(shard("/x/50%/z"), Ok(Some(shard_of(b"50%", 8))));
        for path in ["/", "/x", "/x/", "/x//y", "/x?/k/k"] {
            let problem = shard(path).unwrap_err();
            assert_eq!(problem.code, Code::InvalidField);
            assert!(
                problem.message.contains("segment 2 of the path"),
                "{problem}"
            );
        }
    }

    #[test]
    fn a_key_may_be_a_header() {
        let info = keyed("header/x-device");
        let mut request = request("/");
        let problem = target(&info, None, &request).unwrap_err();
        assert!(problem.message.contains("header `x-device`"), "{problem}");
        request.headers = vec![("x-device".to_owned(), Bytes::from_static(b"d7"))];
        assert_eq!(target(&info, None, &request), Ok(Some(shard_of(b"d7", 8))));
    }

    #[test]
    fn an_instance_that_is_named_must_exist() {
        let info = keyed("path/1");
        assert_eq!(target(&info, Some(7), &request("/")), Ok(Some(7)));
        let problem = target(&info, Some(8), &request("/")).unwrap_err();
        assert_eq!(problem.code, Code::InvalidField);
    }

    #[test]
    fn pauses_grow_to_their_bound() {
        assert_eq!(pause(1), PAUSE_MIN);
        assert_eq!(pause(2), PAUSE_MIN * 2);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn equals_take_turns() {
        let loads = [(4, 1), (5, 0), (6, 0)];
        let taken: Vec<_> = (0..6).map(|turn| least_busy(&loads, &[], turn)).collect();
        assert_eq!(taken, [1, 1, 2, 1, 1, 2].map(Some));
        assert_eq!(least_busy(&loads, &[5, 6], 0), Some(0));
        assert_eq!(least_busy(&[], &[], 3), None);
    }

    proptest! {
        #[test]
        fn the_least_busy_is_taken(
            loads in proptest::collection::vec((0u32..20, 0u32..5), 0..12),
            tried in proptest::collection::vec(0u32..20, 0..6),
            turn in any::<usize>(),
        ) {
            let open = |at: usize| !tried.contains(&loads[at].0);
            match least_busy(&loads, &tried, turn) {
                None => prop_assert!((0..loads.len()).all(|at| !open(at))),
                Some(taken) => {
                    prop_assert!(open(taken));
                    let fewer = |at: &usize| open(*at) && loads[*at].1 < loads[taken].1;
                    prop_assert!(!(0..loads.len()).any(|at| fewer(&at)));
                }
            }
        }
    }
}
