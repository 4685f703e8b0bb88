//! A UDP relay between one agent and its coordinator that can be cut, one way or both: a partition
//! that needs no privilege, and that a new connection does not get around.

use std::{
    collections::HashMap,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use hop3_common::identity::{CaCertificate, CoordinatorAddr, JoinToken};

use crate::Mesh;

/// Largest UDP payload.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// How often an idle thread looks whether it is over.
const LOOK: Duration = Duration::from_millis(200);

/// What the link carries.
#[derive(Debug, Default)]
struct Link {
    up_cut: AtomicBool,
    down_cut: AtomicBool,
    over: AtomicBool,
}

/// See the module.
pub struct Relay {
    link: Arc<Link>,
    address: SocketAddr,
}

impl Relay {
    /// A relay to the mesh's coordinator that carries everything.
    ///
    /// # Panics
    /// There is no socket.
    #[must_use]
    pub fn to(mesh: &Mesh) -> Self {
        let front = socket();
        let address = local(&front);
        let server = mesh.mesh_address.parse();
        let server: SocketAddr = server.unwrap_or_else(|error| panic!("{error}"));
        let link = Arc::new(Link::default());
        let shared = link.clone();
        std::thread::spawn(move || carry(&front, server, &shared));
        Self { link, address }
    }

    /// Cuts datagrams to the coordinator, to the agent, or carries them again.
    pub fn cut(&self, up: bool, down: bool) {
        self.link.up_cut.store(up, SeqCst);
        self.link.down_cut.store(down, SeqCst);
    }

    /// Enrolls and starts an agent that knows this relay only.
    ///
    /// # Panics
    /// It is not ready in time.
    pub fn join(&self, mesh: &mut Mesh, name: &str, tier: &str) {
        let args = ["node", "token", "create", "--tier", tier, "--name", name];
        let text = mesh.hop3(&[&args[..], &["--quiet"]].concat()).ok();
        let token: JoinToken = text.trim().parse().unwrap_or_else(|e| panic!("{e}"));
        let pem = std::fs::read_to_string(mesh.path("coordinator/ca.pem"));
        let ca = CaCertificate::from_pem(&pem.unwrap_or_default());
        let ca = ca.unwrap_or_else(|error| panic!("{error}"));
        let here: CoordinatorAddr = self
            .address
            .to_string()
            .parse()
            .unwrap_or_else(|e| panic!("{e}"));
        let token = JoinToken::mint(token.id(), token.secret().clone(), &ca, vec![here]);
        let token = token.unwrap_or_else(|error| panic!("{error}"));
        mesh.enroll_with(name, &token.to_string()).ok();
        mesh.start_agent(name);
        mesh.wait_ready(name);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.link.over.store(true, SeqCst);
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap_or_else(|error| panic!("{error}"));
    let set = socket.set_read_timeout(Some(LOOK));
    set.unwrap_or_else(|error| panic!("{error}"));
    socket
}

fn local(socket: &UdpSocket) -> SocketAddr {
    socket
        .local_addr()
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Carries what agents send, with a socket and a thread for the answers to each of their sockets.
fn carry(front: &UdpSocket, server: SocketAddr, link: &Arc<Link>) {
    let mut backs: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while !link.over.load(SeqCst) {
        let Ok((read, client)) = front.recv_from(&mut buffer) else {
            continue;
        };
        if link.up_cut.load(SeqCst) {
            continue;
        }
        let back = backs.entry(client).or_insert_with(|| {
            let back = socket();
            let parts = back.try_clone().and_then(|b| Ok((b, front.try_clone()?)));
            let (answers, to) = parts.unwrap_or_else(|error| panic!("{error}"));
            let link = link.clone();
            std::thread::spawn(move || answer(&answers, &to, client, &link));
            back
        });
        // A lost datagram is what networks do.
        let _ = back.send_to(&buffer[..read], server);
    }
}

fn answer(back: &UdpSocket, front: &UdpSocket, client: SocketAddr, link: &Link) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while !link.over.load(SeqCst) {
        if let Ok((read, _)) = back.recv_from(&mut buffer)
            && !link.down_cut.load(SeqCst)
        {
            let _ = front.send_to(&buffer[..read], client);
        }
    }
}
