//! The node's end of `hop3-enroll/1`: joining with a token, and renewal by proof of the old key.

use std::{collections::BTreeMap, path::Path};

use hop3_common::{
    codes::{Code, Problem},
    id::NodeId,
    identity::{
        CoordinatorAddr, JoinToken, KeyHash, NodeKey,
        enroll::{EnrollReply, EnrollRequest, Granted, HOSTNAME_BYTES_MAX, Join},
        renew, tls,
    },
    wire::{self, ENROLL_FRAME_MAX, close},
};
use quinn::{Connection, ConnectionError, VarInt};

use super::{Clock, DataDir, Error, IDENTITY, IdentityRecord, Member, NODE, pin_of};
use crate::{
    VERSION,
    session::transport::{self, KEEP_ALIVE_SHORT, client_config, dial},
};

/// Time for one exchange, the coordinator's disk included.
const EXCHANGE: std::time::Duration = std::time::Duration::from_secs(20);

/// Joins the mesh of `token` and stores the identity in `data_dir`.
///
/// # Errors
/// [`Error`]; nothing but the key for a repeat is stored then.
pub async fn enroll(data_dir: &Path, token: &JoinToken, hostname: &str) -> Result<NodeId, Error> {
    let data = DataDir::open(data_dir)?;
    enroll_with(&data, token, hostname).await
}

/// As [`enroll`], in an open data directory.
///
/// # Errors
/// As [`enroll`].
pub async fn enroll_with(
    data: &DataDir,
    token: &JoinToken,
    hostname: &str,
) -> Result<NodeId, Error> {
    let key = key_for(data, token).await?;
    let clock = Clock::load(data.store.clone()).await?;
    let request = EnrollRequest::Join(join(token, &key, hostname)?);
    let config = client_config(
        tls::enroll_client(token.ca_pin(), clock.tls())?,
        KEEP_ALIVE_SHORT,
    )?;
    let ask = |_: &Connection| Ok(request.clone());
    let (granted, connection) = ask_any(&config, token.coordinators(), ask).await?;
    let membership = granted.verify(token.ca_pin(), &key.public_key())?;
    let member = Member {
        node: granted.node.clone(),
        key,
        cert: membership.cert,
        identity: membership.identity,
        ca: membership.ca,
        coordinators: token.coordinators().to_vec(),
    };
    member.save(&*data.store).await?;
    clock.learn(granted.server_time, &connection).await;
    connection.close(VarInt::from_u32(close::DONE), b"enrolled");
    tracing::info!(node = %granted.node, mesh = %granted.mesh, "enrolled");
    Ok(granted.node)
}

/// The key to join with: the one of an earlier try with the same token, so that a lost answer can
/// be asked for again; else a new one. Durable before it is used.
async fn key_for(data: &DataDir, token: &JoinToken) -> Result<NodeKey, Error> {
    match IDENTITY
        .get(&*data.store, NODE)
        .await?
        .map(|item| item.record)
    {
        Some(IdentityRecord::Member { node, .. }) => {
            let mesh = Member::load(data).await?.ca.mesh().clone();
            return Err(Error::AlreadyEnrolled {
                node,
                mesh,
                path: data.path.clone(),
            });
        }
        Some(IdentityRecord::Joining {
            token: before,
            key_pem,
        }) if before == token.id() => {
            return Ok(NodeKey::from_pem(&key_pem)?);
        }
        _ => {}
    }
    let key = NodeKey::generate()?;
    let key_pem = key.to_pem().to_string();
    let record = IdentityRecord::Joining {
        token: token.id(),
        key_pem,
    };
    let _durable = IDENTITY.put(&*data.store, NODE, &record).await?;
    Ok(key)
}

fn join(token: &JoinToken, key: &NodeKey, hostname: &str) -> Result<Join, Error> {
    let clean: String = hostname.chars().filter(|c| !c.is_control()).collect();
    let end = (0..=clean.len().min(HOSTNAME_BYTES_MAX))
        .rev()
        .find(|&i| clean.is_char_boundary(i));
    let facts = [
        ("arch", std::env::consts::ARCH),
        ("os", std::env::consts::OS),
    ]
    .into_iter()
    .chain([("version", VERSION)]);
    Ok(Join {
        protocol: wire::PROTOCOL,
        token: token.id(),
        secret: token.secret().clone(),
        csr_der: key.csr()?,
        hostname: clean[..end.unwrap_or(0)].to_owned(),
        facts: facts
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect::<BTreeMap<_, _>>(),
    })
}

/// Renews an expired certificate by proof of the old key, on a connection of its own.
///
/// # Errors
/// [`Error::Refused`] with [`Code::NodeRevoked`] when the node was revoked.
pub async fn renew_expired(
    member: &mut Member,
    clock: &Clock,
    data: &DataDir,
) -> Result<(), Error> {
    let pin: KeyHash = pin_of(&member.ca);
    let config = client_config(tls::enroll_client(pin, clock.tls())?, KEEP_ALIVE_SHORT)?;
    let ask = |connection: &Connection| {
        let mut exporter = [0; renew::EXPORTER_BYTES];
        connection
            .export_keying_material(&mut exporter, renew::EXPORTER_LABEL, b"")
            .map_err(|_| transport::Error::Setup("no exporter".into()))?;
        let (node, key) = (member.node.clone(), &member.key);
        let request = renew::request(node, key, &member.cert, key, &exporter)?;
        Ok(EnrollRequest::Renew(request))
    };
    let (granted, connection) = ask_any(&config, &member.coordinators, ask).await?;
    granted.verify(pin, &member.key.public_key())?;
    clock.learn(granted.server_time, &connection).await;
    member
        .adopt(&granted.cert_der, granted.server_time, &*data.store)
        .await?;
    connection.close(VarInt::from_u32(close::DONE), b"renewed");
    tracing::info!(node = %member.node, "certificate renewed by proof of the old key");
    Ok(())
}

/// Asks the coordinators in turn until one answers.
async fn ask_any(
    config: &quinn::ClientConfig,
    addresses: &[CoordinatorAddr],
    request: impl Fn(&Connection) -> Result<EnrollRequest, Error>,
) -> Result<(Granted, Connection), Error> {
    let mut attempts = Vec::new();
    let mut untrusted = None;
    for address in addresses {
        let connection = match dial(config, address).await {
            Ok(connection) => connection,
            Err(error) => {
                attempts.push(match &error {
                    transport::Error::Resolve { source, .. } => format!("{error}: {source}"),
                    _ => error.to_string(),
                });
                if matches!(error, transport::Error::Untrusted { .. }) {
                    untrusted = Some(error);
                }
                continue;
            }
        };
        let request = request(&connection)?;
        let asked = exchange(&connection, &request);
        match tokio::time::timeout(EXCHANGE, asked).await {
            Ok(Ok(EnrollReply::Granted(granted))) => return Ok((granted, connection)),
            Ok(Ok(EnrollReply::Refused(problem))) => return Err(Error::Refused(problem)),
            Ok(Err(Some(problem))) => return Err(Error::Refused(problem)),
            Ok(Err(None)) => attempts.push(format!("{address} ended the connection")),
            Err(_) => attempts.push(format!("{address} did not answer")),
        }
    }
    match untrusted {
        Some(error) if attempts.len() == 1 => Err(Error::Untrusted(error)),
        _ => Err(Error::Unreachable { attempts }),
    }
}

/// One request, one reply. `Err(None)`: the connection broke; `Err(Some)`: closed for a reason.
async fn exchange(
    connection: &Connection,
    request: &EnrollRequest,
) -> Result<EnrollReply, Option<Problem>> {
    let talk = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|_| ())?;
        wire::io::write(&mut send, request, ENROLL_FRAME_MAX)
            .await
            .map_err(|_| ())?;
        send.finish().map_err(|_| ())?;
        let reply = wire::io::read(&mut recv, ENROLL_FRAME_MAX)
            .await
            .map_err(|_| ())?;
        reply.ok_or(())
    };
    talk.await.map_err(|()| match connection.close_reason() {
        Some(ConnectionError::ApplicationClosed(closed)) => {
            let code = match u32::try_from(closed.error_code.into_inner()) {
                Ok(close::REVOKED) => Code::NodeRevoked,
                Ok(close::PROTOCOL) => Code::Protocol,
                _ => Code::Unavailable,
            };
            Some(Problem::new(
                code,
                String::from_utf8_lossy(&closed.reason).into_owned(),
            ))
        }
        _ => None,
    })
}
