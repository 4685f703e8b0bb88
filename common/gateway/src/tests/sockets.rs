//! WebSockets over real sockets.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use hop3_common::{
    spec::State,
    wire::{STREAM_DATA_BYTES_MAX, ServiceReply},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        ClientRequestBuilder, Error, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    client::{SOON, Served, serve_with, until},
    streams::{Far, Mode},
    world::{Scripted, Step, TOKEN, info, reply},
};
use crate::{Gateway, Options, ServiceInfo, stream::Item};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn echo() -> Served {
    let accept = Step::Answer(ServiceReply {
        stream: Some(7),
        ..reply(101, "")
    });
    let instance = Scripted::with_far(0, &[accept], Far::new(Mode::Echo));
    serve_with(info(State::Single, 1), instance).await
}

fn builder(served: &Served) -> ClientRequestBuilder {
    let uri = format!("ws://{}/shop/chat?a", served.address);
    ClientRequestBuilder::new(uri.parse().unwrap())
}

async fn connect(served: &Served) -> Socket {
    connect_async(builder(served)).await.unwrap().0
}

async fn next(socket: &mut Socket) -> Message {
    timeout(SOON, socket.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

/// The close code that the other side sends.
async fn close_code(socket: &mut Socket) -> u16 {
    loop {
        if let Message::Close(frame) = next(socket).await {
            return frame.unwrap().code.into();
        }
    }
}

#[tokio::test]
async fn messages_go_both_ways_through_moves() {
    let served = echo().await;
    let far = Arc::clone(&served.instance.far);
    far.break_after.store(7, Relaxed);
    let mut socket = connect(&served).await;
    let seen = served.instance.last();
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str()),
        ("GET", "/chat?a")
    );
    assert!(
        seen.headers
            .iter()
            .any(|(name, value)| name == "upgrade" && value == "websocket")
    );
    for n in 0..50 {
        let message = if n % 2 == 0 {
            Message::text(format!("message {n}"))
        } else {
            Message::binary(vec![n; 1_000])
        };
        socket.send(message.clone()).await.unwrap();
        if n == 25 {
            // It moves: away, and then at another place with all it has.
            served.world.place(&[]);
            served
                .world
                .place(&[Scripted::with_far(0, &[], Arc::clone(&far))]);
        }
        assert_eq!(next(&mut socket).await, message);
    }
    socket
        .send(Message::Ping(Bytes::from_static(b"p")))
        .await
        .unwrap();
    assert_eq!(
        next(&mut socket).await,
        Message::Pong(Bytes::from_static(b"p"))
    );
    let frame = CloseFrame {
        code: CloseCode::from(4001),
        reason: "".into(),
    };
    socket.close(Some(frame)).await.unwrap();
    until("the instance is told", || far.closed() == Some(4001)).await;
    until("the stream is over", || {
        served.gateway.counters().streams == 0
    })
    .await;
    assert_eq!(far.got().len(), 50);
    assert!(far.links.load(Relaxed) > 1);
}

#[tokio::test]
async fn the_instances_close_reaches_the_client() {
    for (code, seen) in [(0, 1000), (4002, 4002), (1006, 1011)] {
        let served = echo().await;
        let mut socket = connect(&served).await;
        served.instance.far.say("last");
        served.instance.far.send(Item::Close { code });
        assert_eq!(next(&mut socket).await, Message::text("last"));
        assert_eq!(close_code(&mut socket).await, seen);
        until("the stream is over", || {
            served.gateway.counters().streams == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_is_closed_for() {
    let served = echo().await;
    let socket = connect(&served).await;
    until("it is attached", || {
        served.instance.far.links.load(Relaxed) == 1
    })
    .await;
    drop(socket);
    until("the instance is told", || {
        served.instance.far.closed() == Some(1006)
    })
    .await;
    until("the stream is over", || {
        served.gateway.counters().streams == 0
    })
    .await;
}

#[tokio::test]
async fn messages_that_are_too_large_are_refused() {
    let served = echo().await;
    let mut socket = connect(&served).await;
    let largest = Message::binary(vec![1; STREAM_DATA_BYTES_MAX]);
    socket.send(largest.clone()).await.unwrap();
    assert!(next(&mut socket).await == largest);
    let larger = Message::binary(vec![1; STREAM_DATA_BYTES_MAX + 1]);
    socket.send(larger).await.unwrap();
    assert_eq!(close_code(&mut socket).await, 1009);
    until("the instance is told", || {
        served.instance.far.closed() == Some(1009)
    })
    .await;
}

#[tokio::test]
async fn a_browsers_token_is_a_subprotocol() {
    let accept = Step::Answer(ServiceReply {
        stream: Some(7),
        ..reply(101, "")
    });
    let steps = [accept.clone(), accept];
    let instance = Scripted::with_far(0, &steps, Far::new(Mode::Echo));
    let secured = ServiceInfo {
        public: false,
        ..info(State::Single, 1)
    };
    let served = serve_with(secured, instance).await;
    let offer = format!("hop3.bearer.{TOKEN}");
    let request = builder(&served)
        .with_sub_protocol("hop3")
        .with_sub_protocol(&offer);
    let (_socket, response) = connect_async(request).await.unwrap();
    let chosen = response.headers().get("sec-websocket-protocol").unwrap();
    assert_eq!(chosen, "hop3");
    assert_eq!(response.headers().get("hop3-instance").unwrap(), "0");
    let seen = format!("{:?}", served.instance.last());
    assert!(!seen.contains(TOKEN), "{seen}");
    let Err(Error::Http(refused)) = connect_async(builder(&served)).await else {
        panic!("let in without a token");
    };
    assert_eq!(refused.status(), 401);
}

#[tokio::test]
async fn a_refused_websocket_is_a_plain_answer() {
    let steps = [Step::Answer(reply(403, "not you"))];
    let instance = Scripted::new(0, &steps);
    let served = serve_with(info(State::Single, 1), instance).await;
    let Err(Error::Http(refused)) = connect_async(builder(&served)).await else {
        panic!("accepted");
    };
    assert_eq!(refused.status(), 403);
}

#[tokio::test]
async fn a_stream_without_its_instance_ends() {
    let mut served = echo().await;
    let options = Options {
        stream_patience: Duration::from_millis(50),
        ..Options::default()
    };
    served.gateway = Gateway::new(Arc::clone(&served.world) as _, options);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    served.address = listener.local_addr().unwrap();
    let app = served.gateway.http();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut socket = connect(&served).await;
    served.world.place(&[]);
    // The link that it has breaks with the next frame.
    served.instance.far.break_after.store(1, Relaxed);
    served.instance.far.say("lost");
    assert_eq!(close_code(&mut socket).await, 1013);
    until("the stream is over", || {
        served.gateway.counters().streams == 0
    })
    .await;
}

#[tokio::test]
async fn streams_are_bounded() {
    let mut served = echo().await;
    let options = Options {
        streams_max: 0,
        ..Options::default()
    };
    served.gateway = Gateway::new(Arc::clone(&served.world) as _, options);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    served.address = listener.local_addr().unwrap();
    let app = served.gateway.http();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let Err(Error::Http(refused)) = connect_async(builder(&served)).await else {
        panic!("accepted");
    };
    assert_eq!(refused.status(), 503);
    until("it is closed", || served.instance.far.closed().is_some()).await;
}
