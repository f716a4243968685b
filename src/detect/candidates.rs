//! What a source could have been built from, and why it is not.

use std::fmt;

use super::{Refusal, SourceTree};
use crate::config::app::{AppConfig, FILE};

/// A way to build that was considered, and why it was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The way.
    pub name: &'static str,
    /// Why not.
    pub why: String,
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.why)
    }
}

/// The files by which buildpacks know a language.
const LANGUAGES: [(&str, &str); 14] = [
    ("package.json", "Node.js"),
    ("requirements.txt", "Python"),
    ("pyproject.toml", "Python"),
    ("Pipfile", "Python"),
    ("setup.py", "Python"),
    ("Gemfile", "Ruby"),
    ("go.mod", "Go"),
    ("Cargo.toml", "Rust"),
    ("pom.xml", "Java"),
    ("build.gradle", "Java"),
    ("build.gradle.kts", "Java"),
    ("composer.json", "PHP"),
    ("mix.exs", "Elixir"),
    ("project.clj", "Clojure"),
];

/// How many directories are looked into for a catalog.
const MAX_DIRECTORIES: usize = 200;

/// Every candidate and why it does not match, given that no Dockerfile was found.
pub(super) fn look(tree: &dyn SourceTree, config: &AppConfig) -> Result<Vec<Candidate>, Refusal> {
    let fail = |source| Refusal::Read { path: "the root".to_owned(), source };
    let root = tree.root().map_err(fail)?;
    Ok(vec![
        Candidate { name: FILE, why: hephy_toml(&root, config) },
        Candidate { name: "Dockerfile", why: dockerfile(&root) },
        Candidate { name: "buildpacks", why: buildpacks(&root) },
        Candidate { name: "Wasm", why: wasm(&root) },
        Candidate { name: "catalog", why: catalog(tree, &root)? },
    ])
}

fn hephy_toml(root: &[String], config: &AppConfig) -> String {
    if !root.iter().any(|name| name == FILE) {
        "there is none".to_owned()
    } else if *config == AppConfig::default() {
        "it says nothing".to_owned()
    } else {
        "it names no Dockerfile (`[build] dockerfile = \"path\"`)".to_owned()
    }
}

fn dockerfile(root: &[String]) -> String {
    let similar = |name: &&String| {
        let lower = name.to_lowercase();
        lower == "dockerfile"
            || lower == "dockerfile/"
            || lower.starts_with("dockerfile.")
            || lower == "containerfile"
    };
    match root.iter().find(similar) {
        Some(name) if name == "Dockerfile" || name == "Dockerfile/" => {
            "`Dockerfile` is there and is no regular file".to_owned()
        }
        Some(name) => {
            format!("none is named `Dockerfile`, but `{name}` is there: name it in {FILE} or rename it")
        }
        None => "there is none in the root".to_owned(),
    }
}

fn buildpacks(root: &[String]) -> String {
    let found = LANGUAGES.iter().find(|(file, _)| root.iter().any(|name| name == file));
    match found {
        Some((file, language)) => {
            format!("`{file}` looks like {language}, but this version of hephy has no buildpacks yet")
        }
        None => {
            "no language is known by its files, and this version of hephy has no buildpacks yet".to_owned()
        }
    }
}

fn wasm(root: &[String]) -> String {
    let is_wasm = |name: &&String| name.strip_suffix(".wasm").is_some() || *name == "spin.toml";
    match root.iter().find(is_wasm) {
        Some(name) => format!("`{name}` is there, but this version of hephy does not run Wasm yet"),
        None => "there is no `*.wasm` in the root".to_owned(),
    }
}

fn catalog(tree: &dyn SourceTree, root: &[String]) -> Result<String, Refusal> {
    let directories = root.iter().filter(|name| name.ends_with('/')).take(MAX_DIRECTORIES);
    for directory in directories {
        let path = format!("{directory}build-config.yaml");
        if super::read(tree, &path, 1 << 20)?.is_some() {
            return Ok(format!("`{path}` is there, but this version of hephy has no catalogs yet"));
        }
    }
    Ok("no directory has a `build-config.yaml`".to_owned())
}
