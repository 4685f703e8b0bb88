//! How much to try, from which seed, and what came of it.

use std::io::Write;

/// Whether `HOP3_LONG` asks for many images.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("HOP3_LONG").is_some()
}

/// The seed to begin with: `HOP3_SEED`, else a fixed one.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("HOP3_SEED").ok();
    given.map_or(1, |given| given.parse().expect("HOP3_SEED is a number"))
}

/// What a test tried. Something lost ends the test, so a report that is printed has none.
#[derive(Debug, Default, Clone, Copy)]
pub struct Report {
    /// Different sequences of operations.
    pub workloads: usize,
    /// Images that were opened and checked.
    pub images: usize,
    /// Images that had not everything that was acknowledged.
    pub lost: usize,
}

impl Report {
    /// Prints one line for people and benchmarks.
    pub fn print(&self, what: &str) {
        let Self {
            workloads,
            images,
            lost,
        } = self;
        let _ = writeln!(
            std::io::stdout(),
            "powercut: of={what}, workloads={workloads}, images={images}, lost={lost}"
        );
    }
}
