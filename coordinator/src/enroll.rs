//! Join tokens, enrolment and renewal: who gets in, under which name, with which certificate.
//!
//! A token is used up in the same commit that makes the node; the certificate is issued before it,
//! so that a failure leaves the token open.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use hop3_common::{
    api::{JoinTokenCreated, JoinTokenRequest, JoinTokenView},
    codes::{Code, Problem},
    id::{NodeId, UnixMs},
    identity::{
        Issued, JoinToken, KeyHash, PeerIdentity, Redemption, TokenId, TokenRecord, TokenSecret,
        VerifiedPublicKey,
        enroll::{EnrollReply, EnrollRequest, Granted, Join, Renew},
        renew::{self, Standing},
        verify_csr,
    },
    spec::{Millis, placement::LABELS_MAX, placement::parse_label},
    wire::NodeFacts,
};

use crate::{
    Core,
    decisions::Decision,
    records::{Batch, CursorRecord, JoinTokenRecord, NodeRecord, Records},
    registry::{self, NODES_MAX, Node},
};

/// Life of a join token where none is given, and at most.
const TTL_DEFAULT: Millis = Millis::secs(3600);
const TTL_MAX: Millis = Millis::secs(30 * 24 * 3600);
/// Most join tokens kept; used and expired ones go first.
const TOKENS_MAX: usize = 1_000;
/// Names tried for a node whose host name is taken.
const NAMES_TRIED_MAX: usize = 100;

/// All join tokens.
pub(crate) struct JoinTokens(RwLock<BTreeMap<String, TokenRecord>>);

impl JoinTokens {
    pub(crate) async fn load(records: &Records) -> Result<Self, Problem> {
        let all = records.all::<JoinTokenRecord>().await?;
        Ok(Self(RwLock::new(
            all.into_iter().map(|(id, record)| (id, record.0)).collect(),
        )))
    }

    fn get(&self, id: &str) -> Option<TokenRecord> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    fn show(&self, record: TokenRecord) {
        let mut tokens = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(record.id.to_string(), record);
    }

    /// The token to drop for a new one: the oldest that is of no use any more.
    fn surplus(&self, now: UnixMs) -> Result<Option<String>, Problem> {
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() < TOKENS_MAX {
            return Ok(None);
        }
        let done = tokens.values().filter(|token| !token.is_open(now));
        match done.min_by_key(|token| token.created) {
            Some(token) => Ok(Some(token.id.to_string())),
            None => {
                let message = format!("{TOKENS_MAX} join tokens are open: revoke some");
                Err(Problem::new(Code::Busy, message))
            }
        }
    }
}

pub(crate) async fn create_token(
    core: &Core,
    request: JoinTokenRequest,
) -> Result<JoinTokenCreated, Problem> {
    let invalid = |field: &str, why: String| {
        Problem::new(Code::InvalidField, format!("`{field}` is refused: {why}"))
    };
    let ttl = request.ttl.unwrap_or(TTL_DEFAULT);
    if ttl.0 == 0 || ttl > TTL_MAX {
        return Err(invalid(
            "ttl",
            format!("a join token lives from 1 ms to {TTL_MAX}"),
        ));
    }
    if request.labels.len() > LABELS_MAX {
        return Err(invalid(
            "labels",
            format!("a node has at most {LABELS_MAX}"),
        ));
    }
    for (key, value) in &request.labels {
        parse_label(&format!("{key}={value}")).map_err(|why| invalid("labels", why))?;
    }
    if let Some(node) = request
        .node
        .as_ref()
        .filter(|node| core.nodes.get(node).is_some())
    {
        let message = format!("there is a node `{node}` already: choose another name or remove it");
        return Err(Problem::new(Code::NodeNameTaken, message));
    }
    let lock = core.locks.of("join-tokens", "").await;
    let now = UnixMs::now();
    let surplus = core.join_tokens.surplus(now)?;
    let secret = TokenSecret::generate().map_err(|e| internal(&e))?;
    let record = TokenRecord {
        id: TokenId::generate().map_err(|e| internal(&e))?,
        secret_hash: secret.hash(),
        tier: request.tier,
        labels: request.labels,
        name: request.node,
        created: now,
        expires: now.plus(ttl.0),
        revoked: None,
        used: None,
    };
    let addresses = core.advertised().to_vec();
    let token = JoinToken::mint(record.id, secret, core.ca.certificate(), addresses)
        .map_err(|e| internal(&e))?;
    let id = record.id.to_string();
    let mut batch = Batch::new().put(&id, &JoinTokenRecord(record.clone()))?;
    if let Some(surplus) = &surplus {
        batch = batch.delete::<JoinTokenRecord>(surplus)?;
    }
    core.records.commit(batch).await?;
    let expires = record.expires;
    if let Some(surplus) = surplus {
        core.join_tokens
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&surplus);
    }
    core.join_tokens.show(record);
    drop(lock);
    let token = token.to_string();
    let command = format!("echo {token} | hop3-agent enroll --token-file - --run");
    Ok(JoinTokenCreated {
        id,
        token,
        command,
        expires,
    })
}

pub(crate) fn tokens(core: &Core) -> Vec<JoinTokenView> {
    let now = UnixMs::now();
    let tokens = core
        .join_tokens
        .0
        .read()
        .unwrap_or_else(PoisonError::into_inner);
    let mut views: Vec<_> = tokens.values().map(|token| view(token, now)).collect();
    views.sort_by_key(|view| std::cmp::Reverse(view.created));
    views
}

fn view(token: &TokenRecord, now: UnixMs) -> JoinTokenView {
    let status = match token {
        token if token.used.is_some() => "used",
        token if token.revoked.is_some() => "revoked",
        token if token.is_open(now) => "open",
        _ => "expired",
    };
    JoinTokenView {
        id: token.id.to_string(),
        tier: token.tier,
        labels: token.labels.clone(),
        node: token.name.clone(),
        created: token.created,
        expires: token.expires,
        status: status.to_owned(),
        used_by: token.used.as_ref().map(|used| used.node.clone()),
    }
}

pub(crate) async fn revoke_token(core: &Core, id: &str) -> Result<(), Problem> {
    let _lock = core.locks.of("join-token", id).await;
    let unknown = || Problem::new(Code::NotFound, format!("there is no join token `{id}`"));
    let mut record = core.join_tokens.get(id).ok_or_else(unknown)?;
    if record.revoke(UnixMs::now()) {
        let batch = Batch::new().put(id, &JoinTokenRecord(record.clone()))?;
        core.records.commit(batch).await?;
        core.join_tokens.show(record);
    }
    Ok(())
}

fn internal(error: &dyn std::error::Error) -> Problem {
    Problem::new(Code::Internal, error.to_string())
}

/// A stranger knocks, or a node that was away for long.
pub(crate) async fn enroll(
    core: &Core,
    request: EnrollRequest,
    exporter: &[u8; 32],
) -> EnrollReply {
    let answer = match request.check() {
        Err(problem) => Err(problem),
        Ok(()) => match request {
            EnrollRequest::Join(join) => self::join(core, join).await,
            EnrollRequest::Renew(renew) => renew_late(core, renew, exporter).await,
        },
    };
    answer.map_or_else(EnrollReply::Refused, EnrollReply::Granted)
}

fn granted(core: &Core, node: NodeId, issued: &Issued, now: UnixMs) -> Granted {
    Granted {
        node,
        mesh: core.mesh.clone(),
        cert_der: issued.der.to_vec(),
        ca_der: core.ca.certificate().der().to_vec(),
        expires: issued.identity.validity.not_after,
        server_time: now,
    }
}

async fn join(core: &Core, join: Join) -> Result<Granted, Problem> {
    let now = UnixMs::now();
    let id = join.token.to_string();
    let refused =
        |refusal: hop3_common::identity::Refusal| Problem::new(refusal.code(), refusal.to_string());
    let key = verify_csr(&join.csr_der)
        .map_err(|error| Problem::new(Code::CsrInvalid, error.to_string()))?;
    let _lock = core.locks.of("join-token", &id).await;
    let mut token = core
        .join_tokens
        .get(&id)
        .ok_or_else(|| refused(hop3_common::identity::Refusal::UnknownToken))?;
    let before = token
        .joined_as(&join.secret, key.hash(), now)
        .map_err(refused)?
        .cloned();
    if core.nodes.len() >= NODES_MAX && before.is_none() {
        let message = format!("the mesh has {NODES_MAX} nodes: remove some");
        return Err(Problem::new(Code::Busy, message));
    }
    // Names are given out one at a time.
    let names = core.join_names.lock().await;
    let node = match before {
        Some(node) => node,
        None => choose_name(core, &token, &join.hostname)?,
    };
    let redemption = token
        .redeem(&join.secret, &node, key.hash(), now)
        .map_err(refused)?;
    let issued = issue(core, &node, &key, now)?;
    if redemption == Redemption::Repeat {
        // Its reply was lost; removed meanwhile, it stays out.
        core.nodes
            .find(&node)
            .map_err(|_| Problem::new(Code::NodeRevoked, format!("node `{node}` was removed")))?;
        return Ok(granted(core, node, &issued, now));
    }
    let record = new_node(&node, &token, &key, &issued, &join, now);
    let reason = format!("joined with token {id} as {}", record.tier);
    let decision = Decision::new(format!("node/{node}"), "enroll", reason);
    let batch = Batch::new()
        .put(&id, &JoinTokenRecord(token.clone()))?
        .put(node.as_str(), &record)?;
    core.records
        .commit(core.decisions.record(batch, decision, now)?)
        .await?;
    core.join_tokens.show(token);
    let found = Arc::new(Node::new(record, CursorRecord::default(), now));
    core.nodes.insert(found.clone());
    drop(names);
    core.nodes.changed();
    registry::tell(core, &found);
    tracing::info!(%node, "enrolled");
    Ok(granted(core, node, &issued, now))
}

fn new_node(
    node: &NodeId,
    token: &TokenRecord,
    key: &VerifiedPublicKey,
    issued: &Issued,
    join: &Join,
    now: UnixMs,
) -> NodeRecord {
    let fact = |name: &str| join.facts.get(name).cloned().unwrap_or_default();
    let facts = NodeFacts {
        hostname: join.hostname.clone(),
        arch: fact("arch"),
        os: fact("os"),
        ..NodeFacts::default()
    };
    NodeRecord {
        id: node.clone(),
        tier: token.tier,
        labels: token.labels.clone(),
        cordoned: false,
        draining: false,
        enrolled: now,
        key: key.hash(),
        key_before: None,
        certificate_expires: issued.identity.validity.not_after,
        facts,
        agent_version: fact("version"),
        connected: None,
    }
}

/// The operator's name, else the host's, else the host's with a number.
fn choose_name(core: &Core, token: &TokenRecord, hostname: &str) -> Result<NodeId, Problem> {
    let taken = |name: &NodeId| core.nodes.get(name).is_some();
    let refuse = |name: &str| {
        let message =
            format!("there is a node `{name}` already: remove it, or choose another name");
        Problem::new(Code::NodeNameTaken, message)
    };
    if let Some(name) = &token.name {
        return if taken(name) {
            Err(refuse(name.as_str()))
        } else {
            Ok(name.clone())
        };
    }
    let base = base_name(hostname);
    let numbered = (2..NAMES_TRIED_MAX).map(|n| format!("{base}-{n}"));
    std::iter::once(base.clone())
        .chain(numbered)
        .filter_map(|name| name.parse().ok())
        .find(|name| !taken(name))
        .ok_or_else(|| refuse(&base))
}

/// A host name's first label as a node's name, short enough for a number after it.
fn base_name(hostname: &str) -> String {
    const CHARS_MAX: usize = 56;
    let label = hostname
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let plain = label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let name: String = plain.take(CHARS_MAX).collect();
    let name = name.trim_matches('-');
    if name.is_empty() {
        "node".to_owned()
    } else {
        name.to_owned()
    }
}

fn issue(
    core: &Core,
    node: &NodeId,
    key: &VerifiedPublicKey,
    now: UnixMs,
) -> Result<Issued, Problem> {
    core.ca
        .issue_node(node, key, now, core.settings.certificate_ttl_s)
        .map_err(|error| internal(&error))
}

/// Whether the records let the holder of this certificate go on.
fn standing(core: &Core, identity: &PeerIdentity) -> Standing {
    if core.nodes.revoked(&identity.key).is_some() {
        return Standing::Revoked;
    }
    let Some(node) = identity.node().and_then(|node| core.nodes.get(node)) else {
        return Standing::Unknown;
    };
    let record = node.record.load();
    if record.key == identity.key || record.key_before == Some(identity.key) {
        Standing::Good
    } else {
        Standing::Superseded
    }
}

async fn renew_late(core: &Core, request: Renew, exporter: &[u8; 32]) -> Result<Granted, Problem> {
    let ca = core.ca.certificate();
    let renewal = renew::verify(ca, &request, exporter, |identity| standing(core, identity))
        .map_err(|refusal| Problem::new(refusal.code(), refusal.to_string()))?;
    let now = UnixMs::now();
    let proven = renewal.old.key;
    let issued = renewed(core, &request.node, proven, &renewal.key, now).await?;
    Ok(granted(core, request.node, &issued, now))
}

/// Renewal on a live session: the session itself is the proof.
pub(crate) async fn renew_live(
    core: &Core,
    node: &NodeId,
    csr_der: &[u8],
) -> Result<Bytes, Problem> {
    let key =
        verify_csr(csr_der).map_err(|error| Problem::new(Code::CsrInvalid, error.to_string()))?;
    let found = core.nodes.find(node)?;
    let shown = found.live().session.as_ref().map(|session| session.key);
    let proven = shown.ok_or_else(|| Problem::new(Code::Conflict, "the session has ended"))?;
    let issued = renewed(core, node, proven, &key, UnixMs::now()).await?;
    Ok(Bytes::copy_from_slice(&issued.der))
}

/// Issues a certificate and records its key before it is handed out. The `proven` key, which the
/// node surely has, stays good until the node shows the new one: the reply may be lost.
async fn renewed(
    core: &Core,
    name: &NodeId,
    proven: KeyHash,
    key: &VerifiedPublicKey,
    now: UnixMs,
) -> Result<Issued, Problem> {
    let _lock = core.locks.of("node", name.as_str()).await;
    let node = core
        .nodes
        .get(name)
        .ok_or_else(|| Problem::new(Code::NodeRevoked, format!("node `{name}` was removed")))?;
    let issued = issue(core, name, key, now)?;
    let before = node.record.load_full();
    let record = NodeRecord {
        key: key.hash(),
        key_before: Some(proven).filter(|proven| *proven != key.hash()),
        certificate_expires: issued.identity.validity.not_after,
        ..(*before).clone()
    };
    core.records
        .commit(Batch::new().put(name.as_str(), &record)?)
        .await?;
    node.record.store(Arc::new(record));
    tracing::info!(node = %name, "certificate renewed");
    Ok(issued)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_become_node_names() {
        let cases = [
            ("Edge-1.example.org", "edge-1"),
            ("rasp_berry", "rasp-berry"),
            ("", "node"),
            ("..", "node"),
            ("--x--", "x"),
            ("é", "node"),
        ];
        for (host, name) in cases {
            assert_eq!(base_name(host), name);
            assert!(base_name(host).parse::<NodeId>().is_ok());
        }
        assert!(base_name(&"x".repeat(300)).parse::<NodeId>().is_ok());
    }
}
