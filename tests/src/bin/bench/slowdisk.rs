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

    /// An error unless the process has loaded it.
    pub(crate) fn expect_in(&self, pid: u32) -> Result<()> {
        let path = format!("/proc/{pid}/maps");
        let maps = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        let library = self.0.display().to_string();
        anyhow::ensure!(
            maps.lines().any(|line| line.ends_with(&library)),
            "{path} lacks {library}: the process did not preload it"
        );
        Ok(())
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
        const SYNCS: u32 = 50;
        let library = build().expect("it builds");
        let file = tempfile::NamedTempFile::new().expect("a file");
        let begun = Instant::now();
        // Nothing is to be written: without the library they take no time.
        let status = Command::new("sync")
            .arg("--data")
            .args((0..SYNCS).map(|_| file.path()))
            .env("LD_PRELOAD", library.path())
            .status();
        assert!(status.is_ok_and(|status| status.success()));
        assert!(begun.elapsed() >= Duration::from_secs_f64(DELAY_MS / 1e3) * SYNCS);
    }
}
