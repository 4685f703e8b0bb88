//! Sizes of the binaries as they are shipped, in MB (10^6 bytes).

use anyhow::Result;

use crate::{cast, report::Bench};

pub(super) fn run(bench: &Bench) -> Result<()> {
    for (metric, name) in [
        ("agent.binary_mb", "hop3-agent"),
        ("coordinator.binary_mb", "hop3-coordinator"),
        ("cli.binary_mb", "hop3"),
    ] {
        let bytes = std::fs::metadata(hop3_tests::bin(name))?.len();
        bench.report(metric, &[cast::figure(bytes) / 1e6], None);
    }
    Ok(())
}
