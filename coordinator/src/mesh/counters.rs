//! What the mesh counts. Relaxed atomics: each number is right, their mix is approximate.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters, shared by the whole mesh.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        /// Counters at one moment. All grow from the start of the process.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Connection attempts, refused ones included.
    connections,
    /// Attempts sent back to prove their address.
    retries,
    /// Attempts refused at admission: over a limit.
    handshakes_shed,
    /// Attempts whose TLS handshake failed or took too long.
    handshakes_failed,
    /// Connections without a certificate that a session needs.
    unauthenticated,
    /// Enrolment requests answered, grants and refusals.
    enrolments,
    /// Sessions that were welcomed.
    sessions,
    /// Sessions refused after their `Hello`.
    sessions_refused,
    /// Sessions ended by a newer one of the same node.
    sessions_replaced,
    /// Sessions closed because the node did not take what was sent.
    sessions_stuck,
    /// Frames that were malformed, oversize or out of place.
    malformed,
    /// Reports that became durable.
    reports,
    /// Telemetry samples taken.
    samples,
    /// Telemetry batches dropped: over the rate.
    telemetry_dropped,
    /// Calls sent to nodes.
    calls,
    /// Calls that met their deadline or were given up by their caller.
    calls_abandoned,
    /// Bytes of blobs sent to nodes.
    blob_bytes_sent,
    /// Bytes of blobs taken from nodes.
    blob_bytes_received,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(super) fn one(&self) {
        self.add(1);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
