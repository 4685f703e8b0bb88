//! A gateway on a loopback socket, and a small client of HTTP/1.1 that says exactly what it is
//! told to.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::world::{Scripted, Step, World};
use crate::{Gateway, ServiceInfo};

/// Longest time for anything here.
pub(super) const SOON: Duration = Duration::from_secs(10);

pub(super) struct Served {
    pub(super) world: Arc<World>,
    pub(super) gateway: Gateway,
    pub(super) instance: Arc<Scripted>,
    pub(super) address: SocketAddr,
}

/// A service with one instance, served.
pub(super) async fn serve(info: ServiceInfo, steps: &[Step]) -> Served {
    serve_with(info, Scripted::new(0, steps)).await
}

pub(super) async fn serve_with(info: ServiceInfo, instance: Arc<Scripted>) -> Served {
    let world = World::new(info, &[Arc::clone(&instance)]);
    let gateway = world.gateway();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = gateway.http();
    tokio::spawn(async move { axum::serve(listener, app).await });
    Served {
        world,
        gateway,
        instance,
        address,
    }
}

/// An answer, taken apart.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| line.split_once(':').map(|(known, _)| known.to_lowercase());
        let found = self
            .head
            .lines()
            .find(|text| line(text).as_deref() == Some(name));
        found
            .and_then(|text| text.split_once(": "))
            .map(|(_, value)| value)
    }

    pub(super) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or(0),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }
}

impl Served {
    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request and reads until the connection is closed.
    pub(super) async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut socket = self.connect().await;
        socket.write_all(bytes).await.unwrap();
        let mut all = Vec::new();
        // A reset after the answer is an end as well.
        let _ = timeout(SOON, socket.read_to_end(&mut all)).await.unwrap();
        Answer::parse(&all)
    }

    pub(super) async fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut text = format!("{line} HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            text += &format!("content-length: {}\r\n", body.len());
        }
        self.raw(format!("{text}\r\n{body}").as_bytes()).await
    }
}

/// Reads until what came has `text` in it.
pub(super) async fn read_until(socket: &mut TcpStream, text: &str) -> String {
    let mut all = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&all).contains(text) {
            let mut piece = [0; 4096];
            let n = socket.read(&mut piece).await.unwrap();
            assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&piece[..n]);
        }
    };
    timeout(SOON, read).await.unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

/// Waits until something holds.
pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "waited in vain until {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
