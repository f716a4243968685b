//! The direction of imports: no arrow up, none between mechanisms, no cycle.
//!
//! The module a file belongs to and every `crate::module` that it names are read as text. A module may name those of
//! lower ranks; of its own rank it may name those that `BESIDE` lists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each line is above the ones before it.
const RANKS: [&[&str]; 10] = [
    &["oci"],
    &["model"],
    &["config"],
    &["dockerfile", "buildpack"],
    &["git", "sandbox", "layers", "registry", "router", "kubernetes", "bases", "traces", "profile"],
    &["receive", "detect", "plan", "build", "publish", "release", "rollout"],
    &["driver", "runtime", "store"],
    &["push"],
    &["serve"],
    &["cli"],
];

/// The pairs of one rank of which the first may name the second.
const BESIDE: [(&str, &str); 0] = [];

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|rank| rank.contains(&module))
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module of the crate that a file below `src/` belongs to; none for the crate's root and the program.
fn module_of(file: &Path) -> Option<String> {
    let first = file.components().next()?.as_os_str().to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (module != "lib" && module != "main").then(|| module.to_owned())
}

/// The modules that a text names after `crate::`, also in braces, with the line of each. Comments do not count.
fn named_modules(text: &str) -> Vec<(usize, String)> {
    let mut named = Vec::new();
    let code: Vec<&str> =
        text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
    let joined = code.join("\n");
    for (at, found) in joined.match_indices("crate::") {
        let before = joined[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let line = 1 + joined[..at].matches('\n').count();
        let rest = &joined[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(braced) => named.extend(first_level(braced).into_iter().map(|name| (line, name))),
            None => named.push((line, identifier(rest))),
        }
    }
    named
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The names at the first level of `a::b, c::{d, e}}…`.
fn first_level(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut at_name = true;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_name = true,
            c if at_name && depth == 0 && (c.is_alphanumeric() || c == '_') => {
                names.push(identifier(&text[at..]));
                at_name = false;
            }
            _ => {}
        }
    }
    names
}

fn may_name(module: &str, other: &str) -> bool {
    let beside = BESIDE.contains(&(module, other));
    match (rank(module), rank(other)) {
        (Some(above), Some(below)) => module == other || below < above || (below == above && beside),
        _ => false,
    }
}

#[test]
fn every_import_points_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    assert!(!files.is_empty());
    let mut wrong = BTreeSet::new();
    for path in files {
        let file = path.strip_prefix(&source).unwrap();
        let Some(module) = module_of(file) else { continue };
        if rank(&module).is_none() {
            wrong.insert(format!("src/{}: `{module}` has no rank in this test", file.display()));
            continue;
        }
        for (line, other) in named_modules(&fs::read_to_string(&path).unwrap()) {
            if !may_name(&module, &other) {
                wrong.insert(format!("src/{}:{line}: `{module}` may not name `{other}`", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_crate_lists_its_modules_in_reading_order() {
    let root = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let listed: Vec<&str> =
        root.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let order: Vec<&str> = RANKS.iter().flat_map(|rank| rank.iter().copied()).collect();
    let expected: Vec<&str> = order.iter().copied().filter(|module| listed.contains(module)).collect();
    assert_eq!(listed, expected);
}

#[test]
fn names_in_braces_and_paths_are_seen_and_comments_are_not() {
    let text = "// crate::a\nuse crate::{b::{c, d}, e};\nfn f() -> crate::g::H {}\nmy_crate::x\n";
    let names: Vec<_> = named_modules(text);
    assert_eq!(names, [(2, "b".to_owned()), (2, "e".to_owned()), (3, "g".to_owned())]);
}

#[test]
fn no_mechanism_may_name_another() {
    assert!(may_name("build", "layers") && may_name("layers", "oci") && may_name("git", "git"));
    assert!(!may_name("layers", "sandbox") && !may_name("layers", "build") && !may_name("store", "push"));
}
