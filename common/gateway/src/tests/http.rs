//! HTTP over real sockets.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;
use hop3_common::{
    codes::Code,
    spec::State,
    wire::{HEADERS_MAX, ServiceReply},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    client::{SOON, read_until, serve, serve_with, until},
    streams::{Far, Mode},
    world::{Scripted, Step, TOKEN, info, reply},
};
use crate::{ServiceInfo, stream::Item};

fn open() -> ServiceInfo {
    info(State::Single, 1)
}

fn secured() -> ServiceInfo {
    ServiceInfo {
        public: false,
        ..open()
    }
}

fn answer(status: u16, headers: &[(&str, &str)], body: &'static str) -> Step {
    let owned =
        |(name, value): &(&str, &str)| ((*name).to_owned(), Bytes::from((*value).to_owned()));
    Step::Answer(ServiceReply {
        headers: headers.iter().map(owned).collect(),
        ..reply(status, body)
    })
}

fn streamed(body: &'static str) -> Step {
    Step::Answer(ServiceReply {
        stream: Some(7),
        ..reply(200, body)
    })
}

#[tokio::test]
async fn a_request_reaches_its_guest_and_the_answer_its_client() {
    let headers = [
        ("x-made-by", "guest"),
        ("connection", "x-hop"),
        ("content-length", "999"),
    ];
    let served = serve(open(), &[answer(201, &headers, "made")]).await;
    let sent = [("x-a", "1"), ("te", "trailers"), ("idempotency-key", "k")];
    let got = served
        .ask("POST /shop/things/a%20b?q=1", &sent, "hello")
        .await;
    assert_eq!((got.status, got.body.as_str()), (201, "made"));
    assert_eq!(got.header("x-made-by"), Some("guest"));
    assert_eq!(got.header("content-length"), Some("4"));
    assert_eq!(got.header("hop3-instance"), Some("0"));
    let seen = served.instance.last();
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str()),
        ("POST", "/things/a%20b?q=1")
    );
    assert_eq!((&seen.body[..], seen.more), (&b"hello"[..], false));
    assert_eq!(seen.idempotency_key.as_deref(), Some("k"));
    let names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["host", "x-a", "idempotency-key", "content-length"]);
    assert_eq!(served.gateway.counters().requests, 1);
}

#[tokio::test]
async fn tokens_are_asked_for_checked_and_kept_here() {
    let served = serve(secured(), &[]).await;
    let got = served.ask("GET /shop", &[], "").await;
    assert_eq!(
        (got.status, got.header("www-authenticate")),
        (401, Some("Bearer"))
    );
    assert!(
        got.body.contains("urn:hop3:problem:HOP3-0201"),
        "{}",
        got.body
    );
    assert_eq!(got.header("content-type"), Some("application/problem+json"));
    let got = served
        .ask("GET /shop", &[("authorization", "Bearer wrong")], "")
        .await;
    assert_eq!(got.status, 401);
    assert_eq!(served.instance.attempts(), 0);
    let bearer = format!("Bearer {TOKEN}");
    for header in [("authorization", bearer.as_str()), ("hop3-token", TOKEN)] {
        assert_eq!(served.ask("GET /shop", &[header], "").await.status, 200);
        let seen = format!("{:?}", served.instance.last());
        assert!(!seen.contains(TOKEN), "{seen}");
    }
    let got = served.ask("GET /shpo", &[], "").await;
    assert_eq!(got.status, 401, "who has no token learns no names");
    assert_eq!(served.ask("GET /healthz", &[], "").await.body, "ok\n");
}

/// Request line, headers, status, and what the detail says.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], u16, &'a str);

#[tokio::test]
async fn wrong_requests_are_told_what_is_wrong() {
    let served = serve(info(State::Keyed, 4), &[]).await;
    let long = format!("GET /shop/{}", "x".repeat(9_000));
    let many = vec![("x", "1"); HEADERS_MAX];
    let wide = "x".repeat(40_000);
    let cases: [Case<'_>; 9] = [
        ("GET /", &[], 404, "services are at /NAME"),
        (
            "GET /Shop/a",
            &[],
            400,
            "does not begin with a service's name",
        ),
        (
            "GET /shpo/a",
            &[("hop3-token", TOKEN)],
            404,
            "did you mean `shop`",
        ),
        (&long, &[], 413, "the path"),
        ("GET /shop/a", &many, 413, "headers"),
        ("GET /shop/a", &[("x", &wide)], 413, "headers"),
        (
            "GET /shop/",
            &[],
            400,
            "expects it in segment 1 of the path",
        ),
        ("TRACE /shop/a", &[], 400, "takes no TRACE"),
        (
            "GET /shop/a",
            &[("hop3-request-deadline", "soon")],
            400,
            "hop3-request-deadline",
        ),
    ];
    for (line, headers, status, text) in cases {
        let got = served.ask(line, headers, "").await;
        assert_eq!(got.status, status, "{line:.40}: {}", got.body);
        assert!(got.body.contains(text), "{line:.40}: {}", got.body);
    }
    assert_eq!(served.instance.attempts(), 0);
}

#[tokio::test]
async fn the_client_may_shorten_the_deadline() {
    let served = serve(open(), &[]).await;
    served.world.place(&[]);
    let got = served
        .ask("POST /shop", &[("hop3-request-deadline", "50ms")], "")
        .await;
    assert_eq!((got.status, got.header("retry-after")), (503, Some("2")));
    assert!(
        got.body.contains("HOP3-0521") && got.body.contains("being moved"),
        "{}",
        got.body
    );
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let length = [("content-length", "77")];
    let steps = [
        answer(200, &[], "12345"),
        answer(200, &length, ""),
        answer(204, &length, "not seen"),
        answer(304, &[], "not seen"),
    ];
    let served = serve(open(), &steps).await;
    for (line, status, length) in [
        ("HEAD /shop", 200, Some("5")),
        ("HEAD /shop", 200, Some("77")),
        ("GET /shop", 204, None),
        ("GET /shop", 304, None),
    ] {
        let got = served.ask(line, &[], "").await;
        assert_eq!((got.status, got.body.as_str()), (status, ""), "{line}");
        assert_eq!(got.header("content-length"), length, "{line} {status}");
    }
}

#[tokio::test]
async fn a_guests_bad_answer_is_named() {
    let steps = [
        answer(200, &[("x", "a\r\nset-cookie: b")], ""),
        Step::Answer(ServiceReply {
            stream: Some(1),
            ..reply(101, "")
        }),
        Step::Failed,
        Step::Unknown { happened: true },
    ];
    let served = serve(open(), &steps).await;
    for (status, code) in [(502, "0524"), (502, "0524"), (500, "0523"), (502, "0522")] {
        let got = served.ask("POST /shop", &[], "").await;
        assert_eq!(got.status, status);
        assert!(got.body.contains(&format!("HOP3-{code}")), "{}", got.body);
    }
    // The stream that nobody could use is closed.
    until("the stream is closed", || {
        served.instance.far.closed().is_some()
    })
    .await;
}

#[tokio::test]
async fn http2_is_served_as_well() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let served = serve(secured(), &[]).await;
    let client = reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let url = format!("http://{}/shop/a?b", served.address);
    let ask = || client.post(&url).bearer_auth(TOKEN).body("hello").send();
    let all = futures_util::future::join_all((0..50).map(|_| ask())).await;
    for response in all {
        let response = response.unwrap();
        assert_eq!(response.version(), reqwest::Version::HTTP_2);
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.unwrap(), "done");
    }
    let seen = served.instance.last();
    assert_eq!(
        (seen.path.as_str(), &seen.body[..]),
        ("/a?b", &b"hello"[..])
    );
    assert!(seen.headers.iter().any(|(name, _)| name == "host"));
    assert_eq!(served.instance.attempts(), 50);
}

#[tokio::test]
async fn events_flow_one_by_one_through_broken_links() {
    let served = serve(open(), &[streamed("data: 0\n\n")]).await;
    let far = &served.instance.far;
    far.break_after.store(3, Relaxed);
    let mut socket = served.connect().await;
    let request = b"GET /shop/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    socket.write_all(request).await.unwrap();
    read_until(&mut socket, "data: 0\n\n").await;
    for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n", "data: 4\n\n"] {
        far.say(event);
        read_until(&mut socket, event).await;
    }
    until("all are acknowledged", || far.acked() == 4).await;
    assert_eq!(served.gateway.counters().streams, 1);
    far.send(Item::Close { code: 0 });
    read_until(&mut socket, "0\r\n\r\n").await;
    until("the stream is over", || {
        served.gateway.counters().streams == 0
    })
    .await;
    assert!(far.links.load(Relaxed) > 1);
}

#[tokio::test]
async fn when_the_client_goes_its_instance_is_told() {
    let served = serve(open(), &[streamed("")]).await;
    let mut socket = served.connect().await;
    socket
        .write_all(b"GET /shop HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    served.instance.far.say("one");
    read_until(&mut socket, "one").await;
    // The instance moves just then: its link breaks with the next frame.
    let far = Arc::clone(&served.instance.far);
    until("it is acknowledged", || far.acked() == 1).await;
    *far.refuse.lock().unwrap() = Some(Code::NotHere);
    far.break_after.store(1, Relaxed);
    drop(socket);
    until("it is attached to in vain", || {
        far.refused.load(Relaxed) > 0
    })
    .await;
    assert_eq!(far.closed(), None);
    far.break_after.store(0, Relaxed);
    *far.refuse.lock().unwrap() = None;
    served.world.place(&[Scripted::with_far(0, &[], far)]);
    until("it is told", || served.instance.far.closed() == Some(1001)).await;
    until("the stream is over", || {
        served.gateway.counters().streams == 0
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_gone_breaks_the_response_off() {
    let served = serve(open(), &[streamed("begun")]).await;
    *served.instance.far.refuse.lock().unwrap() = Some(Code::StreamGone);
    let got = served.ask("GET /shop", &[], "").await;
    assert_eq!(got.status, 200);
    assert!(
        !got.body.ends_with("0\r\n\r\n"),
        "it looks whole: {:?}",
        got.body
    );
}

#[tokio::test]
async fn large_bodies_go_up_the_stream() {
    let far = Far::new(Mode::Count);
    far.break_after.store(9, Relaxed);
    let instance = Scripted::with_far(0, &[streamed("")], far);
    let served = serve_with(open(), instance).await;
    let body = "0123456789".repeat(200_000);
    let got = served.ask("PUT /shop/file", &[], &body).await;
    assert_eq!(got.status, 200);
    let rest = body.len() - 1_000;
    assert!(got.body.contains(&rest.to_string()), "{:?}", got.body);
    let first = served.instance.last();
    assert_eq!((first.body.len(), first.more), (1_000, true));
    let far = &served.instance.far;
    let pieces = far.got();
    let all: Vec<u8> = pieces
        .iter()
        .flat_map(|(_, bytes)| bytes.to_vec())
        .collect();
    assert_eq!([&first.body[..], &all].concat(), body.as_bytes());
    assert!(
        pieces
            .iter()
            .all(|(text, bytes)| !text && bytes.len() <= 64 << 10)
    );
    assert_eq!(far.closed(), Some(0));
    assert!(far.links.load(Relaxed) > 1);
}

#[tokio::test]
async fn large_bodies_without_a_stream_are_too_large() {
    let steps = [answer(200, &[], ""), answer(422, &[], "no such form")];
    let served = serve(open(), &steps).await;
    let body = "x".repeat(1_001);
    let got = served.ask("POST /shop", &[], &body).await;
    assert_eq!(got.status, 413);
    assert!(got.body.contains("at most 1000 bytes"), "{}", got.body);
    let got = served.ask("POST /shop", &[], &body).await;
    assert_eq!((got.status, got.body.as_str()), (422, "no such form"));
    let got = served.ask("POST /shop", &[], &body[1..]).await;
    assert_eq!(got.status, 200);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place() {
    let served = serve(open(), &[]).await;
    served.world.place(&[]);
    let mut socket = served.connect().await;
    socket
        .write_all(b"POST /shop HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    until("it waits", || served.gateway.counters().waiting == 1).await;
    drop(socket);
    until("it is gone", || served.gateway.counters().waiting == 0).await;
    assert_eq!(served.gateway.counters().in_flight, 0);
}

#[tokio::test]
async fn requests_of_one_connection_keep_their_order() {
    let served = serve(open(), &[]).await;
    served.world.place(&[]);
    let mut socket = served.connect().await;
    let mut all = String::new();
    for n in 0..20 {
        all += &format!("POST /shop/{n} HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    socket.write_all(all.as_bytes()).await.unwrap();
    until("the first waits", || served.gateway.counters().waiting == 1).await;
    served.world.place(&[Arc::clone(&served.instance)]);
    until("all are done", || served.instance.paths().len() == 20).await;
    let expected: Vec<String> = (0..20).map(|n| format!("/{n}")).collect();
    assert_eq!(served.instance.paths(), expected);
    let mut piece = [0; 64];
    let read = tokio::time::timeout(SOON, socket.read(&mut piece))
        .await
        .unwrap();
    assert!(read.unwrap() > 0);
}
