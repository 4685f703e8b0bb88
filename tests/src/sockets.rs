//! A WebSocket client of services, over the gateway of a mesh.

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        ClientRequestBuilder, Error, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::Mesh;

/// Longest wait for one message; no test means to wait for as long.
const MESSAGE: Duration = Duration::from_secs(60);

/// An open WebSocket.
pub struct Socket(WebSocketStream<TlsStream<TcpStream>>);

/// What comes of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A text message.
    Text(String),
    /// The other side closed it with this code, or broke it off (none).
    Closed(Option<u16>),
}

impl Socket {
    /// Opens a WebSocket to `path` (`/SERVICE/…`), with the mesh's token.
    ///
    /// # Errors
    /// The status that the gateway or the guest answered with instead.
    ///
    /// # Panics
    /// There was no answer.
    pub async fn open(mesh: &Mesh, path: &str) -> Result<Self, u16> {
        let address = mesh.gateway.trim_start_matches("https://");
        let tcp = TcpStream::connect(address).await;
        let tcp = tcp.unwrap_or_else(|error| panic!("{address}: {error}"));
        let name = ServerName::try_from("127.0.0.1");
        let name = name.unwrap_or_else(|error| panic!("{error}"));
        let tls = TlsConnector::from(Arc::new(config(mesh)));
        let tls = tls.connect(name, tcp).await;
        let tls = tls.unwrap_or_else(|error| panic!("{address}: {error}"));
        let uri = format!("wss://{address}{path}").parse();
        let uri = uri.unwrap_or_else(|error| panic!("{path}: {error}"));
        let request = ClientRequestBuilder::new(uri)
            .with_header("authorization", format!("Bearer {}", mesh.token()));
        match client_async(request, tls).await {
            Ok((socket, _)) => Ok(Self(socket)),
            Err(Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Sends a text message.
    ///
    /// # Panics
    /// The connection is gone.
    pub async fn say(&mut self, text: &str) {
        let sent = self.0.send(Message::text(text)).await;
        sent.unwrap_or_else(|error| panic!("{text:?} was not sent: {error}"));
    }

    /// The next message. Cancel-safe.
    ///
    /// # Panics
    /// None came in a minute.
    pub async fn hear(&mut self) -> Heard {
        loop {
            let next = timeout(MESSAGE, self.0.next()).await;
            match next.unwrap_or_else(|_| panic!("nothing came in {MESSAGE:?}")) {
                Some(Ok(Message::Text(text))) => return Heard::Text(text.as_str().to_owned()),
                Some(Ok(Message::Close(frame))) => {
                    return Heard::Closed(frame.map(|frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Heard::Closed(None),
            }
        }
    }

    /// Closes it with a code and waits for the other side to agree.
    pub async fn close(mut self, code: u16) -> Heard {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: "".into(),
        };
        // What is under way the other way is passed over.
        if self.0.close(Some(frame)).await.is_err() {
            return Heard::Closed(None);
        }
        loop {
            match self.hear().await {
                Heard::Text(_) => {}
                closed => return closed,
            }
        }
    }
}

fn config(mesh: &Mesh) -> ClientConfig {
    // An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = CertificateDer::from_pem_file(mesh.path("coordinator/ca.pem"));
    let mut roots = RootCertStore::empty();
    let added = roots.add(ca.unwrap_or_else(|error| panic!("{error}")));
    added.unwrap_or_else(|error| panic!("{error}"));
    ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth()
}
