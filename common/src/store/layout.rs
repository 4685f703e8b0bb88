//! Names of journal and snapshot files.

use std::path::{Path, PathBuf};

use super::Revision;

/// The files of a journal directory, sorted by kind and number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Files {
    pub(super) snapshots: Vec<Revision>,
    pub(super) journals: Vec<Revision>,
    /// Temporary files of an interrupted write.
    pub(super) rests: Vec<PathBuf>,
}

impl Files {
    /// Sorts the names in `dir`; leaves alone what is not ours.
    pub(super) fn sort(dir: &Path, names: &[String]) -> Self {
        let mut files = Self::default();
        for name in names {
            if let Some(number) = number(name, "snapshot-") {
                files.snapshots.push(number);
            } else if let Some(number) = number(name, "journal-") {
                files.journals.push(number);
            } else if let Some(stem) = name.strip_suffix(".tmp")
                && (number(stem, "snapshot-").or_else(|| number(stem, "journal-"))).is_some()
            {
                files.rests.push(dir.join(name));
            }
        }
        files.snapshots.sort_unstable();
        files.journals.sort_unstable();
        files
    }
}

fn number(name: &str, prefix: &str) -> Option<Revision> {
    let digits = name.strip_prefix(prefix)?;
    let exact = digits.len() == 16
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let number = u64::from_str_radix(digits, 16).ok()?;
    exact.then_some(Revision(number))
}

pub(super) fn older(numbers: &[Revision], base: Revision) -> impl Iterator<Item = Revision> + '_ {
    numbers.iter().copied().filter(move |n| *n < base)
}

pub(super) fn snapshot_path(dir: &Path, base: Revision) -> PathBuf {
    dir.join(format!("snapshot-{:016x}", base.0))
}

pub(super) fn journal_path(dir: &Path, base: Revision) -> PathBuf {
    dir.join(format!("journal-{:016x}", base.0))
}

pub(super) fn temp_path(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_are_ours() {
        let dir = Path::new("/d");
        let names = [
            "journal-000000000000000a",
            "journal-00000000000000A0",
            "journal-a",
            "snapshot-0000000000000003",
            "snapshot-0000000000000002",
            "snapshot-0000000000000003.tmp",
            "notes.tmp",
            "index",
        ]
        .map(String::from);
        let files = Files::sort(dir, &names);
        assert_eq!(files.journals, [Revision(10)]);
        assert_eq!(files.snapshots, [Revision(2), Revision(3)]);
        assert_eq!(files.rests, [temp_path(&snapshot_path(dir, Revision(3)))]);
    }
}
