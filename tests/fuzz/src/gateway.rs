//! A client's request on its way through a gateway: whatever it says, the guest sees a request
//! within the limits and without the token, at the instance of its key.

use std::{
    sync::{Arc, LazyLock, Mutex},
    time::Instant,
};

use axum::{body::Body, http};
use bytes::Bytes;
use hop3_common::{
    codes::{Code, Problem},
    id::ServiceName,
    spec::{KeyFrom, Millis, State},
    wire::{
        ClientUp, HEADERS_BYTES_MAX, HEADERS_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PATH_BYTES_MAX,
        ServiceReply, ServiceRequest,
    },
};
use hop3_gateway::{Attempt, Gateway, Instance, Link, Options, Pick, Router, ServiceInfo, target};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use crate::input::{Input, put_part};

/// The token that the service wants.
const TOKEN: &str = "s3cret-t0ken";
/// Instances of the service.
const SHARDS: u32 = 7;
/// Largest body in one piece.
const BODY_BYTES_MAX: u64 = 1_000;

/// Keeps the last request that reached an instance, and which one that was.
#[derive(Default)]
struct Seen(Mutex<Option<(u32, ServiceRequest)>>);

struct One(u32, Arc<Seen>);

#[async_trait::async_trait]
impl Instance for One {
    fn index(&self) -> u32 {
        self.0
    }
    fn in_flight(&self) -> u32 {
        0
    }
    async fn call(&self, request: &ServiceRequest, _: Instant) -> Attempt {
        *self.1.0.lock().unwrap() = Some((self.0, request.clone()));
        Attempt::Replied(ServiceReply {
            status: 200,
            headers: Vec::new(),
            body: request.body.clone(),
            stream: None,
        })
    }
    async fn attach(&self, _: ClientUp, _: Instant) -> Result<Box<dyn Link>, Problem> {
        Err(Problem::new(Code::StreamGone, "there are none"))
    }
}

struct World {
    info: Arc<ServiceInfo>,
    seen: Arc<Seen>,
}

#[async_trait::async_trait]
impl Router for World {
    fn service(&self, name: &ServiceName) -> Result<Arc<ServiceInfo>, Problem> {
        match *name == self.info.name {
            true => Ok(Arc::clone(&self.info)),
            false => Err(Problem::new(Code::ServiceUnknown, "no such service")),
        }
    }
    fn pick(&self, _: &ServiceName, index: Option<u32>) -> Pick {
        let all = index.map_or(0..SHARDS, |index| index..index + 1);
        let one = |index| Arc::new(One(index, Arc::clone(&self.seen))) as Arc<dyn Instance>;
        Pick::Ready(all.map(one).collect())
    }
    fn version(&self) -> u64 {
        1
    }
    async fn changed(&self, _: u64) {
        std::future::pending().await
    }
    fn authenticate(&self, token: &str) -> Result<(), Problem> {
        match token == TOKEN {
            true => Ok(()),
            false => Err(Problem::new(Code::Unauthenticated, "another token")),
        }
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
});

fn info(kind: u8) -> ServiceInfo {
    let key = match kind >> 2 & 3 {
        0 => KeyFrom::Header("x-key".into()),
        n => KeyFrom::Path(n),
    };
    ServiceInfo {
        name: "shop".parse().unwrap(),
        state: [State::Keyed, State::Single, State::None, State::Keyed][usize::from(kind & 3)],
        count: SHARDS,
        key,
        public: false,
        deadline: Millis::secs(10),
        request_bytes_max: BODY_BYTES_MAX,
    }
}

/// A request: kind of service, method, URI, headers as lines, body. One that is no HTTP never
/// comes so far.
pub fn gateway(data: &[u8]) -> bool {
    let mut input = Input(data);
    let kind = input.u8();
    let info = info(kind);
    let (method, uri, lines) = (input.part(), input.part(), input.part());
    let body = input.0;
    let method = http::Method::from_bytes(method).unwrap_or(http::Method::POST);
    let Ok(uri) = http::Uri::try_from(uri) else {
        return false;
    };
    let mut request = http::Request::builder().method(method).uri(uri);
    if kind & 0x80 == 0 {
        request = request.header("authorization", format!("Bearer {TOKEN}"));
    }
    for line in lines.split(|byte| *byte == b'\n') {
        let at = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(at.unwrap_or(line.len()));
        let name = http::HeaderName::from_bytes(name);
        let value = http::HeaderValue::from_bytes(value.strip_prefix(b":").unwrap_or(value));
        if let (Ok(name), Ok(value)) = (name, value) {
            request = request.header(name, value);
        }
    }
    let Ok(request) = request.body(Body::from(body.to_vec())) else {
        return false;
    };
    deliver(info, request, body)
}

fn deliver(info: ServiceInfo, request: http::Request<Body>, body: &[u8]) -> bool {
    let (info, seen) = (Arc::new(info), Arc::new(Seen::default()));
    let world = World {
        info: Arc::clone(&info),
        seen: Arc::clone(&seen),
    };
    let gateway = Gateway::new(Arc::new(world), Options::default());
    let answered = RUNTIME.block_on(gateway.http().oneshot(request)).unwrap();
    let Some((index, seen)) = seen.0.lock().unwrap().take() else {
        // Refused, or for the gateway itself.
        return false;
    };
    check(&info, index, &seen);
    assert!(body.starts_with(&seen.body));
    let status = answered.status();
    if seen.body.len() == body.len() {
        assert_eq!(status, 200, "{answered:?}");
    } else {
        assert!(seen.more && body.len() as u64 > BODY_BYTES_MAX);
        assert_eq!(status, 413);
    }
    true
}

/// What a guest may see.
fn check(info: &ServiceInfo, index: u32, seen: &ServiceRequest) {
    assert!(seen.path.starts_with('/') && seen.path.len() <= PATH_BYTES_MAX);
    assert!(
        seen.headers.len() <= HEADERS_MAX + 2,
        "and two of the gateway's"
    );
    let bytes = |(name, value): &(String, Bytes)| name.len() + value.len();
    let bytes: usize = seen.headers.iter().map(bytes).sum();
    // A host from the URI may come on top, and what lists gain by their commas.
    assert!(bytes <= HEADERS_BYTES_MAX + PATH_BYTES_MAX * 2, "{bytes}");
    for (name, _) in &seen.headers {
        let gone = [
            "authorization",
            "hop3-token",
            "transfer-encoding",
            "connection",
        ];
        assert!(!gone.contains(&name.as_str()), "{name} was passed on");
        assert_eq!(*name, name.to_ascii_lowercase());
    }
    let key = seen.idempotency_key.as_ref().map_or(1, String::len);
    assert!((1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key));

    let chosen = target(info, None, seen).expect("it was delivered");
    assert!(chosen.is_none_or(|chosen| chosen == index), "another shard");
    // Every spelling of a path is the same key.
    if let KeyFrom::Path(_) = info.key {
        let mut again = seen.clone();
        again.path = respelled(&seen.path);
        assert_eq!(target(info, None, &again), Ok(chosen), "{}", again.path);
    }
}

/// The path with all that can be escaped escaped, but for what is an escape already.
fn respelled(path: &str) -> String {
    let mut out = String::new();
    let (path, query) = path.split_once('?').map_or((path, ""), |both| both);
    for byte in path.bytes() {
        match byte {
            b'/' | b'%' => out.push(char::from(byte)),
            // A digit may be part of an escape.
            byte if byte.is_ascii_hexdigit() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02x}")),
        }
    }
    format!("{out}?{query}")
}

/// Seeds of [`gateway`].
#[must_use]
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |kind: u8, method: &str, uri: &str, lines: &str, body: &str| {
        let mut out = vec![kind];
        for part in [method, uri, lines] {
            put_part(&mut out, part.as_bytes());
        }
        out.extend_from_slice(body.as_bytes());
        out
    };
    let long = "x".repeat(2_000);
    let token = format!("hop3-token:{TOKEN}\nsec-websocket-protocol:chat, hop3.bearer.{TOKEN}");
    let socket = "connection:upgrade\nupgrade:websocket\nsec-websocket-version:13\n\
                  sec-websocket-key:dGhlIHNhbXBsZSBub25jZQ==";
    vec![
        (
            "ok-key-in-path".into(),
            of(4, "GET", "/shop/dev%20ice/a?b=c", "", ""),
        ),
        (
            "ok-key-in-header".into(),
            of(0, "POST", "/shop", "X-Key:dev 1\naccept:*/*", "body"),
        ),
        (
            "ok-single".into(),
            of(1, "PUT", "/shop/", "idempotency-key:k1", "body"),
        ),
        (
            "ok-stateless".into(),
            of(
                2,
                "DELETE",
                "http://host/shop?q",
                "hop3-request-deadline:500ms",
                "",
            ),
        ),
        (
            "ok-token-header".into(),
            of(0x84, "GET", "/shop/a", &token, ""),
        ),
        ("ok-large-body".into(), of(4, "POST", "/shop/a", "", &long)),
        (
            "ok-hop-by-hop".into(),
            of(
                4,
                "GET",
                "/shop/a",
                "connection:x-a, close\nx-a:1\nte:x",
                "",
            ),
        ),
        ("bad-socket".into(), of(4, "GET", "/shop/a", socket, "")),
        ("bad-no-token".into(), of(0x84, "GET", "/shop/a", "", "")),
        ("bad-no-key".into(), of(8, "GET", "/shop/a", "", "")),
        (
            "bad-deadline".into(),
            of(4, "GET", "/shop/a", "hop3-request-deadline:soon", ""),
        ),
        (
            "bad-long-path".into(),
            of(4, "GET", &format!("/shop/{}", "%41".repeat(3_000)), "", ""),
        ),
        ("bad-health".into(), of(4, "GET", "/healthz", "", "")),
        ("bad-connect".into(), of(4, "CONNECT", "/shop/a", "", "")),
    ]
}
