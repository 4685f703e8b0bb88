//! The life of a task, as a pure state machine: a state and an event give the next state and what
//! to record about it. What has to be *done* follows from the state alone (level-triggered).
//!
//! Invariants
//! - A final phase never changes.
//! - The epoch grows with each placement, and otherwise only to that which its node holds already
//!   (when the record was restored from a backup).
//! - Only the node that owns the newest epoch is heard, and only its newest incarnation.
//! - A task with `retry: never` is placed at most once, unless its node refused it as busy before
//!   it ran.

use hop3_common::{
    api::TaskPhase,
    codes::{Code, Problem},
    id::{NodeId, UnixMs},
    ownership::{Epoch, Fence, Token, Verdict},
    spec::Retry,
    wire::{self, End, TaskResult},
};
use serde::{Deserialize, Serialize};

/// How often a task is placed anew before it is given up: bounds flapping.
pub const PLACEMENTS_MAX: u32 = 16;

/// Where a task stands: the part of its record that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    /// Its phase.
    pub phase: TaskPhase,
    /// Why, in a sentence.
    pub reason: String,
    /// Who owns it.
    pub node: Option<NodeId>,
    /// The newest ownership.
    pub epoch: Epoch,
    /// The newest run heard of.
    pub fence: Fence,
    /// How often it was placed.
    pub placements: u32,
    /// A node that refused it: not asked again next time.
    pub avoid: Option<NodeId>,
    /// Somebody asked for its end.
    pub cancel: bool,
    /// When it first ran.
    pub started: Option<UnixMs>,
    /// When it ended.
    pub ended: Option<UnixMs>,
    /// Time to fetch and to load the module, microseconds.
    pub prepare_us: Option<(u64, u64)>,
    /// How it ended.
    pub result: Option<TaskResult>,
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The scheduler chose a node.
    Placed {
        /// Which.
        node: NodeId,
        /// The placement in a sentence.
        reason: String,
    },
    /// The scheduler found none.
    Unplaceable {
        /// Why.
        reason: String,
    },
    /// A node reports.
    Report {
        /// Which.
        node: NodeId,
        /// The run it speaks of.
        token: Token,
        /// What it says.
        event: wire::Event,
    },
    /// Somebody wants its end. `reachable`: its node has a session.
    Cancel {
        /// Whether the node can be told now.
        reachable: bool,
    },
    /// Its node is away for longer than is waited.
    NodeLost {
        /// Which.
        node: NodeId,
        /// Since when, in words.
        why: String,
    },
    /// Its node was removed from the mesh.
    NodeRemoved {
        /// Which.
        node: NodeId,
    },
    /// Its node came back.
    NodeBack {
        /// Which.
        node: NodeId,
    },
    /// Its node holds it under a newer epoch than is recorded here.
    Held {
        /// Which.
        node: NodeId,
        /// The epoch there.
        epoch: Epoch,
    },
}

/// The next state, and what to record about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The next state.
    pub state: TaskState,
    /// Action and reason of a decision.
    pub decision: Option<(&'static str, String)>,
}

impl TaskState {
    /// A task that was just submitted.
    #[must_use]
    pub fn new() -> Self {
        Self {
            phase: TaskPhase::Pending,
            reason: "waiting to be placed".into(),
            node: None,
            epoch: Epoch(0),
            fence: Fence::default(),
            placements: 0,
            avoid: None,
            cancel: false,
            started: None,
            ended: None,
            prepare_us: None,
            result: None,
        }
    }

    /// Its newest run.
    #[must_use]
    pub fn token(&self) -> Token {
        self.fence.newest().max(Token {
            epoch: self.epoch,
            ..Token::default()
        })
    }

    /// Whether `node` owns it now.
    #[must_use]
    pub fn is_on(&self, node: &NodeId) -> bool {
        !self.phase.is_final() && self.node.as_ref() == Some(node)
    }

    /// What `event` makes of it; `None` when it changes nothing.
    #[must_use]
    pub fn step(&self, retry: Retry, event: Event, now: UnixMs) -> Option<Step> {
        if self.phase.is_final() {
            return None;
        }
        match event {
            Event::Placed { node, reason } => self.placed(node, reason),
            Event::Unplaceable { reason } => self.unplaceable(reason),
            Event::Report { node, token, event } => self.reported(retry, &node, token, event, now),
            Event::Cancel { reachable } => self.cancelled(reachable, now),
            Event::NodeLost { node, why } if self.is_on(&node) => {
                self.lost(retry, format!("node {node} {why}"), false, now)
            }
            Event::NodeRemoved { node } if self.is_on(&node) => {
                self.lost(retry, format!("node {node} was removed"), true, now)
            }
            Event::NodeBack { node } if self.is_on(&node) => self.back(&node),
            Event::Held { node, epoch } if self.is_on(&node) => self.adopt(epoch),
            Event::NodeLost { .. }
            | Event::NodeRemoved { .. }
            | Event::NodeBack { .. }
            | Event::Held { .. } => None,
        }
    }

    fn placed(&self, node: NodeId, reason: String) -> Option<Step> {
        if self.phase != TaskPhase::Pending {
            return None;
        }
        let epoch = self.epoch.next();
        let state = Self {
            phase: TaskPhase::Assigned,
            reason: format!("assigned to {node}"),
            node: Some(node),
            epoch,
            fence: Fence::at(Token {
                epoch,
                ..Token::default()
            }),
            placements: self.placements + 1,
            avoid: None,
            ..self.clone()
        };
        let action = if self.placements == 0 {
            "place"
        } else {
            "retry"
        };
        Some(Step {
            state,
            decision: Some((action, reason)),
        })
    }

    fn unplaceable(&self, reason: String) -> Option<Step> {
        if self.phase != TaskPhase::Pending || self.reason == reason {
            return None;
        }
        let state = Self {
            reason: reason.clone(),
            ..self.clone()
        };
        Some(Step {
            state,
            decision: Some(("wait", reason)),
        })
    }

    fn reported(
        &self,
        retry: Retry,
        node: &NodeId,
        token: Token,
        event: wire::Event,
        now: UnixMs,
    ) -> Option<Step> {
        let mut fence = self.fence;
        let heard = self.node.as_ref() == Some(node)
            && token.epoch == self.epoch
            && fence.admit(token) == Verdict::Accept;
        if !heard {
            return None;
        }
        let heard = Self {
            fence,
            ..self.clone()
        };
        match event {
            wire::Event::Started { fetch_us, load_us } => heard
                .began(node, (fetch_us, load_us), now)
                .filter(|step| step.state != *self),
            wire::Event::TaskEnded(result) => heard.ended(retry, *result, now),
            wire::Event::Failed(problem) => heard.failed(retry, node, problem, now),
            wire::Event::Stopped if self.cancel => Some(heard.close(
                End::Cancelled,
                TaskPhase::Cancelled,
                "cancelled".into(),
                now,
            )),
            wire::Event::Stopped => {
                heard.lost(retry, format!("it was stopped on {node}"), true, now)
            }
            // Only models and services say so.
            wire::Event::ModelReady(_)
            | wire::Event::ServiceReady(_)
            | wire::Event::Checkpointed(_)
            | wire::Event::Sealed(_)
            | wire::Event::NotSealed(_) => None,
        }
    }

    fn began(&self, node: &NodeId, prepare_us: (u64, u64), now: UnixMs) -> Option<Step> {
        let state = Self {
            phase: TaskPhase::Running,
            reason: if self.cancel {
                self.reason.clone()
            } else {
                format!("running on {node}")
            },
            started: self.started.or(Some(now)),
            prepare_us: Some(prepare_us),
            ..self.clone()
        };
        Some(Step {
            state,
            decision: None,
        })
    }

    fn ended(&self, retry: Retry, result: TaskResult, now: UnixMs) -> Option<Step> {
        let (phase, reason) = match &result.end {
            End::Exited(0) => (TaskPhase::Succeeded, "exited with code 0".into()),
            End::Exited(code) => (TaskPhase::Failed, format!("exited with code {code}")),
            End::Cancelled => (TaskPhase::Cancelled, "cancelled".into()),
            End::Failed(problem) if problem.code == Code::TaskLost && !self.cancel => {
                let mut step = self.lost(retry, problem.message.clone(), true, now)?;
                // What the node kept of it is kept here too.
                if step.state.phase.is_final() {
                    step.state.result = Some(result);
                }
                return Some(step);
            }
            End::Failed(problem) => (TaskPhase::Failed, problem.to_string()),
        };
        let state = Self {
            phase,
            reason,
            ended: Some(now),
            result: Some(result),
            ..self.clone()
        };
        Some(Step {
            state,
            decision: None,
        })
    }

    fn failed(&self, retry: Retry, node: &NodeId, problem: Problem, now: UnixMs) -> Option<Step> {
        if self.cancel {
            return Some(self.close(
                End::Cancelled,
                TaskPhase::Cancelled,
                "cancelled".into(),
                now,
            ));
        }
        match problem.code {
            Code::TaskLost => self.lost(retry, problem.message, true, now),
            // Refused before it ran, so another place cannot run it twice.
            Code::Busy if self.started.is_none() => Some(self.again(
                Some(node.clone()),
                format!("{node} was busy: {problem}"),
                now,
            )),
            _ => {
                let reason = problem.to_string();
                Some(self.close(End::Failed(problem), TaskPhase::Failed, reason, now))
            }
        }
    }

    fn cancelled(&self, reachable: bool, now: UnixMs) -> Option<Step> {
        let Some(node) = &self.node else {
            let reason = "cancelled before it was placed".to_owned();
            return Some(self.close(End::Cancelled, TaskPhase::Cancelled, reason, now));
        };
        if !reachable {
            // Final here and fenced: the node is told to stop it when it returns.
            let reason = format!("cancelled while {node} was disconnected");
            return Some(self.close(End::Cancelled, TaskPhase::Cancelled, reason, now));
        }
        if self.cancel {
            return None;
        }
        let reason = format!("cancelling on {node}");
        let state = Self {
            cancel: true,
            reason,
            ..self.clone()
        };
        Some(Step {
            state,
            decision: Some(("stop", "asked for by a user".into())),
        })
    }

    /// Its run is lost. `for_good`: it will not come back by itself.
    fn lost(&self, retry: Retry, why: String, for_good: bool, now: UnixMs) -> Option<Step> {
        match retry {
            _ if self.cancel && (for_good || retry == Retry::OnNodeLoss) => {
                let reason = format!("cancelled; {why}");
                Some(self.close(End::Cancelled, TaskPhase::Cancelled, reason, now))
            }
            Retry::OnNodeLoss => Some(self.again(None, why, now)),
            Retry::Never if for_good => {
                let problem = Problem::new(Code::TaskLost, why.clone());
                let mut step = self.close(End::Failed(problem), TaskPhase::Failed, why, now);
                step.decision = Some(("lost", step.state.reason.clone()));
                Some(step)
            }
            Retry::Never if self.reason == why => None,
            Retry::Never => {
                let state = Self {
                    reason: why.clone(),
                    ..self.clone()
                };
                Some(Step {
                    state,
                    decision: Some(("lost", why)),
                })
            }
        }
    }

    /// To be placed anew, unless that happened too often.
    fn again(&self, avoid: Option<NodeId>, why: String, now: UnixMs) -> Step {
        if self.placements >= PLACEMENTS_MAX {
            let why = format!("given up after {PLACEMENTS_MAX} placements: {why}");
            let problem = Problem::new(Code::TaskLost, why.clone());
            return self.close(End::Failed(problem), TaskPhase::Failed, why, now);
        }
        let reason = format!("to be placed again: {why}");
        let phase = TaskPhase::Pending;
        let state = Self {
            phase,
            reason,
            node: None,
            avoid,
            ..self.clone()
        };
        Step {
            state,
            decision: Some(("lost", why)),
        }
    }

    fn back(&self, node: &NodeId) -> Option<Step> {
        let reason = match (self.cancel, self.phase) {
            (true, _) => format!("cancelling on {node}"),
            (false, TaskPhase::Running) => format!("running on {node}"),
            (false, _) => format!("assigned to {node}"),
        };
        if self.reason == reason {
            return None;
        }
        Some(Step {
            state: Self {
                reason,
                ..self.clone()
            },
            decision: None,
        })
    }

    fn adopt(&self, epoch: Epoch) -> Option<Step> {
        if epoch <= self.epoch {
            return None;
        }
        let why = format!(
            "its node holds epoch {epoch}, the record had {}",
            self.epoch
        );
        let fence = Fence::at(Token {
            epoch,
            ..Token::default()
        });
        let state = Self {
            epoch,
            fence,
            ..self.clone()
        };
        Some(Step {
            state,
            decision: Some(("adopt", why)),
        })
    }

    fn close(&self, end: End, phase: TaskPhase, reason: String, now: UnixMs) -> Step {
        let usage = wire::Usage::default();
        let result = TaskResult {
            end,
            usage,
            stdout: None,
            stderr: None,
        };
        let decision = (phase == TaskPhase::Cancelled).then(|| ("stop", reason.clone()));
        let state = Self {
            phase,
            reason,
            ended: Some(now),
            result: Some(result),
            ..self.clone()
        };
        Step { state, decision }
    }
}

impl Default for TaskState {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
