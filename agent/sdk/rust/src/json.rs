//! Just enough to write JSON without a dependency. To read it, add a crate.

use std::fmt::Write as _;

/// `text` as a JSON string, quoted.
///
/// ```
/// assert_eq!(hop3_guest::json::string("a \"b\"\n"), r#""a \"b\"\n""#);
/// ```
#[must_use]
pub fn string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A number; `null` where JSON has none (infinite, not a number).
#[must_use]
pub fn number(value: f64) -> String {
    if value.is_finite() {
        value.to_string()
    } else {
        "null".to_owned()
    }
}

/// An array of values that are JSON already.
#[must_use]
pub fn array(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<String> = values.into_iter().collect();
    format!("[{}]", values.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_out_is_escaped() {
        assert_eq!(string("\u{1}\\é"), "\"\\u0001\\\\é\"");
        assert_eq!(number(f64::NAN), "null");
        assert_eq!(number(1.5), "1.5");
        assert_eq!(array(["1".to_owned(), "2".to_owned()]), "[1,2]");
    }
}
