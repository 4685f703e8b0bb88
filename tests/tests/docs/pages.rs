//! The pages: what they link to, name, and want run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A Markdown file.
pub(crate) struct Page {
    /// Its path in the repository.
    pub(crate) path: String,
    text: String,
}

/// A fenced block that is run.
#[derive(Debug)]
pub(crate) struct Block {
    /// The line of its first command.
    pub(crate) line: usize,
    /// Whether its commands must fail.
    pub(crate) fails: bool,
    /// Its lines.
    pub(crate) script: String,
}

/// Every Markdown file that is ours: README, docs, and those beside the code.
pub(crate) fn all() -> Vec<Page> {
    let mut found = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.') || name == "target";
            if path.is_dir() && !hidden {
                dirs.push(path);
            } else if path.extension().is_some_and(|ending| ending == "md") {
                let path = path.strip_prefix(root()).unwrap_or(&path);
                found.push(Page::read(&path.display().to_string()));
            }
        }
    }
    assert!(found.len() > 10, "where are the pages?");
    found
}

impl Page {
    /// The page at `path` in the repository.
    pub(crate) fn read(path: &str) -> Self {
        let file = root().join(path);
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        Self {
            path: path.to_owned(),
            text,
        }
    }

    /// The blocks marked `sh run` and `sh fails`, in order.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (number, line) in self.text.lines().enumerate() {
            match (&mut open, line) {
                (None, "```sh run" | "```sh fails") => {
                    let fails = line.ends_with("fails");
                    open = Some(Block {
                        line: number + 2,
                        fails,
                        script: String::new(),
                    });
                }
                (Some(_), "```") => blocks.extend(open.take()),
                (Some(block), line) => {
                    block.script.push_str(line);
                    block.script.push('\n');
                }
                (None, _) => {}
            }
        }
        assert!(open.is_none(), "{}: a block does not end", self.path);
        blocks
    }

    /// The text without fenced blocks: what is prose.
    fn prose(&self) -> String {
        let mut inside = false;
        let keep = |line: &&str| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        };
        self.text
            .lines()
            .filter(keep)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Relative links without a file or without their heading.
    pub(crate) fn broken_links(&self) -> Vec<String> {
        let prose = self.prose();
        let targets = prose
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next());
        targets
            .filter_map(|target| self.why_broken(target))
            .collect()
    }

    fn why_broken(&self, target: &str) -> Option<String> {
        if target.contains("://") {
            return None;
        }
        let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
        let dir = Path::new(&self.path).parent().unwrap_or(Path::new(""));
        let relative = if file.is_empty() {
            PathBuf::from(&self.path)
        } else {
            dir.join(file)
        };
        if !root().join(&relative).exists() {
            return Some(format!("{}: {target}", self.path));
        }
        if fragment.is_empty() || relative.extension().is_none_or(|ending| ending != "md") {
            return None;
        }
        let there = Page::read(&relative.display().to_string());
        (!there.anchors().contains(fragment))
            .then(|| format!("{}: {target}: no heading", self.path))
    }

    /// What a fragment may name: headings as GitHub spells them, and `<a id="…">`.
    fn anchors(&self) -> BTreeSet<String> {
        let ids = self.text.split("<a id=\"").skip(1);
        let ids = ids
            .filter_map(|rest| rest.split('"').next())
            .map(str::to_owned);
        let prose = self.prose();
        let headings = prose.lines().filter(|line| line.starts_with('#'));
        let slug = |line: &str| {
            let plain = line.trim_start_matches('#').trim().to_lowercase();
            let kept = plain
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c })
                .collect::<String>()
        };
        ids.chain(headings.map(slug)).collect()
    }

    /// Every `HOP3-dddd` on the page.
    pub(crate) fn error_codes(&self) -> BTreeSet<String> {
        let number = |rest: &str| {
            rest.get(..4)
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .map(str::to_owned)
        };
        let found = self.text.split("HOP3-").skip(1).filter_map(number);
        found.map(|number| format!("HOP3-{number}")).collect()
    }

    /// Commands in backticks (`hop3 …`) that `reference` does not have.
    pub(crate) fn unknown_commands(&self, reference: &str) -> Vec<String> {
        let known: BTreeSet<&str> = reference
            .lines()
            .filter_map(|line| line.strip_prefix("## `")?.strip_suffix('`'))
            .collect();
        let prose = self.prose();
        let spans = prose.split('`').skip(1).step_by(2);
        let said = spans.filter(|span| span.starts_with("hop3 ") && !span.contains('…'));
        let unknown = said.filter(|span| {
            let is_word = |word: &&str| {
                word.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !word.starts_with('-')
            };
            let words: Vec<&str> = span.split_whitespace().take_while(is_word).collect();
            let longest = (1..=words.len()).rev().map(|n| words[..n].join(" "));
            let command = longest
                .into_iter()
                .find(|command| known.contains(command.as_str()));
            // A noun alone is a group, not a command, unless that is all that is said.
            command.is_none_or(|command| {
                let group = known
                    .iter()
                    .any(|other| other.starts_with(&format!("{command} ")));
                group && command.len() < words.join(" ").len()
            })
        });
        unknown
            .map(|span| format!("{}: {span}", self.path))
            .collect()
    }

    /// The first column of tables under `## heading`, without backticks.
    pub(crate) fn fields_under(&self, heading: &str) -> BTreeSet<String> {
        let sections = self.text.split("\n## ");
        let section = sections
            .skip(1)
            .find(|text| text.starts_with(heading))
            .unwrap_or_default();
        let cells = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        cells.map(str::to_owned).collect()
    }
}
