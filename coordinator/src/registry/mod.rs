//! Nodes: who they are (records), how they live (sessions, telemetry, what they hold), and what of
//! them is promised.
//!
//! Invariants
//! - A node's session is the newest of its links; an older one's late words are ignored.
//! - A node is told things only after its inventory of this session came.
//! - Removing a node commits first, then ends its session.

mod ledger;
mod link;
mod node;
mod session;
mod verbs;
mod view;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicU64},
};

use hop3_common::{
    codes::{Code, Problem},
    id::{NodeId, UnixMs},
    identity::KeyHash,
};

pub(crate) use ledger::Ledger;
pub(crate) use link::{FrameSink, FrameSource, Link};
use node::bounded;
pub(crate) use node::{Holds, Node};
pub(crate) use session::{connected, disconnected, facts, inventory, report, samples};
pub(crate) use verbs::{patch, remove, telemetry, watch, watch_expired};
pub(crate) use view::{status, tell, view, views};

use crate::records::{CursorRecord, NodeRecord, Records, RevokedRecord};

/// Most nodes of a mesh.
pub(crate) const NODES_MAX: usize = 16_384;

/// All nodes.
pub(crate) struct Nodes {
    by_id: RwLock<BTreeMap<NodeId, Arc<Node>>>,
    revoked: RwLock<BTreeMap<KeyHash, NodeId>>,
    ledger: Mutex<Ledger>,
    /// Grows whenever placements may come out otherwise.
    pub(crate) topology: AtomicU64,
}

impl Nodes {
    pub(crate) async fn load(records: &Records, now: UnixMs) -> Result<Self, Problem> {
        let cursors: BTreeMap<String, CursorRecord> = records.all().await?.into_iter().collect();
        let nodes = records
            .all::<NodeRecord>()
            .await?
            .into_iter()
            .map(|(id, record)| {
                let cursor = cursors.get(&id).copied().unwrap_or_default();
                (record.id.clone(), Arc::new(Node::new(record, cursor, now)))
            });
        let by_id = RwLock::new(nodes.collect());
        let revoked = records
            .all::<RevokedRecord>()
            .await?
            .into_iter()
            .filter_map(|(id, record)| {
                Some((KeyHash(format!("sha256:{id}").parse().ok()?), record.node))
            });
        Ok(Self {
            by_id,
            revoked: RwLock::new(revoked.collect()),
            ledger: Mutex::default(),
            topology: AtomicU64::new(1),
        })
    }

    /// Promises. Taken last and never across an await.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<Arc<Node>> {
        self.by_id
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(node)
            .cloned()
    }

    pub(crate) fn find(&self, node: &NodeId) -> Result<Arc<Node>, Problem> {
        self.get(node).ok_or_else(|| unknown(self, node))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Node>> {
        self.by_id
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    pub(crate) fn insert(&self, node: Arc<Node>) {
        let mut nodes = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.id.clone(), node);
    }

    fn take(&self, node: &NodeId) -> Option<Arc<Node>> {
        self.by_id
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node)
    }

    /// The node that was thrown out with this key.
    pub(crate) fn revoked(&self, key: &KeyHash) -> Option<NodeId> {
        self.revoked
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    fn revoke(&self, key: KeyHash, node: &NodeId) {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        revoked.insert(key, node.clone());
    }

    /// Placements may come out otherwise from now on.
    pub(crate) fn changed(&self) {
        self.topology
            .fetch_add(1, std::sync::atomic::Ordering::Release);
    }
}

fn unknown(nodes: &Nodes, node: &NodeId) -> Problem {
    let names = nodes.all();
    let near = hop3_common::spec::nearest(node.as_str(), names.iter().map(|n| n.id.as_str()));
    let hint = near
        .map(|near| format!("; did you mean `{near}`?"))
        .unwrap_or_default();
    Problem::new(
        Code::NodeUnknown,
        format!("there is no node `{node}`{hint}"),
    )
}
