//! Leases of fenced instances, granted over sessions; the rules are
//! [`hop3_common::ownership::Leases`]'.

use hop3_common::{
    clock::boot_now,
    id::InstanceId,
    ownership::{Token, drift_ms},
    spec::Millis,
    wire::Down,
};

use super::table::Service;
use crate::{Core, mesh::NodeLink, records::ServiceInstanceRecord};

/// Time that a new owner gets for its first request, ms: it may have to restart first.
const FIRST_MS: u64 = 10_000;

/// Grants what can be granted.
pub(crate) fn leases(core: &Core, link: &NodeLink, number: u64, runs: Vec<(InstanceId, Token)>) {
    let mut granted = Vec::with_capacity(runs.len());
    for (instance, token) in runs {
        let Some((name, index)) = instance.as_service() else {
            continue;
        };
        let service = core.services.get(&name);
        let Some((service, record)) = service
            .as_ref()
            .and_then(|service| Some((service, service.instance(index)?)))
        else {
            continue;
        };
        let Some(ttl) = ttl(service, record) else {
            continue;
        };
        let mut leases = core.services.leases();
        if leases.grant(
            &instance,
            &record.own,
            link.node(),
            token,
            ttl.0,
            boot_now(),
        ) {
            let ttl_ms = u32::try_from(ttl.0).unwrap_or(u32::MAX);
            granted.push((instance, token, ttl_ms));
        }
    }
    let answer = Down::Leases {
        number,
        runs: granted,
    };
    // A session that just ended asks again in its next one.
    let _ = link.send(answer);
}

/// What may be granted: no more than the record says that it may have been.
fn ttl(service: &Service, record: &ServiceInstanceRecord) -> Option<Millis> {
    let wanted = service.record.spec.fence()?;
    Some(wanted.min(record.fence?))
}

/// Whether nobody can hold a lease on the instance any more.
pub(super) fn over(core: &Core, id: &InstanceId, record: &ServiceInstanceRecord) -> bool {
    let ttl = record.fence.unwrap_or_default();
    core.services.leases().over(id, ttl.0) <= boot_now()
}

/// Bars the epoch of the record from leases, if nobody can hold one any more.
pub(super) fn take(core: &Core, id: &InstanceId, record: &ServiceInstanceRecord) -> bool {
    let (epoch, ttl) = (record.own.epoch, record.fence.unwrap_or_default());
    let mut leases = core.services.leases();
    leases.take(id, epoch, ttl.0, boot_now())
}

/// The instance has a new owner: it gets time to ask.
pub(super) fn expect(core: &Core, id: &InstanceId, ttl: Millis) {
    let until = boot_now().plus(FIRST_MS).plus(drift_ms(ttl.0));
    core.services.leases().expect(id, until);
}
