//! Reads a CSV series (`timestamp,value`, with or without a header) from standard input and
//! writes one line per unusual value to standard output as soon as it is seen:
//! `timestamp,value,z-score`. A summary and refused rows go to standard error.
//!
//! `anomaly [WINDOW [THRESHOLD]]`, by default 336 values (a week of half hours) and 3 standard
//! deviations. Exits with 2 if the arguments are wrong or no row could be read.

use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;

mod detector;

use detector::Detector;

/// Longest row that is read, in bytes; the rest of a longer one is a row of its own, and refused.
const ROW_MAX: u64 = 4096;
/// Largest window, in values: 8 MB.
const WINDOW_MAX: usize = 1_000_000;
/// Refused rows that are reported one by one.
const REPORTED_MAX: u64 = 10;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let window = args.next().map_or(Some(336), |arg| arg.parse().ok());
    let threshold = args.next().map_or(Some(3.0), |arg| arg.parse().ok());
    let (Some(window @ 2..=WINDOW_MAX), Some(threshold)) = (window, threshold) else {
        eprintln!("usage: anomaly [WINDOW [THRESHOLD]], WINDOW from 2 to {WINDOW_MAX}");
        return ExitCode::from(2);
    };
    match watch(&mut Detector::new(window, threshold)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("anomaly: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether there was any row.
fn watch(detector: &mut Detector) -> io::Result<bool> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut row = Vec::new();
    let (mut rows, mut refused, mut found) = (0_u64, 0_u64, 0_u64);
    loop {
        row.clear();
        if input.by_ref().take(ROW_MAX).read_until(b'\n', &mut row)? == 0 {
            break;
        }
        let Some((timestamp, value)) = parse(&row) else {
            // The first one may be the header.
            if rows + refused > 0 && refused <= REPORTED_MAX {
                eprintln!("row {} refused", rows + refused + 1);
            }
            refused += 1;
            continue;
        };
        rows += 1;
        if let Some(score) = detector.next(value) {
            found += 1;
            writeln!(output, "{timestamp},{value},{score:.2}")?;
            output.flush()?;
        }
    }
    eprintln!("{rows} rows, {found} unusual, {refused} refused (a header counts as one)");
    Ok(rows > 0)
}

fn parse(row: &[u8]) -> Option<(&str, f64)> {
    let (timestamp, value) = std::str::from_utf8(row).ok()?.trim_end().rsplit_once(',')?;
    let value = value
        .trim()
        .parse()
        .ok()
        .filter(|value: &f64| value.is_finite())?;
    Some((timestamp, value))
}
