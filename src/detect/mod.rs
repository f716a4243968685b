//! The second step of a push: a source becomes a [`Recipe`], or is refused with every candidate and why it did not
//! match.
//!
//! The order is `hephy.toml` if it says, a Dockerfile, buildpacks, Wasm, a catalog. So far only Dockerfiles are
//! built; the others are looked for all the same, so that the refusal can say what it saw.

mod candidates;

use std::collections::BTreeMap;
use std::error::Error;

pub use candidates::Candidate;

use crate::buildpack::procfile::{self, ProcfileError};
use crate::config::app::{self, AppConfig, AppConfigError};
use crate::dockerfile::{self, ParseError};
use crate::model::{Method, ProcessType, Recipe, Source};

/// What detection asks of a source's tree. The tree is a commit's, a directory's or a test's.
pub trait SourceTree {
    /// The names in the root; a directory's name ends with `/`.
    fn root(&self) -> Result<Vec<String>, Box<dyn Error + Send + Sync>>;

    /// The bytes of a regular file; none if there is no regular file at the path. Too large is an error.
    fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Box<dyn Error + Send + Sync>>;
}

/// Why a source becomes no recipe.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The tree could not be read, or a file of ours in it is too large.
    #[error("failed to read {path} of the source")]
    Read {
        /// Which path, from the root.
        path: String,
        /// What the tree said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Submodules: their files are not in the push.
    #[error("the source has git submodules, whose files are not in a push: {}", few(.0))]
    Submodules(Vec<String>),
    /// Pointers of git LFS: the files that they point at are not in the push.
    #[error("the source has git LFS pointers instead of files: {}", few(.0))]
    LfsPointers(Vec<String>),
    /// `hephy.toml` is wrong.
    #[error(transparent)]
    Config(#[from] AppConfigError),
    /// The `Procfile` is wrong.
    #[error(transparent)]
    Procfile(#[from] ProcfileError),
    /// The Dockerfile is wrong.
    #[error(transparent)]
    Dockerfile(#[from] ParseError),
    /// `hephy.toml` names a Dockerfile that is not there.
    #[error("hephy.toml names the Dockerfile `{path}`, and there is no such file in the source")]
    NoSuchDockerfile {
        /// The path.
        path: String,
    },
    /// `hephy.toml` names a stage that the Dockerfile does not have.
    #[error("hephy.toml names the target `{target}`, and {path} has no such stage{}", did_you_mean(nearest.as_deref()))]
    NoSuchTarget {
        /// The target.
        target: String,
        /// The Dockerfile.
        path: String,
        /// The most similar stage.
        nearest: Option<String>,
    },
    /// Nothing says how to build it.
    #[error("nothing in the source says how to build it: add a Dockerfile")]
    NoCandidate(Vec<Candidate>),
}

fn few(paths: &[String]) -> String {
    let shown = paths.iter().take(5).map(|path| format!("`{}`", path.escape_debug())).collect::<Vec<_>>();
    let more = if paths.len() > 5 { format!(" and {} more", paths.len() - 5) } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}

impl Refusal {
    /// The reason in one line, as git shows it in parentheses.
    #[must_use]
    pub fn reason(&self) -> String {
        self.to_string()
    }

    /// What the pusher reads above it: each candidate and why not, or what to do.
    #[must_use]
    pub fn details(&self) -> Vec<String> {
        match self {
            Self::NoCandidate(candidates) => candidates.iter().map(ToString::to_string).collect(),
            Self::Submodules(_) => {
                vec!["commit the files themselves, for instance with git subtree".to_owned()]
            }
            Self::LfsPointers(_) => {
                vec!["take the files out of LFS (git lfs migrate export --include='*'), or fetch them in the Dockerfile".to_owned()]
            }
            _ => Vec::new(),
        }
    }

    /// Whether the pusher can put it right; else it is the platform's to look at.
    #[must_use]
    pub fn is_the_pushers(&self) -> bool {
        !matches!(self, Self::Read { .. })
    }
}

/// Decides how a source is built. `submodules` and `lfs_pointers` are the paths that a survey of the tree found.
pub fn detect(
    tree: &dyn SourceTree,
    submodules: &[String],
    lfs_pointers: &[String],
    source: Source,
) -> Result<Recipe, Refusal> {
    if !submodules.is_empty() {
        return Err(Refusal::Submodules(submodules.to_vec()));
    }
    if !lfs_pointers.is_empty() {
        return Err(Refusal::LfsPointers(lfs_pointers.to_vec()));
    }
    let config = match read(tree, app::FILE, app::MAX_BYTES)? {
        Some(bytes) => AppConfig::parse(&bytes)?,
        None => AppConfig::default(),
    };
    let processes = processes(tree)?;
    let (method, reason) = method(tree, &config)?;
    Ok(Recipe {
        source,
        method,
        reason,
        processes,
        platforms: config.build.platforms,
        build_timeout_seconds: config.build.timeout.map(|timeout| timeout.as_secs()),
        ready_timeout_seconds: config.deploy.ready_timeout.map(|timeout| timeout.as_secs()),
        require_native_nodes: config.build.require_native_nodes,
    })
}

fn read(tree: &dyn SourceTree, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Refusal> {
    tree.read(path, max_bytes).map_err(|source| Refusal::Read { path: format!("`{path}`"), source })
}

fn processes(tree: &dyn SourceTree) -> Result<BTreeMap<ProcessType, String>, Refusal> {
    match read(tree, procfile::FILE, procfile::MAX_BYTES)? {
        Some(bytes) => Ok(procfile::parse(&bytes)?),
        None => Ok(BTreeMap::new()),
    }
}

fn method(tree: &dyn SourceTree, config: &AppConfig) -> Result<(Method, String), Refusal> {
    let build = &config.build;
    let (path, reason) = match &build.dockerfile {
        Some(path) => (path.clone(), format!("Dockerfile {path} (hephy.toml says so)")),
        None => ("Dockerfile".to_owned(), "Dockerfile found".to_owned()),
    };
    let max_bytes = dockerfile::MAX_FILE_BYTES as u64;
    let Some(bytes) = read(tree, &path, max_bytes)? else {
        if build.dockerfile.is_some() {
            return Err(Refusal::NoSuchDockerfile { path });
        }
        return Err(Refusal::NoCandidate(candidates::look(tree, config)?));
    };
    let parsed = dockerfile::parse(&bytes, &path)?;
    if let Some(target) = &build.target
        && parsed.stage_index(target).is_none()
    {
        let names = parsed.stages.iter().filter_map(|stage| stage.name.as_deref());
        let nearest = crate::model::nearest(target, names).map(str::to_owned);
        return Err(Refusal::NoSuchTarget { target: target.clone(), path, nearest });
    }
    let context = build.context.clone().unwrap_or_else(|| ".".to_owned());
    let method = Method::Dockerfile { path, context, target: build.target.clone(), args: build.args.clone() };
    Ok((method, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BuildNumber;

    struct Files(Vec<(&'static str, &'static str)>);

    impl SourceTree for Files {
        fn root(&self) -> Result<Vec<String>, Box<dyn Error + Send + Sync>> {
            let name = |(path, _): &(&str, &str)| match path.split_once('/') {
                Some((directory, _)) => format!("{directory}/"),
                None => (*path).to_owned(),
            };
            Ok(self.0.iter().map(name).collect())
        }

        fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Box<dyn Error + Send + Sync>> {
            let file = self.0.iter().find(|(known, _)| *known == path);
            match file {
                Some((_, text)) if text.len() as u64 > max_bytes => Err("too large".into()),
                file => Ok(file.map(|(_, text)| text.as_bytes().to_vec())),
            }
        }
    }

    fn source() -> Source {
        Source {
            app: "hello".parse().unwrap(),
            build: BuildNumber(1),
            commit: "0123456789012345678901234567890123456789".parse().unwrap(),
            committed_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn run(files: &[(&'static str, &'static str)]) -> Result<Recipe, Refusal> {
        detect(&Files(files.to_vec()), &[], &[], source())
    }

    fn dockerfile_of(recipe: &Recipe) -> (&str, &str, Option<&str>) {
        let Method::Dockerfile { path, context, target, .. } = &recipe.method;
        (path, context, target.as_deref())
    }

    #[test]
    fn a_dockerfile_in_the_root_is_found() {
        let recipe = run(&[("Dockerfile", "FROM scratch")]).unwrap();
        assert_eq!(recipe.reason, "Dockerfile found");
        assert_eq!(dockerfile_of(&recipe), ("Dockerfile", ".", None));
    }

    #[test]
    fn hephy_toml_says_which_dockerfile_and_how() {
        let config = "[build]\ndockerfile = \"d/D\"\ncontext = \"d\"\ntarget = \"App\"\nplatforms = [\"linux/arm64\"]\n\
                      timeout = \"2m\"\n[build.args]\nA = \"1\"\n[deploy]\nready_timeout = \"3s\"";
        let recipe = run(&[("hephy.toml", config), ("d/D", "FROM scratch AS app\nFROM app")]).unwrap();
        assert_eq!(recipe.reason, "Dockerfile d/D (hephy.toml says so)");
        assert_eq!(dockerfile_of(&recipe), ("d/D", "d", Some("App")));
        assert_eq!((recipe.build_timeout_seconds, recipe.ready_timeout_seconds), (Some(120), Some(3)));
        assert_eq!(recipe.platforms[0].to_string(), "linux/arm64");
    }

    #[test]
    fn a_dockerfile_that_hephy_toml_names_must_be_there() {
        let error =
            run(&[("hephy.toml", "[build]\ndockerfile = \"x\""), ("Dockerfile", "FROM a")]).unwrap_err();
        assert!(matches!(error, Refusal::NoSuchDockerfile { path } if path == "x"));
    }

    #[test]
    fn a_target_that_is_no_stage_is_refused_with_the_nearest() {
        let files = [("hephy.toml", "[build]\ntarget = \"relaese\""), ("Dockerfile", "FROM a AS release")];
        assert_eq!(
            run(&files).unwrap_err().reason(),
            "hephy.toml names the target `relaese`, and Dockerfile has no such stage, did you mean `release`?"
        );
    }

    #[test]
    fn files_that_are_wrong_are_refused_by_their_line() {
        let reason = |files: &[(&'static str, &'static str)]| run(files).unwrap_err().reason();
        assert!(
            reason(&[("Dockerfile", "FROM a\nRUM b")]).starts_with("Dockerfile:2:1: unknown instruction")
        );
        assert!(reason(&[("hephy.toml", "x = 1"), ("Dockerfile", "FROM a")]).starts_with("hephy.toml:1:"));
        assert!(reason(&[("Procfile", "web"), ("Dockerfile", "FROM a")]).starts_with("Procfile:1:"));
    }

    #[test]
    fn a_procfile_gives_the_process_types() {
        let recipe = run(&[("Procfile", "web: a\nworker: b"), ("Dockerfile", "FROM a")]).unwrap();
        assert_eq!(recipe.processes.len(), 2);
    }

    #[test]
    fn submodules_and_lfs_pointers_are_refused_by_name() {
        let files = Files(vec![("Dockerfile", "FROM a")]);
        let paths: Vec<String> = (0..7).map(|n| format!("lib/{n}")).collect();
        let error = detect(&files, &paths, &[], source()).unwrap_err();
        assert!(error.reason().contains("`lib/4` and 2 more"), "{}", error.reason());
        let error = detect(&files, &[], &["big.bin".to_owned()], source()).unwrap_err();
        assert!(error.reason().contains("`big.bin`") && !error.details().is_empty());
    }

    #[test]
    fn a_source_that_nothing_matches_is_refused_with_every_candidate() {
        let error = run(&[("dockerfile", "FROM a"), ("package.json", "{}"), ("api/build-config.yaml", "")])
            .unwrap_err();
        assert_eq!(error.reason(), "nothing in the source says how to build it: add a Dockerfile");
        insta::assert_snapshot!(error.details().join("\n"), @r"
        hephy.toml: there is none
        Dockerfile: none is named `Dockerfile`, but `dockerfile` is there: name it in hephy.toml or rename it
        buildpacks: `package.json` looks like Node.js, but this version of hephy has no buildpacks yet
        Wasm: there is no `*.wasm` in the root
        catalog: `api/build-config.yaml` is there, but this version of hephy has no catalogs yet
        ");
    }

    #[test]
    fn an_empty_source_is_refused_with_every_candidate() {
        insta::assert_snapshot!(run(&[]).unwrap_err().details().join("\n"), @r"
        hephy.toml: there is none
        Dockerfile: there is none in the root
        buildpacks: no language is known by its files, and this version of hephy has no buildpacks yet
        Wasm: there is no `*.wasm` in the root
        catalog: no directory has a `build-config.yaml`
        ");
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_by_name() {
        let large: &'static str = Box::leak("#".repeat(70_000).into_boxed_str());
        let error = run(&[("hephy.toml", large)]).unwrap_err();
        assert!(error.reason().contains("`hephy.toml`"), "{}", error.reason());
    }
}
