//! A slow disk without a knob in the product: a library that delays every sync, preloaded into
//! one process.

use std::process::Command;

use anyhow::{Context as _, Result};
use tempfile::TempPath;

/// How much longer a sync takes.
pub(crate) const DELAY_MS: f64 = 10.0;

const SOURCE: &str = include_str!("slowdisk.c");

/// The library, built for this machine; removed when it is dropped.
pub(crate) struct Library(TempPath);

impl Library {
    /// Where it is, for `LD_PRELOAD`.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

/// Builds the library.
pub(crate) fn build() -> Result<Library> {
    let source = tempfile::Builder::new().suffix(".c").tempfile()?;
    std::fs::write(source.path(), SOURCE)?;
    let library = tempfile::Builder::new().suffix(".so").tempfile()?;
    let library = library.into_temp_path();
    let built = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC"])
        .arg(format!("-DSLOWDISK_DELAY_MS={DELAY_MS}"))
        .arg("-o")
        .args([library.as_os_str(), source.path().as_os_str()])
        .arg("-ldl")
        .output()
        .context("cc does not run: apt-get install gcc libc6-dev")?;
    anyhow::ensure!(
        built.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    Ok(Library(library))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_that_preloads_it_syncs_late() {
        let library = build().expect("it builds");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let begun = Instant::now();
        // One sync: `dd` with `conv=fdatasync`.
        let status = Command::new("dd")
            .args(["if=/dev/zero", "bs=1", "count=1", "status=none"])
            .args(["conv=fdatasync"])
            .arg(format!("of={}", file.path().display()))
            .env("LD_PRELOAD", library.path())
            .status();
        assert!(status.is_ok_and(|status| status.success()));
        assert!(begun.elapsed() >= Duration::from_millis(10));
    }
}
