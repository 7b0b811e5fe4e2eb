//! A place in the document, for complaints that name the key and its line.

use super::document::{Complaint, Document, Step};

pub(super) type Checked<T> = Result<T, Complaint>;

/// A place in the document, for complaints: a table's path and a key in it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) document: &'a Document<'a>,
    pub(super) path: &'a [Step<'a>],
}

impl<'a> At<'a> {
    pub(super) fn complain(&self, message: String) -> Complaint {
        // The nearest place that the document has: the key, else its table.
        let offset = (1..=self.path.len())
            .rev()
            .find_map(|len| self.document.offset(&self.path[..len]));
        let message = format!("{}: {message}", self.name());
        Complaint { offset, message }
    }

    pub(super) fn name(&self) -> String {
        let mut name = String::new();
        for step in self.path {
            match step {
                Step::Key(key) if name.is_empty() => name.push_str(key),
                Step::Key(key) => {
                    name.push('.');
                    name.push_str(key);
                }
                Step::Index(index) => name.push_str(&format!("[{index}]")),
            }
        }
        name
    }

    pub(super) fn is_set(&self) -> bool {
        self.document.has(self.path)
    }
}

/// The place of a key: the document, then the steps to it.
macro_rules! at {
    ($document:expr, $($step:expr),+) => {
        $crate::config::place::At {
            document: $document,
            path: &[$($crate::config::document::Step::from($step)),+],
        }
    };
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(key: &'a str) -> Self {
        Step::Key(key)
    }
}

impl From<usize> for Step<'_> {
    fn from(index: usize) -> Self {
        Step::Index(index)
    }
}

pub(super) use at;
