//! `hephy.toml`: what an app says about its own build and deploy.
//!
//! Read strictly. A key that nobody knows is an error with its line and the nearest known key, because a setting that
//! is silently not applied is worse than a push that is refused.

use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::server::Span;
use crate::model::{EnvName, nearest};
use crate::oci::Platform;

/// The file's name, at the root of the source.
pub const FILE: &str = "hephy.toml";
/// The largest `hephy.toml` that is read.
pub const MAX_BYTES: u64 = 64 << 10;

/// What `hephy.toml` says; the default is what an absent file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AppConfig {
    /// `[build]`
    pub build: BuildConfig,
    /// `[deploy]`
    pub deploy: DeployConfig,
}

/// How the app is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildConfig {
    /// `dockerfile`: a path from the root of the source.
    pub dockerfile: Option<String>,
    /// `context`: a directory from the root of the source.
    pub context: Option<String>,
    /// `target`: a stage.
    pub target: Option<String>,
    /// `[build.args]`, sorted by name.
    pub args: Vec<(String, String)>,
    /// `platforms`
    pub platforms: Vec<Platform>,
    /// `timeout`
    pub timeout: Option<Duration>,
    /// `require_native_nodes`: whether each platform is built on a machine of its own.
    pub require_native_nodes: bool,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self {
            dockerfile: None,
            context: None,
            target: None,
            args: Vec::new(),
            platforms: Vec::new(),
            timeout: None,
            require_native_nodes: true,
        }
    }
}

/// How a new version is brought up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeployConfig {
    /// `ready_timeout`
    pub ready_timeout: Option<Duration>,
}

/// The first thing in `hephy.toml` that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{FILE}:{line}: {problem}")]
pub struct AppConfigError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub problem: String,
}

impl AppConfig {
    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, AppConfigError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            AppConfigError { line: line_at(before), problem: "the line is not UTF-8".to_owned() }
        })?;
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = line_at(text.as_bytes().get(..at).unwrap_or_default());
            AppConfigError { line, problem: error.message().replace('\n', ", ") }
        })?;
        let mut reader = Reader { text, problems: Vec::new() };
        let config = reader.config(table.get_ref());
        match reader.problems.into_iter().min_by_key(|error| error.line) {
            Some(first) => Err(first),
            None => Ok(config),
        }
    }
}

fn line_at(before: &[u8]) -> usize {
    before.split(|byte| *byte == b'\n').count()
}

/// Reads all of the file and gathers what is wrong, so that the first line that is wrong is named.
struct Reader<'t> {
    text: &'t str,
    problems: Vec<AppConfigError>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl Reader<'_> {
    fn config(&mut self, root: &DeTable<'_>) -> AppConfig {
        self.only(root, "", &["build", "deploy"]);
        let mut config = AppConfig::default();
        if let Some(build) = self.table(root, "build") {
            config.build = self.build(build);
        }
        if let Some(deploy) = self.table(root, "deploy") {
            self.only(deploy, "deploy.", &["ready_timeout"]);
            config.deploy.ready_timeout = self.duration(deploy, "deploy.", "ready_timeout");
        }
        config
    }

    fn build(&mut self, build: &DeTable<'_>) -> BuildConfig {
        const KEYS: [&str; 7] =
            ["dockerfile", "context", "target", "args", "platforms", "timeout", "require_native_nodes"];
        self.only(build, "build.", &KEYS);
        BuildConfig {
            dockerfile: self.path(build, "dockerfile", false),
            context: self.path(build, "context", true),
            target: self.string(build, "build.", "target").map(|(_, target)| target),
            args: self.args(build),
            platforms: self.platforms(build),
            timeout: self.duration(build, "build.", "timeout"),
            require_native_nodes: self.boolean(build, "require_native_nodes").unwrap_or(true),
        }
    }

    fn problem(&mut self, offset: usize, problem: String) {
        let line = line_at(self.text.as_bytes().get(..offset).unwrap_or_default());
        self.problems.push(AppConfigError { line, problem });
    }

    fn only(&mut self, table: &DeTable<'_>, prefix: &str, known: &[&'static str]) {
        for (key, _) in table {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let shown: String = name.chars().take(64).collect();
            let hint = match (prefix, name) {
                ("deploy.", "branch") => ": the deploy branch is a setting of the server".to_owned(),
                _ => match nearest(name, known.iter().copied()) {
                    Some(similar) => format!(", did you mean `{prefix}{similar}`?"),
                    None => format!(": it is one of {}", known.join(", ")),
                },
            };
            self.problem(key.span().start, format!("unknown key `{prefix}{shown}`{hint}"));
        }
    }

    fn wrong_type(&mut self, value: &Value<'_>, key: &str, wanted: &str) {
        let found = value.get_ref().type_str();
        self.problem(value.span().start, format!("`{key}` is to be {wanted}, not {found}"));
    }

    fn table<'a, 't>(&mut self, parent: &'a DeTable<'t>, name: &str) -> Option<&'a DeTable<'t>> {
        let value = parent.get(name)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, name, "a table");
        }
        table
    }

    /// A string that is not empty, and where it stands.
    fn string(&mut self, table: &DeTable<'_>, prefix: &str, name: &str) -> Option<(usize, String)> {
        let value = table.get(name)?;
        let key = format!("{prefix}{name}");
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(value, &key, "a string");
            return None;
        };
        if text.is_empty() || text.contains('\0') {
            self.problem(
                value.span().start,
                format!("`{key}` is empty or holds a NUL: leave it out or name it"),
            );
            return None;
        }
        Some((value.span().start, text.to_owned()))
    }

    fn boolean(&mut self, table: &DeTable<'_>, name: &str) -> Option<bool> {
        let value = table.get(name)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(value, &format!("build.{name}"), "true or false");
        }
        found
    }

    fn path(&mut self, table: &DeTable<'_>, name: &str, may_be_root: bool) -> Option<String> {
        let (at, text) = self.string(table, "build.", name)?;
        let path = inside(&text).filter(|path| may_be_root || path != ".");
        if path.is_none() {
            let problem =
                format!("`build.{name}` is to be a path inside the repository, from its root, not `{text}`");
            self.problem(at, problem);
        }
        path
    }

    fn duration(&mut self, table: &DeTable<'_>, prefix: &str, name: &str) -> Option<Duration> {
        let (at, text) = self.string(table, prefix, name)?;
        match text.parse::<Span>() {
            Ok(Span(duration)) if duration >= Duration::from_secs(1) => Some(duration),
            Ok(_) => {
                self.problem(at, format!("`{prefix}{name}` is to be at least a second, not `{text}`"));
                None
            }
            Err(error) => {
                self.problem(at, format!("`{prefix}{name}`: {error}"));
                None
            }
        }
    }

    fn args(&mut self, build: &DeTable<'_>) -> Vec<(String, String)> {
        let Some(value) = build.get("args") else { return Vec::new() };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong_type(value, "build.args", "a table of NAME = \"value\"");
            return Vec::new();
        };
        let mut args = Vec::new();
        for (name, value) in table {
            if let Err(error) = name.get_ref().parse::<EnvName>() {
                self.problem(name.span().start, format!("`build.args`: {error}"));
            }
            match value.get_ref().as_str() {
                Some(text) => args.push((name.get_ref().to_string(), text.to_owned())),
                None => self.wrong_type(value, &format!("build.args.{}", name.get_ref()), "a string"),
            }
        }
        args.sort();
        args
    }

    fn platforms(&mut self, build: &DeTable<'_>) -> Vec<Platform> {
        let Some(value) = build.get("platforms") else { return Vec::new() };
        let wanted = "a list of platforms such as [\"linux/amd64\", \"linux/arm64\"]";
        let Some(array) = value.get_ref().as_array().filter(|array| !array.is_empty()) else {
            self.wrong_type(value, "build.platforms", wanted);
            return Vec::new();
        };
        let mut platforms = Vec::new();
        for entry in array {
            match entry.get_ref().as_str().map(str::parse::<Platform>) {
                None => self.wrong_type(entry, "build.platforms", wanted),
                Some(Err(error)) => self.problem(entry.span().start, format!("`build.platforms`: {error}")),
                Some(Ok(platform)) if platforms.contains(&platform) => {
                    self.problem(entry.span().start, format!("`build.platforms` has {platform} twice"));
                }
                Some(Ok(platform)) => platforms.push(platform),
            }
        }
        platforms
    }
}

/// A relative path without `.` and `..`, `.` for the root; none if it leaves the source.
fn inside(text: &str) -> Option<String> {
    if text.starts_with('/') || text.contains(['\\', '\n']) {
        return None;
    }
    let components: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if components.contains(&"..") {
        return None;
    }
    Some(if components.is_empty() { ".".to_owned() } else { components.join("/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        AppConfig::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn all_keys_are_read() {
        let text = "[build]\ndockerfile = \"./docker/Dockerfile\"\ncontext = \".\"\ntarget = \"app\"\n\
                    platforms = [\"linux/amd64\", \"linux/aarch64\"]\ntimeout = \"20m\"\n\
                    require_native_nodes = false\n\
                    [build.args]\nB = \"2\"\nA = \"\"\n[deploy]\nready_timeout = \"90s\"\n";
        let config = AppConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.build.dockerfile.as_deref(), Some("docker/Dockerfile"));
        assert_eq!(config.build.context.as_deref(), Some("."));
        assert_eq!(config.build.target.as_deref(), Some("app"));
        let args = [("A".to_owned(), String::new()), ("B".to_owned(), "2".to_owned())];
        assert_eq!(config.build.args, args);
        assert_eq!(config.build.platforms[1].to_string(), "linux/arm64");
        assert_eq!(config.build.timeout, Some(Duration::from_mins(20)));
        assert!(!config.build.require_native_nodes);
        assert_eq!(config.deploy.ready_timeout, Some(Duration::from_secs(90)));
    }

    #[test]
    fn an_empty_file_says_nothing() {
        assert_eq!(AppConfig::parse(b"# nothing\n"), Ok(AppConfig::default()));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
        assert_eq!(
            error("[build]\n\ndockerfle = \"x\""),
            "hephy.toml:3: unknown key `build.dockerfle`, did you mean `build.dockerfile`?"
        );
        assert_eq!(error("\n[bild]\nx = 1"), "hephy.toml:2: unknown key `bild`, did you mean `build`?");
        assert_eq!(error("replicas = 2"), "hephy.toml:1: unknown key `replicas`: it is one of build, deploy");
        assert_eq!(
            error("[deploy]\nbranch = \"x\""),
            "hephy.toml:2: unknown key `deploy.branch`: the deploy branch is a setting of the server"
        );
    }

    #[test]
    fn the_first_line_that_is_wrong_is_named() {
        assert!(error("[deploy]\nx = 1\n[build]\na = 1").starts_with("hephy.toml:2:"));
    }

    #[test]
    fn wrong_types_and_broken_syntax_have_their_line() {
        assert_eq!(
            error("[build]\ntarget = 3"),
            "hephy.toml:2: `build.target` is to be a string, not integer"
        );
        assert_eq!(
            error("[build]\nrequire_native_nodes = \"no\""),
            "hephy.toml:2: `build.require_native_nodes` is to be true or false, not string"
        );
        assert_eq!(error("build = 3"), "hephy.toml:1: `build` is to be a table, not integer");
        assert!(error("[build]\nargs.A = 1").contains("`build.args.A` is to be a string"));
        assert!(error("[build]\n\nx = ").starts_with("hephy.toml:3:"));
        assert!(error("[build]\ntarget = \"a\"\ntarget = \"b\"").starts_with("hephy.toml:3:"));
    }

    #[test]
    fn paths_stay_inside_the_repository() {
        for path in ["/etc/passwd", "../x", "a/../../b", "."] {
            assert!(
                error(&format!("[build]\ndockerfile = \"{path}\"")).contains("inside the repository"),
                "{path}"
            );
        }
        assert!(error("[build]\ntarget = \"\"").contains("empty"));
    }

    #[test]
    fn platforms_and_durations_are_checked() {
        assert!(error("[build]\nplatforms = [\"arm64\"]").contains("`arm64` is not `os/architecture"));
        assert!(
            error("[build]\nplatforms = [\"linux/arm64\",\n\"linux/arm64/v8\"]").starts_with("hephy.toml:3:")
        );
        assert!(error("[build]\nplatforms = []").contains("a list of platforms"));
        assert!(error("[build]\ntimeout = \"soon\"").contains("not a duration"));
        assert!(error("[build]\ntimeout = \"0s\"").contains("at least a second"));
        assert!(error("[build.args]\n\"1A\" = \"x\"").contains("is not a variable name"));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_by_line() {
        assert!(AppConfig::parse(b"\n\xff").unwrap_err().to_string().starts_with("hephy.toml:2:"));
    }
}
