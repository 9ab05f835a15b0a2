//! Everything that is wrong with a configuration, not just the first of it.
//!
//! What is refused is taken out of the parsed document, and the rest is looked at
//! again until nothing more is refused. So the configuration's own types stay the
//! only description of what is valid.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize as _, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, Error};

use super::Config;

/// How alike a key must be to what was written to be proposed (Jaro-Winkler).
const ALIKE: f64 = 0.8;

const EXAMPLE: &str = "`compose-cleanup config example` shows every key";

/// Keys that are only wrong together with others: what is said of the first holds
/// only if nothing was refused of these.
const JUDGED_TOGETHER: [(&str, [&str; 2]); 1] = [("anonymous_volumes", ["action", "remove_after"])];

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where in the file, both from 1; columns are characters. `None`: it is about
    /// something that is not in the file.
    pub line: Option<usize>,
    pub column: Option<usize>,
    /// Such as `agents[0].work_dir`. `None`: the file is no TOML.
    pub key: Option<String>,
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    /// What the parser stumbled over.
    pub(super) fn of(text: &str, error: &Error) -> Self {
        syntax(text, error).1
    }

    /// Of something whose place is not known.
    pub(super) fn nowhere(key: &str, problem: &str) -> Self {
        Self {
            line: None,
            column: None,
            key: Some(key.to_owned()),
            problem: problem.to_owned(),
            remedy: EXAMPLE.to_owned(),
        }
    }
}

impl fmt::Display for Problem {
    /// `LINE:COLUMN: KEY: PROBLEM; REMEDY`, without what is not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            column,
            key,
            problem,
            remedy,
        } = self;
        if let (Some(line), Some(column)) = (line, column) {
            write!(f, "{line}:{column}: ")?;
        }
        if let Some(key) = key {
            write!(f, "`{key}` ")?;
        }
        write!(f, "{problem}; {remedy}")
    }
}

/// All problems of a configuration, in the order of the file. With an error in the
/// syntax, only those of the syntax: the rest would be guesses.
pub fn problems(text: &str) -> Vec<Problem> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut found: Vec<(usize, Problem)> = if errors.is_empty() {
        Check::new(text, document).run()
    } else {
        errors.iter().map(|error| syntax(text, error)).collect()
    };
    found.sort_by_key(|(at, _)| *at);
    let mut problems: Vec<Problem> = found.into_iter().map(|(_, problem)| problem).collect();
    // One slip makes the parser stumble more than once.
    if !errors.is_empty() {
        problems.dedup_by_key(|problem| problem.line);
    }
    problems
}

fn syntax(text: &str, error: &Error) -> (usize, Problem) {
    let at = error.span().unwrap_or_default().start;
    let (line, column) = place(text, at);
    let problem = Problem {
        line: Some(line),
        column: Some(column),
        key: None,
        problem: one_line(error.message()),
        remedy: format!("a line is `key = value` (texts in quotes) or `[section]`; {EXAMPLE}"),
    };
    (at, problem)
}

/// A key with its value, or an element of an array, in the document.
#[derive(Debug, Clone)]
struct Entry {
    path: String,
    /// Where it is named: the key, or the element itself.
    named: Range<usize>,
    value: Range<usize>,
}

#[derive(Debug)]
struct Check<'t> {
    text: &'t str,
    /// As it is written.
    whole: Spanned<DeTable<'t>>,
    /// Without what was refused.
    rest: Spanned<DeTable<'t>>,
    refused: Vec<String>,
    found: Vec<(usize, Problem)>,
}

impl<'t> Check<'t> {
    fn new(text: &'t str, document: Spanned<DeTable<'t>>) -> Self {
        Self {
            text,
            rest: document.clone(),
            whole: document,
            refused: Vec::new(),
            found: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<(usize, Problem)> {
        // Each round takes something out, or is the last.
        loop {
            let goes_on = match Config::deserialize(Deserializer::from(self.rest.clone())) {
                Err(error) => self.refuse(&error),
                Ok(config) => match config.validate() {
                    Err((key, problem)) => self.refuse_value(key, problem),
                    Ok(()) => false,
                },
            };
            if !goes_on {
                return self.found;
            }
        }
    }

    /// Of a key or a type.
    fn refuse(&mut self, error: &Error) -> bool {
        let message = one_line(error.message());
        let entry = error
            .span()
            .and_then(|span| at_span(self.whole.get_ref(), "", &span));
        let Some(entry) = entry else {
            let (problem, remedy) = explain(&message);
            self.add(None, None, problem, remedy);
            return false;
        };
        let missing = quoted(&message)
            .next()
            .filter(|_| message.starts_with("missing field"))
            .map(|field| format!("{}.{field}", entry.path));
        // Missing because it was refused: said already.
        if !missing.is_some_and(|path| self.refused.contains(&path)) {
            let (problem, remedy) = explain(&message);
            self.add(Some(&entry), None, problem, remedy);
        }
        self.take_out(entry)
    }

    /// Of a value that has the right type.
    fn refuse_value(&mut self, key: String, problem: String) -> bool {
        // The place in what is left: elements before it may be gone.
        let left = entries(self.rest.get_ref(), "");
        let entry = left
            .iter()
            .find(|entry| entry.path == key)
            .and_then(|left| at_span(self.whole.get_ref(), "", &left.named));
        if !self.follows(entry.as_ref()) {
            let key = entry.is_none().then_some(key);
            self.add(entry.as_ref(), key, problem, EXAMPLE.to_owned());
        }
        entry.is_some_and(|entry| self.take_out(entry))
    }

    /// Whether a value may only be wrong because of what was taken out.
    fn follows(&self, entry: Option<&Entry>) -> bool {
        let Some(Entry { path, .. }) = entry else {
            return !self.refused.is_empty();
        };
        let within = format!("{path}.");
        let others = JUDGED_TOGETHER.iter().find(|(judged, _)| judged == path);
        let others = others.map_or(&[][..], |(_, others)| others);
        self.refused
            .iter()
            .any(|refused| refused.starts_with(&within) || others.contains(&refused.as_str()))
    }

    fn add(&mut self, entry: Option<&Entry>, key: Option<String>, problem: String, remedy: String) {
        let at = entry.map(|entry| entry.named.start);
        let place = at.map(|at| place(self.text, at));
        let problem = Problem {
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            key: entry.map(|entry| entry.path.clone()).or(key),
            problem,
            remedy,
        };
        self.found.push((at.unwrap_or(usize::MAX), problem));
    }

    fn take_out(&mut self, entry: Entry) -> bool {
        let taken = remove(self.rest.get_mut(), &entry.named);
        self.refused.push(entry.path);
        taken
    }
}

/// What a message of serde's says, and what to do about it.
fn explain(message: &str) -> (String, String) {
    let mut words = quoted(message);
    let first = words.next().unwrap_or_default();
    let others: Vec<&str> = words.collect();
    if message.starts_with("unknown field") {
        let remedy = closest(first, &others).map_or_else(
            || EXAMPLE.to_owned(),
            |key| format!("did you mean `{key}`?"),
        );
        return ("is no key of the configuration".to_owned(), remedy);
    }
    if message.starts_with("unknown variant") {
        let list: Vec<String> = others.iter().map(|value| format!("\"{value}\"")).collect();
        let guess = closest(first, &others)
            .map_or_else(String::new, |value| format!("did you mean \"{value}\"? "));
        return (
            format!("cannot be \"{first}\""),
            format!("{guess}Possible: {}", list.join(", ")),
        );
    }
    if message.starts_with("missing field") {
        return (format!("has no `{first}`"), format!("add it: {EXAMPLE}"));
    }
    (format!("is not valid: {message}"), EXAMPLE.to_owned())
}

/// The words in backquotes.
fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

fn closest<'k>(written: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|key| (strsim::jaro_winkler(written, key), *key))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, key)| key)
}

/// The innermost entry that lies at a place of the text.
fn at_span(table: &DeTable<'_>, within: &str, span: &Range<usize>) -> Option<Entry> {
    let covers = |range: &Range<usize>| range.start <= span.start && span.end <= range.end;
    // Inner ones first: a section's header may be all that an array has of a place.
    let all = entries(table, within).into_iter().rev();
    all.filter(|entry| covers(&entry.value) || covers(&entry.named))
        .min_by_key(|entry| {
            if covers(&entry.named) {
                entry.named.len()
            } else {
                entry.value.len()
            }
        })
}

/// Everything that a table has in it, at any depth.
fn entries(table: &DeTable<'_>, within: &str) -> Vec<Entry> {
    let mut all = Vec::new();
    for (key, value) in table {
        let path = if within.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{within}.{}", key.get_ref())
        };
        all.push(Entry {
            path: path.clone(),
            named: key.span(),
            value: value.span(),
        });
        collect(value, &path, &mut all);
    }
    all
}

fn collect(value: &Spanned<DeValue<'_>>, path: &str, all: &mut Vec<Entry>) {
    match value.get_ref() {
        DeValue::Table(table) => all.extend(entries(table, path)),
        DeValue::Array(array) => {
            for (at, element) in array.iter().enumerate() {
                let path = format!("{path}[{at}]");
                all.push(Entry {
                    path: path.clone(),
                    named: element.span(),
                    value: element.span(),
                });
                collect(element, &path, all);
            }
        }
        _ => {}
    }
}

/// Takes out what is named there; whether it was there.
fn remove(table: &mut DeTable<'_>, named: &Range<usize>) -> bool {
    let found = table.iter().find(|(key, _)| key.span() == *named);
    if let Some(key) = found.map(|(key, _)| key.get_ref().to_string()) {
        return table.remove(key.as_str()).is_some();
    }
    table
        .iter_mut()
        .any(|(_, value)| remove_within(value.get_mut(), named))
}

fn remove_within(place: &mut DeValue<'_>, named: &Range<usize>) -> bool {
    match place {
        DeValue::Table(table) => remove(table, named),
        DeValue::Array(array) => {
            let count = array.len();
            let others = array.iter().filter(|element| element.span() != *named);
            *array = others.cloned().collect();
            array.len() < count
                || array
                    .iter_mut()
                    .any(|element| remove_within(element.get_mut(), named))
        }
        _ => false,
    }
}

/// Line and column, from 1.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

/// Messages of parsers may have more than one, and quote what a file has in it.
fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    line.chars()
        .map(|char| if char.is_control() { '\u{fffd}' } else { char })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    fn lines(text: &str) -> Vec<String> {
        problems(text).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn the_default_file_has_none() {
        assert_eq!(problems(crate::config::EXAMPLE), []);
        assert_eq!(problems(""), []);
    }

    #[test]
    fn every_problem_has_a_line_of_its_own_in_the_order_of_the_file() {
        let found = lines(
            "mdoe = \"enforce\"\n\
             action = \"stpo\"\n\
             grace = \"2h\"\n\
             keep_label = \"no\"\n\
             [dokcer]\n\
             socket = \"/s\"\n\
             [journal]\n\
             \x20 max_bytes = 1\n\
             max_age = \"long\"\n",
        );
        let expected = [
            ("1:1: `mdoe` is no key", "did you mean `mode`?"),
            (
                "2:1: `action` cannot be \"stpo\"; did you mean \"stop\"?",
                "\"kill\", \"remove\"",
            ),
            ("3:1: `grace` must be at most 1h", "config example"),
            ("4:1: `keep_label` is not valid", "boolean"),
            ("5:2: `dokcer` is no key", "did you mean `docker`?"),
            ("8:3: `journal.max_bytes` must be at least", ""),
            ("9:1: `journal.max_age` is not valid", ""),
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (line, (start, has)) in found.iter().zip(expected) {
            assert!(line.starts_with(start) && line.contains(has), "{line}");
            assert!(!line.contains('\n'), "{line:?}");
        }
    }

    #[test]
    fn arrays_of_tables_keep_their_numbers() {
        let found = lines(
            "[[agents]]\nruntime_dir = \"/r\"\n\
             [[agents]]\nwork_dir = \"/w\"\nruntime_dir = \"/x\"\n\
             [[agents]]\nwork_dir = \"relative\"\n\
             [[exclude]]\n[[exclude]]\nexecutor = \"a[\"\n[[exclude]]\nuser = \"x\"\nexecutor = \"y\"\n",
        );
        let expected = [
            "1:1: `agents[0]` has no `work_dir`",
            "7:1: `agents[2].work_dir` must be an absolute path",
            "8:1: `exclude[0]` needs a pattern",
            "10:1: `exclude[1].executor` is not valid",
            "12:1: `exclude[2].user` is no key",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (line, start) in found.iter().zip(expected) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn what_follows_from_another_problem_is_not_said() {
        let found = lines("action = \"remvoe\"\nanonymous_volumes = \"remove\"\n");
        assert_eq!(found.len(), 1, "{found:#?}");
        // Of a required key: its own problem only.
        let found = lines("[[agents]]\nwork_dir = 7\n");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with("2:1: `agents[0].work_dir` is not"));
        // By itself it is.
        let found = lines("anonymous_volumes = \"remove\"\n");
        assert!(found[0].starts_with("1:1: `anonymous_volumes` can only"));
    }

    #[test]
    fn no_toml() {
        let found = lines("mode = enforce\n= 3\ngrace = \"1s\"\n");
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].starts_with("1:8: "), "{found:#?}");
        assert!(found[1].starts_with("2:1: "), "{found:#?}");
        let found = lines("\u{0}\u{1}garbage");
        assert!(!found.is_empty());
        assert!(!found.iter().any(|line| line.contains(char::is_control)));
        assert_eq!(lines("grace = \"1s\"\ngrace = \"2s\"\n").len(), 1);
    }

    proptest::proptest! {
        /// It agrees with what the daemon says, and comes to an end.
        #[test]
        fn a_file_has_problems_if_it_is_refused(lines in proptest::collection::vec(line(), 0..12)) {
            let text = lines.join("\n");
            let refused = Config::parse(&text, std::path::Path::new("f")).is_err();
            let found = problems(&text);
            proptest::prop_assert_eq!(refused, !found.is_empty(), "{}\n{:#?}", text, found);
        }
    }

    fn line() -> impl proptest::strategy::Strategy<Value = String> {
        proptest::sample::select(vec![
            "mode = \"enforce\"",
            "mode = 1",
            "grace = \"5h\"",
            "grase = \"1s\"",
            "action = \"remove\"",
            "anonymous_volumes = \"remove\"",
            "run_dir = \"r\"",
            "docker.socket = \"s\"",
            "[docker]",
            "timeout = \"0s\"",
            "socket = \"/s\"",
            "[[agents]]",
            "work_dir = \"/w\"",
            "work_dir = \"w\"",
            "cgroups_root = \"..\"",
            "runtime_dir = \"/r\"",
            "exclude = [{executor = \"a\"}, {}, {framework = \"[\"}]",
            "[journal]",
            "max_bytes = -1",
            "path = [1, 2]",
            "x",
        ])
        .prop_map(str::to_owned)
    }
}
