//! The lines a guest's workload prints on its console, and dom0 reads back.
//!
//! A line is `LS <kind> key=value key=value …`. Everything else on the console
//! (kernel messages, a shell) is ignored, so one console serves both.

use std::fmt;

/// One line of the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What the line is about: `beat`, `gap`, `verify`, …
    pub kind: String,
    fields: Vec<(String, String)>,
}

impl Line {
    /// Starts a line of a kind, without fields.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            fields: Vec::new(),
        }
    }

    /// The line with one field more. Blanks in the value would end it, so they
    /// become underscores.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl fmt::Display) -> Self {
        let value = value.to_string().replace(char::is_whitespace, "_");
        self.fields.push((key.to_owned(), value));
        self
    }

    /// Reads a console line; `None` if it is not one of the workload's.
    ///
    /// A kernel message may have been cut off by ours without a line end, so
    /// `LS` is looked for at the start of any word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let start = text
            .match_indices("LS ")
            .map(|(at, _)| at)
            .find(|&at| at == 0 || !text.as_bytes()[at - 1].is_ascii_alphanumeric())?;
        let mut words = text[start + 3..].split_whitespace();
        let mut line = Self::new(words.next()?);
        for word in words {
            let (key, value) = word.split_once('=')?;
            line.fields.push((key.to_owned(), value.to_owned()));
        }
        Some(line)
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// The value of a field as a whole number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        self.get(key)?.parse().ok()
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LS {}", self.kind)?;
        for (key, value) in &self.fields {
            write!(f, " {key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let line = Line::new("verify")
            .with("id", 7)
            .with("bad", 0)
            .with("why", "a b");
        assert_eq!(line.to_string(), "LS verify id=7 bad=0 why=a_b");
        assert_eq!(Line::parse(&line.to_string()), Some(line));
    }

    #[test]
    fn finds_itself_behind_kernel_messages() {
        let line = Line::parse("[    1.2] Freezing LS gap us=12\r").unwrap();
        assert_eq!(line.kind, "gap");
        assert_eq!(line.number("us"), Some(12));
    }

    #[test]
    fn other_lines_and_torn_lines_are_none() {
        for text in [
            "",
            "LS",
            "LS ",
            "FALLS gap us=1",
            "LS gap us",
            "[1.0] random: crng init done",
        ] {
            assert_eq!(Line::parse(text), None, "{text:?}");
        }
    }
}
