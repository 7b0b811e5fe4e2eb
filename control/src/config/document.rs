//! The configuration file as text: where a key stands, and whether it is a key
//! at all.
//!
//! serde says what does not fit, but neither which line a later cross-check is
//! about nor which key was probably meant. Both come from here: the document
//! is parsed once with spans, walked against the table of known keys, and then
//! asked for the line of any key that a check complains about.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::raw::{RawConfig, Shape};

/// A step on the way to a value: a key of a table or an index of an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// The parsed text with its spans.
pub(super) struct Document<'t> {
    root: DeTable<'t>,
}

/// What is wrong, and where: a byte offset when it is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) offset: Option<usize>,
    pub(super) message: String,
}

impl From<toml::de::Error> for Complaint {
    fn from(error: toml::de::Error) -> Self {
        Complaint {
            offset: error.span().map(|span| span.start),
            message: error.message().replace('\n', "; "),
        }
    }
}

impl<'t> Document<'t> {
    pub(super) fn parse(text: &'t str) -> Result<Self, Complaint> {
        let root = DeTable::parse(text)?.into_inner();
        Ok(Document { root })
    }

    /// The first key that nobody knows, with the nearest that somebody does.
    pub(super) fn check_keys(&self, shape: &Shape) -> Result<(), Complaint> {
        check_table(&self.root, shape, "")
    }

    /// Byte offset of a value, when the document has it.
    pub(super) fn offset(&self, path: &[Step<'_>]) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let Step::Key(key) = first else { return None };
        let (name, mut value) = find(&self.root, key)?;
        let mut at = name.span().start;
        for step in rest {
            match (step, value.get_ref()) {
                (Step::Key(key), DeValue::Table(table)) => {
                    let (name, next) = find(table, key)?;
                    at = name.span().start;
                    value = next;
                }
                (Step::Index(index), DeValue::Array(items)) => {
                    value = items.get(*index)?;
                    at = value.span().start;
                }
                _ => return None,
            }
        }
        Some(at)
    }

    /// Whether the document sets the key at this path.
    pub(super) fn has(&self, path: &[Step<'_>]) -> bool {
        self.offset(path).is_some()
    }

    /// The dotted name of the value that covers `offset`, for messages of
    /// serde, which carry a span but no path.
    pub(super) fn name_at(&self, offset: usize) -> Option<String> {
        let mut name = String::new();
        name_in_table(&self.root, offset, &mut name).then_some(name)
    }
}

/// Line of a byte offset, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let end = offset.min(text.len());
    1 + text.as_bytes()[..end]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
}

fn find<'a, 't>(
    table: &'a DeTable<'t>,
    key: &str,
) -> Option<(
    &'a Spanned<std::borrow::Cow<'t, str>>,
    &'a Spanned<DeValue<'t>>,
)> {
    table
        .iter()
        .find(|(name, _)| name.get_ref().as_ref() == key)
}

fn check_table(table: &DeTable<'_>, shape: &Shape, prefix: &str) -> Result<(), Complaint> {
    for (name, value) in table {
        let key = name.get_ref().as_ref();
        let Some(inner) = shape.get(key) else {
            return Err(unknown_key(prefix, key, name.span(), shape));
        };
        let prefix = join(prefix, key);
        match value.get_ref() {
            DeValue::Table(table) => check_table(table, inner, &prefix)?,
            DeValue::Array(items) => {
                for item in items {
                    if let DeValue::Table(table) = item.get_ref() {
                        check_table(table, inner, &prefix)?;
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn unknown_key(prefix: &str, key: &str, span: Range<usize>, shape: &Shape) -> Complaint {
    let name = join(prefix, key).escape_debug().to_string();
    // The same key in another table is nearer than another key in this one.
    let known = elsewhere(key).or_else(|| {
        let near = closest(key, shape.keys())?;
        Some(join(prefix, near))
    });
    let hint = match known {
        Some(known) => format!("the nearest known one is `{known}`"),
        None => format!("`{prefix}` has no keys of its own"),
    };
    Complaint {
        offset: Some(span.start),
        message: format!("unknown key `{name}`; {hint}"),
    }
}

fn elsewhere(key: &str) -> Option<String> {
    let root = RawConfig::SHAPE;
    root.keys()
        .find(|table| {
            root.get(table)
                .is_some_and(|inner| inner.get(key).is_some())
        })
        .map(|table| join(table, key))
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

/// The candidate closest to `word`.
fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.max_by(|a, b| likeness(word, a).total_cmp(&likeness(word, b)))
}

/// The candidate closest to `word`, when it is close enough to be a slip.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    closest(word, candidates).filter(|near| likeness(word, near) >= 0.5)
}

fn likeness(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(a, b)
}

fn name_in_table(table: &DeTable<'_>, offset: usize, name: &mut String) -> bool {
    for (key, value) in table {
        let before = name.len();
        *name = join(name, key.get_ref());
        if name_in_value(value, offset, name) || key.span().contains(&offset) {
            return true;
        }
        name.truncate(before);
    }
    false
}

fn name_in_value(value: &Spanned<DeValue<'_>>, offset: usize, name: &mut String) -> bool {
    let inside = match value.get_ref() {
        DeValue::Table(table) => name_in_table(table, offset, name),
        DeValue::Array(items) => items.iter().any(|item| name_in_value(item, offset, name)),
        _ => false,
    };
    inside || value.span().contains(&offset)
}
