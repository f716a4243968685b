//! Why a step was not known: what it sees now, beside what the same step saw when this was last built.
//!
//! Pure but for where it is kept. A build remembers for each of its stages what the steps saw: hashes, and names of files
//! and variables, never a value. Nothing here decides whether a step is run; it only explains.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use crate::layers::SourceHash;
use crate::oci::Digest;

/// How many names an explanation has; the rest is counted.
const MAX_NAMES: usize = 3;

/// The longest memory of a stage. One that would be longer keeps no names of files.
const MAX_MEMORY_BYTES: usize = 1024 * 1024;

/// What one step sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Facts {
    /// The instruction, as it is written.
    text: String,
    /// The layers that it stands upon.
    below: String,
    /// What else, by what people call it.
    seen: BTreeMap<String, String>,
    /// The files of the context.
    files: BTreeMap<String, String>,
    /// The same as they were found: of a step that was known nobody asks for more.
    #[serde(skip)]
    found: Option<Arc<SourceHash>>,
}

impl Facts {
    /// Of a step that stands upon something.
    pub(super) fn new<'a>(below: impl Iterator<Item = &'a Digest>) -> Self {
        let all: Vec<String> = below.map(ToString::to_string).collect();
        Self { below: short(&all.join(" ")), ..Self::default() }
    }

    /// Adds something that it sees.
    pub(super) fn see(&mut self, what: impl Into<String>, value: &str) -> &mut Self {
        self.seen.insert(what.into(), short(value));
        self
    }

    /// Adds the variables of a RUN.
    pub(super) fn see_variables<'a>(&mut self, variables: impl Iterator<Item = (&'a String, &'a String)>) {
        for (name, value) in variables {
            self.see(format!("the variable `{}`", printable(name)), value);
        }
    }

    /// Adds files of the context.
    pub(super) fn see_files(&mut self, files: Arc<SourceHash>) {
        self.found = Some(files);
    }

    /// With its files as they are remembered.
    fn with_files(mut self) -> Self {
        if let Some(found) = self.found.take() {
            let named = found.files.iter().map(|(path, digest)| {
                let name = path.display().to_string();
                (printable(&name), digest.short())
            });
            self.files.extend(named);
        }
        self
    }

    /// One hash for all its files.
    fn all_files(&self) -> String {
        short(&format!("{:?}", self.files))
    }

    /// With the text of its instruction.
    pub(super) fn of(mut self, text: &str) -> Self {
        text.clone_into(&mut self.text);
        self
    }
}

fn short(value: &str) -> String {
    Digest::of(value).short()
}

/// A name that fits a line of a log.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Why a step was not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Nothing is remembered of this stage, or of so far into it.
    NeverBuilt,
    /// It was not there.
    NewInstruction,
    /// What it sees differs, in words.
    Own(String),
    /// What the stage begins with differs.
    Base,
    /// A step before it made something else.
    Above,
    /// It sees what it saw, and its layer is not kept any more.
    Gone,
}

impl Why {
    /// What is told of it. `first`: no step of the stage before this one had to be run; `all`: the user asked for everything.
    pub(super) fn told(&self, first: bool, all: bool) -> Option<String> {
        let text = match self {
            Self::Own(text) => return Some(text.clone()),
            Self::Base => "the base changed",
            Self::NewInstruction => "a new instruction",
            Self::Gone => "what it made is no longer in the cache",
            Self::NeverBuilt if all => "not built here before",
            Self::Above if all => "a step before it changed",
            Self::NeverBuilt | Self::Above => return None,
        };
        (first || all).then(|| text.to_owned())
    }
}

/// What is remembered of a stage, and what is to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// As it was kept.
    kept: Option<Vec<u8>>,
    /// As it was read, by the first who asks.
    before: OnceLock<Option<Vec<Facts>>>,
    now: Vec<Facts>,
    /// Whether a step had to be run.
    pub(super) missed: bool,
    /// What was told last.
    told: String,
}

impl Memory {
    /// Of a stage whose memory is `bytes`.
    pub(super) fn read(bytes: Option<Vec<u8>>) -> Self {
        Self { kept: bytes, ..Self::default() }
    }

    fn before(&self) -> Option<&[Facts]> {
        let read = || self.kept.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
        self.before.get_or_init(read).as_deref()
    }

    /// Adds a step that is done or was known.
    pub(super) fn add(&mut self, facts: Facts) {
        self.now.push(facts);
    }

    /// Why the next step is not known. `texts` are the instructions of the stage.
    pub(super) fn why(&self, facts: &Facts, texts: &[&str]) -> Why {
        let Some(before) = self.before() else { return Why::NeverBuilt };
        let nth = self.now.iter().filter(|other| other.text == facts.text).count();
        let same = before.iter().filter(|other| other.text == facts.text).nth(nth);
        let position = self.now.len();
        // One that is still in the Dockerfile was not changed into this one.
        let replaced = before.get(position).filter(|other| !texts.contains(&other.text.as_str()));
        match (same.or(replaced), before.len() <= position) {
            (Some(other), _) => compared(other, &facts.clone().with_files(), position == 0),
            (None, true) if before.is_empty() => Why::NeverBuilt,
            (None, _) => Why::NewInstruction,
        }
    }

    /// Whether something is worth telling: not if the step before was run for the same reason.
    pub(super) fn is_news(&mut self, told: &str) -> bool {
        let is_news = self.told != told;
        told.clone_into(&mut self.told);
        is_news
    }

    /// What to keep. Of steps that were not come to, what was known of them.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let rest = self.before().unwrap_or_default().iter().skip(self.now.len());
        let mut all: Vec<Facts> = self.now.iter().chain(rest).cloned().map(Facts::with_files).collect();
        let bytes = serde_json::to_vec(&all).ok()?;
        if bytes.len() <= MAX_MEMORY_BYTES {
            return Some(bytes);
        }
        for facts in &mut all {
            if !facts.files.is_empty() {
                facts.seen.insert(SOME_FILES.to_owned(), facts.all_files());
                facts.files = BTreeMap::new();
            }
        }
        serde_json::to_vec(&all).ok().filter(|bytes| bytes.len() <= MAX_MEMORY_BYTES)
    }
}

/// All the files of a step whose names are too many to remember.
const SOME_FILES: &str = "a file of very many";

fn compared(before: &Facts, now: &Facts, is_first: bool) -> Why {
    let mut reasons = Vec::new();
    let mut names = BTreeMap::new();
    let mut phrases = Vec::new();
    if let Some(whole) = before.seen.get(SOME_FILES) {
        // Which one is not remembered.
        if *whole != now.all_files() {
            phrases.push(format!("{SOME_FILES} changed"));
        }
    } else {
        for (path, digest) in &now.files {
            match before.files.get(path) {
                None => drop(names.insert(path, " (new)")),
                Some(other) if other != digest => drop(names.insert(path, "")),
                Some(_) => {}
            }
        }
        let gone = before.files.keys().filter(|path| !now.files.contains_key(*path));
        names.extend(gone.map(|path| (path, " (gone)")));
    }
    if !names.is_empty() {
        let named = names.iter().map(|(path, how)| format!("{path}{how}"));
        reasons.push(format!("changed: {}", bounded(named.collect())));
    }
    for (what, value) in &now.seen {
        match before.seen.get(what) {
            None => phrases.push(format!("{what} is new")),
            Some(other) if other != value => phrases.push(format!("{what} changed")),
            Some(_) => {}
        }
    }
    let gone = before.seen.keys().filter(|what| *what != SOME_FILES && !now.seen.contains_key(*what));
    phrases.extend(gone.map(|what| format!("{what} is gone")));
    let is_other_below = before.below != now.below;
    if !phrases.is_empty() {
        if is_first && is_other_below {
            phrases.insert(0, "the base changed".to_owned());
        }
        reasons.push(bounded(phrases));
    }
    match (reasons.is_empty(), is_other_below) {
        (false, _) => Why::Own(reasons.join("; ")),
        (true, true) if is_first => Why::Base,
        (true, true) => Why::Above,
        (true, false) => Why::Gone,
    }
}

/// The first few, and how many more there are.
fn bounded(names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MAX_NAMES);
    let shown = names.into_iter().take(MAX_NAMES).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn copy(text: &str, below: &str, files: &[(&str, &str)]) -> Facts {
        let mut facts = Facts::new([Digest::of(below)].iter()).of(text);
        facts.see("the instruction", text);
        let files = files.iter().map(|(path, content)| (PathBuf::from(path), Digest::of(content))).collect();
        facts.see_files(Arc::new(SourceHash { digest: Digest::of("all"), files }));
        facts
    }

    fn run(command: &str, below: &str, variables: &[(&str, &str)]) -> Facts {
        let mut facts = Facts::new([Digest::of(below)].iter()).of(&format!("RUN {command}"));
        facts.see("the command", command);
        let variables: BTreeMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        facts.see_variables(variables.iter());
        facts
    }

    /// The memory of a build, as the next one reads it.
    fn after(steps: &[Facts]) -> Memory {
        let mut memory = Memory::default();
        for facts in steps {
            memory.add(facts.clone());
        }
        Memory::read(memory.to_bytes())
    }

    fn why(before: &[Facts], now: &[Facts]) -> Why {
        let mut memory = after(before);
        let texts: Vec<&str> = now.iter().map(|facts| facts.text.as_str()).collect();
        let (last, above) = now.split_last().unwrap();
        for facts in above {
            memory.add(facts.clone());
        }
        memory.why(last, &texts)
    }

    fn own(text: &str) -> Why {
        Why::Own(text.to_owned())
    }

    #[test]
    fn files_that_changed_came_or_went_are_named_and_the_rest_is_counted() {
        let before = [copy("COPY . .", "b", &[("a", "1"), ("b", "1"), ("c", "1")])];
        assert_eq!(
            why(&before, &[copy("COPY . .", "b", &[("a", "1"), ("b", "2"), ("c", "1")])]),
            own("changed: b")
        );
        let now = copy("COPY . .", "b", &[("b", "2"), ("d", "1"), ("e", "1"), ("c", "1")]);
        assert_eq!(why(&before, &[now]), own("changed: a (gone), b, d (new) and 1 more"));
    }

    #[test]
    fn commands_variables_and_bases_are_told_from_one_another() {
        let before = [run("make", "b", &[("A", "1")]), run("test", "b", &[])];
        assert_eq!(why(&before, &[run("make all", "b", &[("A", "1")])]), own("the command changed"));
        assert_eq!(why(&before, &[run("make", "b", &[("A", "2")])]), own("the variable `A` changed"));
        assert_eq!(why(&before, &[run("make", "b", &[])]), own("the variable `A` is gone"));
        assert_eq!(why(&before, &[run("make", "c", &[("A", "1")])]), Why::Base);
        let make = run("make", "b", &[("A", "1")]);
        assert_eq!(why(&before, &[make.clone(), run("test", "c", &[])]), Why::Above);
        assert_eq!(why(&before, &[make]), Why::Gone);
        assert_eq!(why(&[], &[run("make", "b", &[])]), Why::NeverBuilt);
    }

    #[test]
    fn an_instruction_put_between_two_others_is_new_and_those_others_are_not() {
        let before = [run("a", "b", &[]), run("c", "b", &[])];
        let now = [run("a", "b", &[]), run("b", "b", &[]), run("c", "x", &[])];
        assert_eq!(why(&before, &now[..2]), own("the command changed"), "`c` is not known to come yet");
        let texts = ["RUN a", "RUN b", "RUN c"];
        let mut memory = after(&before);
        memory.add(now[0].clone());
        assert_eq!(memory.why(&now[1], &texts), Why::NewInstruction);
        memory.add(now[1].clone());
        assert_eq!(memory.why(&now[2], &texts), Why::Above);
    }

    #[test]
    fn what_a_failed_build_did_not_come_to_is_still_remembered() {
        let steps = [run("a", "b", &[]), run("c", "b", &[])];
        let mut failed = after(&steps);
        failed.add(run("a", "b", &[]));
        let next = Memory::read(failed.to_bytes());
        assert_eq!(next.before().unwrap().len(), 2);
    }

    #[test]
    fn a_memory_is_bounded_and_has_no_line_breaks_and_no_values() {
        let files: Vec<(String, &str)> =
            (0..40_000).map(|number| (format!("d/{number:0>30}"), "x")).collect();
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
        let many = copy("COPY . .", "b", &files);
        let mut memory = Memory::default();
        memory.add(many.clone());
        assert!(memory.to_bytes().unwrap().len() < MAX_MEMORY_BYTES);
        let fewer = copy("COPY . .", "b", &files[1..]);
        assert_eq!(why(std::slice::from_ref(&many), &[fewer]), own("a file of very many changed"));
        assert_eq!(why(std::slice::from_ref(&many), std::slice::from_ref(&many)), Why::Gone);
        let mut memory = Memory::default();
        memory.add(run("x", "b", &[("TOKEN", "hunter2")]));
        assert!(!String::from_utf8(memory.to_bytes().unwrap()).unwrap().contains("hunter2"));
        assert_eq!(
            why(&[copy("C", "b", &[])], &[copy("C", "b", &[("a\n\u{1b}", "1")])]),
            own("changed: a?? (new)")
        );
    }

    #[test]
    fn without_being_asked_a_build_tells_what_changed_and_of_the_first_step_that_ran_more() {
        for why in [Why::NeverBuilt, Why::Above] {
            assert_eq!(why.told(true, false), None, "{why:?}");
        }
        for why in [Why::Base, Why::NewInstruction, Why::Gone] {
            assert!(why.told(true, false).is_some() && why.told(false, false).is_none(), "{why:?}");
        }
        for why in [Why::NeverBuilt, Why::Above, Why::Base, Why::NewInstruction, Why::Gone] {
            assert!(why.told(false, true).is_some(), "{why:?}");
        }
    }
}
