//! Built guests and data files.

use std::path::{Path, PathBuf};

/// The Wasm guest `name` as `scripts/guests` built it.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    let dir = std::env::var_os("HOP3_GUESTS_DIR")
        .map(PathBuf::from)
        .or_else(|| {
            let cache = std::env::var_os("HOP3_CACHE").map(PathBuf::from);
            Some(
                cache
                    .or_else(|| Some(std::env::home_dir()?.join(".cache/hop3")))?
                    .join("guests"),
            )
        });
    let path = dir.unwrap_or_default().join(format!("{name}.wasm"));
    assert!(
        path.is_file(),
        "{} is not built: run scripts/guests",
        path.display()
    );
    path
}

/// A file under `tests/`.
#[must_use]
pub fn data(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing", path.display());
    path
}
