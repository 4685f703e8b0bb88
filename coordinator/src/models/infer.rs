//! Inferences: checked here, run on a ready replica. No store, no lock is held while a node works.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use hop3_common::{
    codes::{Code, Problem},
    id::{ModelName, NodeId},
    spec::nearest,
    tensor::{Bindings, Tensor, TensorSpec},
    wire::{CallResult, Target},
};

use super::table::{Route, RouteReplica};
use crate::Core;

/// What an inference gave.
#[derive(Debug)]
pub struct Inference {
    /// Outputs by name, in the model's order.
    pub outputs: Vec<(String, Tensor)>,
    /// The version that answered.
    pub version: u32,
    /// The node that answered.
    pub node: NodeId,
    /// Time in the model, microseconds.
    pub infer_us: u64,
}

/// Counts a call while it lasts, also when its caller goes away.
pub(crate) struct InFlight<'a>(&'a AtomicU32);

impl<'a> InFlight<'a> {
    pub(crate) fn begin(calls: &'a AtomicU32) -> Self {
        calls.fetch_add(1, Relaxed);
        Self(calls)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// One inference. An inference changes nothing, so another replica is tried when a node goes away
/// or is busy, at most each one once.
pub(crate) async fn infer(
    core: &Core,
    name: &ModelName,
    inputs: Vec<(String, Tensor)>,
) -> Result<Inference, Problem> {
    let routes = core.models.routes.load();
    let route = match routes.get(name) {
        Some(route) => route.clone(),
        None => return Err(not_ready(core, name)),
    };
    drop(routes);
    let mut last = None;
    for replica in in_order(&route) {
        if !replica.link.is_open() {
            continue;
        }
        let inputs = arrange(&inputs, &replica.version.facts.inputs)?;
        match ask(replica, inputs, route.deadline.0).await {
            Err(problem) if elsewhere(problem.code) => last = Some(problem),
            answered => return answered,
        }
    }
    Err(last.unwrap_or_else(|| not_ready(core, name)))
}

fn elsewhere(code: Code) -> bool {
    matches!(
        code,
        Code::NodeUnreachable | Code::Busy | Code::ModelNotReady
    )
}

/// The replicas, least busy first; among equals in turn.
fn in_order(route: &Route) -> impl Iterator<Item = &RouteReplica> {
    let count = route.replicas.len().max(1);
    let first = route.next.fetch_add(1, Relaxed) % count;
    let mut order: Vec<&RouteReplica> = route.replicas[first.min(route.replicas.len())..]
        .iter()
        .chain(&route.replicas[..first.min(route.replicas.len())])
        .collect();
    order.sort_by_key(|replica| replica.calls.load(Relaxed));
    order.into_iter()
}

async fn ask(
    replica: &RouteReplica,
    inputs: Vec<Tensor>,
    deadline_ms: u64,
) -> Result<Inference, Problem> {
    let (instance, epoch) = (replica.instance.clone(), replica.epoch);
    let target = Target::Model {
        instance,
        epoch,
        inputs,
    };
    let flight = InFlight::begin(&replica.calls);
    let answer = replica
        .link
        .call(target, Duration::from_millis(deadline_ms))
        .await;
    drop(flight);
    let node = replica.link.node();
    let CallResult::Model { outputs, infer_us } = answer? else {
        let message = format!("node `{node}` answered an inference with something else");
        return Err(Problem::new(Code::Protocol, message));
    };
    let known = &replica.version.facts.outputs;
    if outputs.len() != known.len() {
        let message = format!(
            "node `{node}` gave {} outputs instead of {}",
            outputs.len(),
            known.len()
        );
        return Err(Problem::new(Code::ModelFailed, message));
    }
    let names = known.iter().map(|spec| spec.name().to_owned());
    Ok(Inference {
        outputs: names.zip(outputs).collect(),
        version: replica.version.version,
        node: node.clone(),
        infer_us,
    })
}

/// The inputs in the model's order, each checked against what it takes.
fn arrange(inputs: &[(String, Tensor)], wanted: &[TensorSpec]) -> Result<Vec<Tensor>, Problem> {
    let wrong = |message: String| Problem::new(Code::TensorShape, message);
    let takes = || {
        wanted
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (n, (name, _)) in inputs.iter().enumerate() {
        if !wanted.iter().any(|spec| spec.name() == name) {
            let near = nearest(name, wanted.iter().map(TensorSpec::name));
            let hint = near
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            return Err(wrong(format!(
                "no input is named `{name}`: it takes {}{hint}",
                takes()
            )));
        }
        if inputs[..n].iter().any(|(other, _)| other == name) {
            return Err(wrong(format!("input `{name}` is given twice")));
        }
    }
    let mut bindings = Bindings::new();
    let mut arranged = Vec::with_capacity(wanted.len());
    for spec in wanted {
        let given = inputs.iter().find(|(name, _)| name == spec.name());
        let Some((_, tensor)) = given else {
            return Err(wrong(format!(
                "input `{}` is missing: it takes {}",
                spec.name(),
                takes()
            )));
        };
        spec.check(tensor, &mut bindings)
            .map_err(|mismatch| wrong(mismatch.to_string()))?;
        arranged.push(tensor.clone());
    }
    Ok(arranged)
}

fn not_ready(core: &Core, name: &ModelName) -> Problem {
    let model = match super::view(core, name) {
        Ok(model) => model,
        Err(problem) => return problem,
    };
    if model.deployed.is_none() {
        let message = format!("model `{name}` is not deployed: `hop3 model deploy {name}`");
        return Problem::new(Code::ModelNotReady, message);
    }
    let why: Vec<String> = model
        .replicas
        .iter()
        .take(3)
        .map(|replica| {
            format!(
                "{} {}: {}",
                replica.instance, replica.status, replica.reason
            )
        })
        .collect();
    let message = format!("no replica of model `{name}` is ready; {}", why.join("; "));
    Problem::new(Code::ModelNotReady, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn inputs_are_arranged_and_checked() {
        let wanted: Vec<TensorSpec> =
            vec!["a:f32[n,2]".parse().unwrap(), "b:i64[n]".parse().unwrap()];
        let a = Tensor::from_f32(vec![3, 2], &[0.0; 6]).unwrap();
        let b = Tensor::from_i64(vec![3], &[0; 3]).unwrap();
        let given = |inputs: &[(&str, &Tensor)]| -> Vec<(String, Tensor)> {
            inputs
                .iter()
                .map(|(name, t)| ((*name).to_owned(), (*t).clone()))
                .collect()
        };
        let ok = arrange(&given(&[("b", &b), ("a", &a)]), &wanted).unwrap();
        assert_eq!(ok, vec![a.clone(), b.clone()]);
        let short = Tensor::from_i64(vec![2], &[0; 2]).unwrap();
        let cases = [
            (given(&[("a", &a)]), "input `b` is missing"),
            (
                given(&[("a", &a), ("b", &b), ("c", &b)]),
                "no input is named `c`",
            ),
            (given(&[("a", &a), ("a", &a)]), "given twice"),
            (
                given(&[("a", &b), ("b", &b)]),
                "must be f32[n,2], got i64[3]",
            ),
            (given(&[("a", &a), ("b", &short)]), "n = 3"),
        ];
        for (inputs, says) in cases {
            let problem = arrange(&inputs, &wanted).unwrap_err();
            assert_eq!(problem.code, Code::TensorShape);
            assert!(problem.message.contains(says), "{problem}");
        }
    }
}
