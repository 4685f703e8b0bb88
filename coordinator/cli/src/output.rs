//! Printing: tables for people, JSON and YAML for programs, errors on stderr.

use std::io::{IsTerminal as _, Write as _};

use anyhow::Result;
use comfy_table::{Cell, ContentArrangement, Table};
use hop3_common::codes::Code;
use serde::Serialize;

use crate::{
    args::Format,
    client::{code_of, refusal},
};

/// Prints data as asked: `value` itself, or the text that `table` makes of it.
pub fn print<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<()> {
    let text = match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)?,
        Format::Yaml => serde_norway::to_string(value)?,
    };
    print_line(text.trim_end());
    Ok(())
}

/// Prints a line to stdout. A reader that went away is not an error.
pub fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// A note for people, on stderr.
pub fn note(text: &str) {
    eprintln!("{text}");
}

/// A table without lines, as wide as the terminal.
pub fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(header.map(Cell::new));
    for row in rows {
        table.add_row(row);
    }
    let text = table.to_string();
    // Trailing blanks annoy whoever copies or compares.
    text.lines()
        .map(str::trim_end)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Lines of `name: value`, aligned.
pub fn facts(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{name:<width$}  {value}");
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Prints an error with its causes, its code's fix included, on stderr.
pub fn print_error(error: &anyhow::Error) {
    let red = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let head = if red {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    };
    let code = code_of(error);
    // A refusal says its code itself.
    let own = code.filter(|_| refusal(error).is_none());
    let own = own.map(|code| format!(" [{code}]")).unwrap_or_default();
    eprintln!("{head} {error}{own}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    if let Some(fix) = code.map(Code::fix).filter(|fix| !fix.is_empty()) {
        eprintln!("  fix: {fix}");
    }
}

/// `12.3 s`, `4.5 ms`, `870 µs`.
#[must_use]
pub fn micros(us: u64) -> String {
    match us {
        us if us < 1000 => format!("{us} µs"),
        us if us < 1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        us => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// How long ago, coarsely.
#[must_use]
pub fn ago(now: hop3_common::id::UnixMs, then: hop3_common::id::UnixMs) -> String {
    match now.since(then) / 1000 {
        0..=1 => "now".to_owned(),
        s if s < 60 => format!("{s}s ago"),
        s if s < 3600 => format!("{}m ago", s / 60),
        s if s < 86_400 => format!("{}h ago", s / 3600),
        s => format!("{}d ago", s / 86_400),
    }
}

/// Asks on the terminal before something is destroyed.
pub fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    anyhow::ensure!(
        std::io::stdin().is_terminal(),
        "{question}: give --yes to say so"
    );
    eprint!("{question}? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    anyhow::ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "nothing was changed"
    );
    Ok(())
}
