//! `hop3 task run`: stdin, stdout, stderr and exit code of a task elsewhere.
//!
//! One WebSocket carries [`Frame`]s. When it breaks, the client comes back and says how far it
//! got; the protocol's offsets see to it that no byte is lost or doubled.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use bytes::{Buf as _, Bytes};
use futures_util::{SinkExt as _, StreamExt as _};
use hop3_common::{
    codes::Code,
    id::TaskId,
    wire::{
        End, Usage,
        attach::{Channel, FRAME_MAX, Frame, Receiver, Sender},
        frame,
    },
};
use tokio::{net::TcpStream, sync::mpsc, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::client::{Client, Refused, Unreachable, code_of, refusal};

/// How long a broken attachment is tried again.
const RECONNECT_FOR: Duration = Duration::from_secs(60);
/// Time between tries.
const RECONNECT_EVERY: Duration = Duration::from_millis(300);
/// Bytes read from stdin at a time: several frames, so that they leave in one flush.
const READ_BYTES: usize = 128 << 10;
/// Bytes that the socket is read by. The library clears so many before each read.
const SOCKET_READ_BYTES: usize = 32 << 10;

/// Hop3 itself failed.
const EXIT_HOP3: u8 = 125;
/// The guest was ended: trap, limit, deadline.
const EXIT_ENDED: u8 = 126;
/// There is no such module, or it is not one.
const EXIT_NO_MODULE: u8 = 127;
/// The user interrupted.
const EXIT_INTERRUPTED: u8 = 130;

/// The exit code of `task run` for a failure of Hop3.
#[must_use]
pub fn exit_of(error: &anyhow::Error) -> u8 {
    match code_of(error) {
        Some(code) => exit_of_code(code),
        None if error.downcast_ref::<NoModule>().is_some() => EXIT_NO_MODULE,
        None => EXIT_HOP3,
    }
}

fn exit_of_code(code: Code) -> u8 {
    match code {
        Code::NotWasm
        | Code::WasmUnsupported
        | Code::WasmImport
        | Code::WasmExport
        | Code::ArtifactUnknown => EXIT_NO_MODULE,
        Code::TaskTrapped | Code::TaskLimit | Code::Deadline => EXIT_ENDED,
        _ => EXIT_HOP3,
    }
}

/// Neither a file nor an artifact.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoModule(pub String);

/// How an attached task ended.
pub struct Ended {
    /// How.
    pub end: End,
    /// What it used.
    pub usage: Usage,
}

impl Ended {
    /// The exit code to end with.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match &self.end {
            End::Exited(code) => *code as u8,
            End::Failed(problem) => exit_of_code(problem.code),
            End::Cancelled => EXIT_INTERRUPTED,
        }
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn connect(client: &Client, task: &TaskId) -> Result<Socket> {
    use tokio_tungstenite::tungstenite::{
        Error, client::IntoClientRequest as _, protocol::WebSocketConfig,
    };
    let authority = client.api.trim_start_matches("https://");
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().context("the API's port")?),
        None => (authority, 443),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, port))
        .await
        .map_err(|error| Unreachable {
            api: client.api.clone(),
            why: error.to_string(),
        })?;
    tcp.set_nodelay(true)?;
    let (mut tls, token) = client.tls();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(host.to_owned())?;
    let stream = TlsConnector::from(std::sync::Arc::new(tls))
        .connect(name, tcp)
        .await?;
    let mut request = format!("wss://{authority}/v1/tasks/{task}/attach").into_client_request()?;
    request
        .headers_mut()
        .insert("authorization", format!("Bearer {token}").parse()?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(FRAME_MAX))
        .read_buffer_size(SOCKET_READ_BYTES);
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            match serde_json::from_slice(body) {
                Ok(details) => Err(Refused(details).into()),
                Err(_) => Err(anyhow!("the coordinator answered {}", response.status())),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads stdin (or a file) on a thread of its own: terminals and pipes only block.
fn read_input(input: Option<&Path>) -> Result<mpsc::Receiver<Bytes>> {
    let source: Box<dyn io::Read + Send> = match input {
        Some(path) if path != Path::new("-") => {
            Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        }
        _ => Box::new(io::stdin()),
    };
    let (sender, receiver) = mpsc::channel(2);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut source = source;
            let mut buffer = vec![0; READ_BYTES];
            while let Ok(n @ 1..) = source.read(&mut buffer) {
                if sender
                    .blocking_send(Bytes::copy_from_slice(&buffer[..n]))
                    .is_err()
                {
                    break;
                }
            }
        })?;
    Ok(receiver)
}

/// One client of one task.
struct Attachment {
    verbose: bool,
    input: mpsc::Receiver<Bytes>,
    /// Read from the input, not yet taken by the sender.
    unsent: Bytes,
    stdin: Sender,
    stdout: Receiver,
    stderr: Receiver,
    interrupted: bool,
}

/// Why a connection's loop came to its end.
enum Step {
    Ended(Ended),
    Broken(anyhow::Error),
}

/// Runs until the task ended and its output is printed.
pub async fn run(
    client: &Client,
    task: &TaskId,
    input: Option<&Path>,
    verbose: bool,
) -> Result<Ended> {
    let mut attachment = Attachment {
        verbose,
        input: read_input(input)?,
        unsent: Bytes::new(),
        stdin: Sender::new(Channel::Stdin),
        stdout: Receiver::new(Channel::Stdout),
        stderr: Receiver::new(Channel::Stderr),
        interrupted: false,
    };
    let mut give_up = Instant::now() + RECONNECT_FOR;
    loop {
        let broken = match connect(client, task).await {
            Ok(socket) => {
                give_up = Instant::now() + RECONNECT_FOR;
                match attachment.serve(socket).await? {
                    Step::Ended(ended) => return Ok(ended),
                    Step::Broken(error) => error,
                }
            }
            // The coordinator answered: it will not answer otherwise the next time.
            Err(error) if refusal(&error).is_some_and(|code| code != Code::Unavailable) => {
                return Err(error);
            }
            Err(error) => error,
        };
        if Instant::now() >= give_up {
            return Err(broken.context("lost the connection to the task; it may still run"));
        }
        tokio::time::sleep(RECONNECT_EVERY).await;
    }
}

impl Attachment {
    /// Serves one connection. Err = give up; `Broken` = try again.
    async fn serve(&mut self, mut socket: Socket) -> Result<Step> {
        self.stdout.resume();
        self.stderr.resume();
        let resume = Frame::Resume {
            stdout: self.stdout.consumed_bytes(),
            stderr: self.stderr.consumed_bytes(),
        };
        let credits = [self.stdout.grant(), self.stderr.grant()];
        for frame in std::iter::once(resume).chain(credits.into_iter().flatten()) {
            if let Err(error) = send(&mut socket, &frame).await {
                return Ok(Step::Broken(error));
            }
        }
        // The first credit of a connection says where stdin begins on it.
        let mut stdin_known = false;
        let mut input_open = true;
        loop {
            let taken = self.stdin.push(&self.unsent);
            self.unsent.advance(taken);
            if !input_open && self.unsent.is_empty() {
                self.stdin.finish();
            }
            let mut fed = false;
            while stdin_known && let Some(frame) = self.stdin.next_frame() {
                fed = true;
                if let Err(error) = feed(&mut socket, &frame).await {
                    return Ok(Step::Broken(error));
                }
            }
            if fed && let Err(error) = socket.flush().await {
                return Ok(Step::Broken(error.into()));
            }
            tokio::select! {
                message = socket.next() => {
                    let frame = match message {
                        Some(Ok(Message::Binary(body))) => frame::decode::<Frame>(&body)?,
                        Some(Ok(Message::Close(_))) | None => {
                            return Ok(Step::Broken(anyhow!("the coordinator closed the connection")));
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(error)) => return Ok(Step::Broken(error.into())),
                    };
                    if let Frame::Credit { channel: Channel::Stdin, consumed, upto } = frame {
                        if !std::mem::replace(&mut stdin_known, true) {
                            self.stdin.resume(consumed);
                        }
                        self.stdin.credit(consumed, upto);
                    } else if let Frame::Exit { end, usage } = frame {
                        let _ = send(&mut socket, &Frame::Bye).await;
                        let _ = socket.close(None).await;
                        return Ok(Step::Ended(Ended { end, usage }));
                    } else {
                        self.receive(frame, &mut socket).await?;
                    }
                }
                chunk = self.input.recv(), if input_open && self.unsent.is_empty() => match chunk {
                    Some(chunk) => self.unsent = chunk,
                    None => input_open = false,
                },
                _ = tokio::signal::ctrl_c() => {
                    anyhow::ensure!(!self.interrupted, "interrupted; the task is being cancelled");
                    self.interrupted = true;
                    if let Err(error) = send(&mut socket, &Frame::Cancel).await {
                        return Ok(Step::Broken(error));
                    }
                }
            }
        }
    }

    /// Output and status from the task.
    async fn receive(&mut self, frame: Frame, socket: &mut Socket) -> Result<()> {
        match frame {
            Frame::Data {
                channel,
                offset,
                bytes,
                fin,
            } => {
                let receiver = match channel {
                    Channel::Stdout => &mut self.stdout,
                    Channel::Stderr => &mut self.stderr,
                    Channel::Stdin => return Err(anyhow!("the coordinator sent stdin")),
                };
                let fresh = receiver.data(offset, bytes, fin)?;
                if let Err(error) = print(channel, &fresh) {
                    // The reader of our output is gone (`| head`): so is the task's purpose.
                    let _ = send(socket, &Frame::Cancel).await;
                    return Err(anyhow!(error).context("cannot write the task's output"));
                }
                receiver.consume(fresh.len());
                if let Some(credit) = receiver.next_credit() {
                    // A broken connection shows at the next read.
                    let _ = send(socket, &credit).await;
                }
            }
            Frame::Status(text) if self.verbose => crate::output::note(&format!("hop3: {text}")),
            _ => {}
        }
        Ok(())
    }
}

async fn send(socket: &mut Socket, frame: &Frame) -> Result<()> {
    feed(socket, frame).await?;
    Ok(socket.flush().await?)
}

/// Gives a frame to the socket; it leaves with the next flush.
async fn feed(socket: &mut Socket, frame: &Frame) -> Result<()> {
    let body = frame.to_body()?;
    Ok(socket.feed(Message::Binary(body)).await?)
}

fn print(channel: Channel, bytes: &[u8]) -> io::Result<()> {
    if channel == Channel::Stderr {
        return io::stderr().lock().write_all(bytes);
    }
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
