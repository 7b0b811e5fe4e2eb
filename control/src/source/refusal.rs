//! Documents that are YAML but not the objects that they claim to be, and where
//! in the text that is. A parsed document has lost its lines: they are found
//! again by what stands there.

/// Why an object is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What is wrong.
    pub(super) message: String,
    /// The line that it is about.
    mark: Mark,
}

/// What tells a line.
#[derive(Debug)]
enum Mark {
    /// It holds these; of several such lines, the one that is nearest to the
    /// name of the object.
    Near { name: String, words: [String; 2] },
    /// An object of this kind that has no name.
    Nameless { kind: String },
    /// The document's first.
    Document,
}

impl Refusal {
    /// About a line of the object `name` that holds both words.
    pub(super) fn near(name: &str, words: [&str; 2], message: String) -> Refusal {
        let (name, words) = (name.to_owned(), words.map(str::to_owned));
        let mark = Mark::Near { name, words };
        Refusal { message, mark }
    }

    /// About an object without a name.
    pub(super) fn nameless(kind: &str) -> Refusal {
        let kind = kind.to_owned();
        Refusal {
            message: format!("a {kind} has no name: write metadata.name"),
            mark: Mark::Nameless { kind },
        }
    }

    /// About a whole document.
    pub(super) fn document(message: String) -> Refusal {
        let mark = Mark::Document;
        Refusal { message, mark }
    }

    /// The line, from 1, where `document` is the number of documents before the
    /// refused one.
    pub(super) fn line_in(&self, text: &str, document: usize) -> Option<usize> {
        let first = begin_of(text, document);
        let lines: Vec<(usize, &str)> = (1..).zip(text.lines()).skip(first - 1).collect();
        let all = |is: &dyn Fn(&str) -> bool| -> Vec<usize> {
            let found = lines.iter().filter(|(_, line)| is(line));
            found.map(|(number, _)| *number).collect()
        };
        match &self.mark {
            Mark::Document => Some(first),
            Mark::Nameless { kind } => {
                let kinds = all(&|line| value_of(line, "kind") == Some(kind));
                // The next object of the kind begins where this one has ended.
                let named = all(&|line| value_of(line, "name").is_some());
                let ends = kinds[1.min(kinds.len())..].iter().copied();
                let ends = ends.chain([usize::MAX]);
                let mut spans = kinds.iter().copied().zip(ends);
                let is_bare =
                    |span: &(usize, usize)| !named.iter().any(|at| (span.0..span.1).contains(at));
                spans
                    .find(is_bare)
                    .map(|span| span.0)
                    .or(kinds.first().copied())
            }
            Mark::Near { name, words } => {
                let names = all(&|line| value_of(line, "name") == Some(name));
                let places = all(&|line| words.iter().all(|word| line.contains(word)));
                let distance = |place: &usize| {
                    let away = names.iter().map(|name| name.abs_diff(*place));
                    away.min()
                };
                places.into_iter().min_by_key(distance)
            }
        }
    }
}

/// First line of what follows `document` separators that have something before
/// them.
fn begin_of(text: &str, document: usize) -> usize {
    let is_content = |line: &str| !line.trim().is_empty() && !line.starts_with('#');
    let (mut before, mut has_content) = (0, false);
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with("---") {
            before += usize::from(has_content);
            has_content = is_content(line.trim_start_matches('-'));
        } else if is_content(line) {
            if before == document {
                return number;
            }
            has_content = true;
        }
    }
    1
}

/// The value of a key on its line, in YAML or JSON.
fn value_of<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let line = line.trim().trim_start_matches("- ").trim_start();
    let rest = match line.strip_prefix('"') {
        Some(quoted) => quoted.strip_prefix(key)?.strip_prefix('"')?,
        None => line.strip_prefix(key)?,
    };
    let value = rest.trim_start().strip_prefix(':')?.trim();
    let value = value.trim_end_matches(',').trim_matches(['"', '\'']);
    (!value.is_empty()).then_some(value)
}
