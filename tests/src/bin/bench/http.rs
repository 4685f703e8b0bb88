//! A lean HTTP/1.1 client: one request at a time over a kept TLS connection, as load generators
//! do it, so that the client takes little of the machine that it shares with the server.
//!
//! Reads answers with `content-length` only, which is what the API sends for what is asked here.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, bail};
use bytes::{Bytes, BytesMut};
use hop3_common::identity::tls;
use hop3_tests::Mesh;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest body of an answer: a listing of some thousand nodes.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Longest connecting and longest answer.
const ANSWER_MAX: std::time::Duration = std::time::Duration::from_secs(60);

/// An HTTPS server to talk to.
#[derive(Clone)]
pub(crate) struct Api {
    connector: TlsConnector,
    name: ServerName<'static>,
    address: SocketAddr,
    token: Arc<str>,
}

/// A kept connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

/// An answer.
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    head: Bytes,
    /// Its body.
    pub(crate) body: Bytes,
}

impl Api {
    /// A mesh's API, as its admin.
    pub(crate) fn of(mesh: &Mesh) -> Result<Self> {
        Self::at(mesh, &mesh.api)
    }

    /// Another server of a mesh (its gateway), as its admin.
    pub(crate) fn at(mesh: &Mesh, url: &str) -> Result<Self> {
        let ca = std::fs::read_to_string(mesh.path("coordinator/ca.pem")).context("ca.pem")?;
        let address = url.trim_start_matches("https://").trim_end_matches('/');
        Self::new(
            address.parse().with_context(|| url.to_owned())?,
            &ca,
            &mesh.token(),
        )
    }

    /// The server at `address`, certified by the CA in `ca_pem`.
    pub(crate) fn new(address: SocketAddr, ca_pem: &str, token: &str) -> Result<Self> {
        let mut config = tls::api_client(ca_pem)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::IpAddress(address.ip().into());
        Ok(Self {
            connector,
            name,
            address,
            token: token.into(),
        })
    }

    /// Opens a connection.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let connecting = async {
            let stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            self.connector.connect(self.name.clone(), stream).await
        };
        let stream = tokio::time::timeout(ANSWER_MAX, connecting).await??;
        Ok(Connection {
            stream,
            buffer: BytesMut::new(),
        })
    }

    /// The bytes of a request.
    pub(crate) fn request(&self, verb: &str, path: &str, kind: &str, body: &[u8]) -> Bytes {
        let head = format!(
            "{verb} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n\
             content-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            self.address,
            self.token,
            body.len(),
        );
        [head.as_bytes(), body].concat().into()
    }
}

impl Connection {
    /// Sends the bytes of a request and reads the answer, whatever its status.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        loop {
            if let Some(at) = find_head_end(&self.buffer) {
                return self.answer(at).await;
            }
            anyhow::ensure!(
                self.buffer.len() < HEAD_BYTES_MAX,
                "the answer's head is too long"
            );
            self.fill().await?;
        }
    }

    /// As [`ask`](Self::ask); an error unless the answer is a success.
    pub(crate) async fn good(&mut self, request: &[u8]) -> Result<Answer> {
        let answer = tokio::time::timeout(ANSWER_MAX, self.ask(request)).await??;
        if !(200..300).contains(&answer.status) {
            bail!(
                "{}: {}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            );
        }
        Ok(answer)
    }

    async fn fill(&mut self) -> Result<()> {
        self.buffer.reserve(8 << 10);
        let read = self.stream.read_buf(&mut self.buffer).await?;
        anyhow::ensure!(read > 0, "the server ended the connection");
        Ok(())
    }

    async fn answer(&mut self, head_bytes: usize) -> Result<Answer> {
        let head = self.buffer.split_to(head_bytes).freeze();
        let status = std::str::from_utf8(head.get(9..12).context("no status")?)?.parse()?;
        let mut answer = Answer {
            status,
            head,
            body: Bytes::new(),
        };
        let length = answer
            .header("content-length")
            .unwrap_or("0")
            .parse::<usize>()?;
        anyhow::ensure!(length <= BODY_BYTES_MAX, "an answer of {length} bytes");
        anyhow::ensure!(
            answer.header("transfer-encoding").is_none(),
            "a chunked answer"
        );
        while self.buffer.len() < length {
            self.fill().await?;
        }
        answer.body = self.buffer.split_to(length).freeze();
        Ok(answer)
    }
}

impl Answer {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let head = std::str::from_utf8(&self.head).ok()?;
        let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

/// Where the body begins.
fn find_head_end(buffer: &[u8]) -> Option<usize> {
    buffer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}
