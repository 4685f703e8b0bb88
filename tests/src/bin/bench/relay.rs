//! A UDP relay that counts what passes: what a link would carry.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use anyhow::Result;
use tokio::{net::UdpSocket, task::JoinSet};

/// IPv4 and UDP headers of each datagram.
const HEADERS_BYTES: u64 = 28;
/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Most clients: an agent opens a new socket for each connection.
const CLIENTS_MAX: usize = 64;

/// What passed so far, both ways.
#[derive(Default)]
pub(crate) struct Counts {
    bytes: AtomicU64,
    datagrams: AtomicU64,
}

impl Counts {
    /// Bytes with headers, and datagrams.
    pub(crate) fn now(&self) -> (u64, u64) {
        (self.bytes.load(Relaxed), self.datagrams.load(Relaxed))
    }

    fn add(&self, payload: usize) {
        self.bytes
            .fetch_add(payload as u64 + HEADERS_BYTES, Relaxed);
        self.datagrams.fetch_add(1, Relaxed);
    }
}

/// Relays between whoever sends to `front` and `server`, until dropped.
pub(crate) async fn run(front: UdpSocket, server: SocketAddr, counts: Arc<Counts>) -> Result<()> {
    let front = Arc::new(front);
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    // Ends with this future, and the sockets with it.
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((read, client)) = front.recv_from(&mut buffer).await else {
            continue;
        };
        let back = match backs.get(&client) {
            Some(back) => back.clone(),
            None if backs.len() >= CLIENTS_MAX => continue,
            None => {
                let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                back.connect(server).await?;
                let back = Arc::new(back);
                answers.spawn(answer(front.clone(), back.clone(), client, counts.clone()));
                backs.insert(client, back.clone());
                back
            }
        };
        counts.add(read);
        // A lost datagram is what networks do.
        let _ = back.send(&buffer[..read]).await;
    }
}

async fn answer(
    front: Arc<UdpSocket>,
    back: Arc<UdpSocket>,
    client: SocketAddr,
    counts: Arc<Counts>,
) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error is the server's ICMP refusal while it restarts.
        if let Ok(read) = back.recv(&mut buffer).await {
            counts.add(read);
            let _ = front.send_to(&buffer[..read], client).await;
        }
    }
}
