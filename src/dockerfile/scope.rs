//! Which value a variable has where: the ARGs before FROM, `--build-arg`, the platform's, a stage's ENV and ARG.

use std::collections::BTreeMap;

use super::error::{ParseError, Problem};
use super::expansion::{ExpandError, Expander};
use super::instruction::{ArgDeclaration, Instruction};
use super::lexer::Escape;
use super::stages::Dockerfile;
use crate::oci::Platform;

/// Proxy settings that RUN sees without a declaration. They are in no history, and in no cache key unless declared.
pub const PROXY_ARGS: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What the automatic platform ARGs say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformArgs {
    /// The platform of the image: `TARGETPLATFORM` and its parts.
    pub target: Platform,
    /// The platform that builds: `BUILDPLATFORM` and its parts.
    pub build: Platform,
    /// The stage that is built: `TARGETSTAGE`, `default` if none was asked for.
    pub target_stage: String,
}

impl PlatformArgs {
    fn values(&self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        for (prefix, platform) in [("TARGET", &self.target), ("BUILD", &self.build)] {
            let mut put =
                |name: &str, value: &str| values.insert(format!("{prefix}{name}"), value.to_owned());
            put("PLATFORM", &platform.to_string());
            put("OS", platform.os());
            put("OSVERSION", "");
            put("ARCH", platform.architecture());
            put("VARIANT", platform.variant().unwrap_or_default());
        }
        values.insert("TARGETSTAGE".to_owned(), self.target_stage.clone());
        values
    }
}

/// The scope of FROM: the ARGs before it, the platform's, and what was given with `--build-arg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalScope {
    values: BTreeMap<String, String>,
    given: BTreeMap<String, String>,
}

impl GlobalScope {
    /// Evaluates the ARGs before the first FROM, each of which sees those above it.
    pub fn new(
        dockerfile: &Dockerfile,
        given: &BTreeMap<String, String>,
        platform: &PlatformArgs,
    ) -> Result<Self, ParseError> {
        let mut values = platform.values();
        for name in values.keys().cloned().collect::<Vec<_>>() {
            if let Some(value) = given.get(&name) {
                values.insert(name, value.clone());
            }
        }
        for located in &dockerfile.global_args {
            let Instruction::Arg(declarations) = &located.instruction else { continue };
            for declaration in declarations {
                let lookup = |name: &str| values.get(name).cloned();
                let expander = Expander::new(dockerfile.escape, &lookup);
                let value = match (given.get(&declaration.name), &declaration.default) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(default)) => Some(expander.word(default).map_err(|error| ParseError {
                        file: dockerfile.file.clone(),
                        position: located.span.start,
                        problem: Problem::Expansion(error),
                    })?),
                    (None, None) => None,
                };
                if let Some(value) = value {
                    values.insert(declaration.name.clone(), value);
                }
            }
        }
        Ok(Self { values, given: given.clone() })
    }

    /// The value of a variable in FROM.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned()
    }

    /// The proxy settings given: in RUN's environment without a declaration, in upper and in lower case since
    /// programs read the one or the other.
    #[must_use]
    pub fn proxies(&self) -> Vec<(String, String)> {
        let of = |name: &str| self.given.get(name).cloned();
        let given = |name: &&str| {
            let other = || of(&name.to_ascii_uppercase()).or_else(|| of(&name.to_ascii_lowercase()));
            of(name).or_else(other).map(|value| ((*name).to_owned(), value))
        };
        PROXY_ARGS.iter().filter_map(given).collect()
    }

    /// The names given that no ARG of the file declares and no rule knows: nobody will read them.
    #[must_use]
    pub fn unread(&self, dockerfile: &Dockerfile) -> Vec<String> {
        let stages = dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
        let mut declared: Vec<&str> = PROXY_ARGS.to_vec();
        for located in dockerfile.global_args.iter().chain(stages) {
            if let Instruction::Arg(declarations) = &located.instruction {
                declared.extend(declarations.iter().map(|declaration| declaration.name.as_str()));
            }
        }
        self.given.keys().filter(|name| !declared.contains(&name.as_str())).cloned().collect()
    }
}

/// The variables of one stage in the order in which ENV and ARG set them. A clone is the scope of `FROM this-stage`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageScope {
    /// Name and value, in the order of first setting; an ARG after an ENV of its name hides it, and the reverse.
    variables: Vec<(String, String)>,
    declared: Vec<(String, Option<String>)>,
}

impl StageScope {
    /// The scope after FROM an image: its environment, as `NAME=value`.
    #[must_use]
    pub fn from_image(environment: &[String]) -> Self {
        let mut scope = Self::default();
        for variable in environment {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            scope.set_env(name, value);
        }
        scope
    }

    /// The value of a variable at this place of the stage.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<String> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    /// `ENV name=value`, expanded.
    pub fn set_env(&mut self, name: &str, value: &str) {
        match self.variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.variables.push((name.to_owned(), value.to_owned())),
        }
    }

    /// `ARG name[=default]`: what was given with `--build-arg`, else the default, else the value from before FROM.
    ///
    /// Without any of them the name is declared and has no value, and an ENV of its name stays.
    pub fn declare(
        &mut self,
        declaration: &ArgDeclaration,
        global: &GlobalScope,
        escape: Escape,
    ) -> Result<Option<String>, ExpandError> {
        let value = match (global.given.get(&declaration.name), &declaration.default) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(default)) => {
                let lookup = |name: &str| self.lookup(name);
                Some(Expander::new(escape, &lookup).word(default)?)
            }
            (None, None) => global.lookup(&declaration.name),
        };
        if let Some(value) = &value {
            self.set_env(&declaration.name, value);
        }
        self.declared.retain(|(name, _)| *name != declaration.name);
        self.declared.push((declaration.name.clone(), value.clone()));
        Ok(value)
    }

    /// The ARGs declared so far that have a value, sorted: for RUN's history and for cache keys.
    #[must_use]
    pub fn declared_args(&self) -> Vec<(String, String)> {
        let valued = |(name, value): &(String, Option<String>)| Some((name.clone(), value.clone()?));
        let mut declared: Vec<_> = self.declared.iter().filter_map(valued).collect();
        declared.sort();
        declared
    }

    /// All variables that RUN sees: of ENV and ARG of one name, the one set later.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        self.variables.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;

    fn global(text: &str, given: &[(&str, &str)]) -> (Dockerfile, GlobalScope) {
        let dockerfile = parse(text.as_bytes(), "Dockerfile").unwrap();
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let platform = PlatformArgs {
            target: "linux/arm/v7".parse().unwrap(),
            build: "linux/amd64".parse().unwrap(),
            target_stage: "default".to_owned(),
        };
        let scope = GlobalScope::new(&dockerfile, &given, &platform).unwrap();
        (dockerfile, scope)
    }

    fn arg(name: &str, default: Option<&str>) -> ArgDeclaration {
        ArgDeclaration { name: name.to_owned(), default: default.map(str::to_owned) }
    }

    fn declare(scope: &mut StageScope, global: &GlobalScope, arg: &ArgDeclaration) -> Option<String> {
        scope.declare(arg, global, Escape::Backslash).unwrap()
    }

    #[test]
    fn arguments_before_from_see_those_above_them_and_the_platform() {
        let (_, global) = global("ARG A=1 B=$A-$TARGETARCH\nARG C=${B}x\nFROM x", &[]);
        assert_eq!(global.lookup("C").as_deref(), Some("1-armx"));
        assert_eq!(global.lookup("TARGETPLATFORM").as_deref(), Some("linux/arm/v7"));
        assert_eq!(global.lookup("TARGETVARIANT").as_deref(), Some("v7"));
        assert_eq!(global.lookup("BUILDPLATFORM").as_deref(), Some("linux/amd64"));
        assert_eq!(global.lookup("TARGETSTAGE").as_deref(), Some("default"));
    }

    #[test]
    fn a_stage_sees_an_argument_from_before_from_only_when_it_declares_it() {
        let (_, global) = global("ARG A=1\nFROM x", &[]);
        let mut scope = StageScope::default();
        assert_eq!(scope.lookup("A"), None);
        assert_eq!(declare(&mut scope, &global, &arg("A", None)).as_deref(), Some("1"));
        assert_eq!(scope.lookup("A").as_deref(), Some("1"));
        assert_eq!(declare(&mut scope, &global, &arg("TARGETARCH", None)).as_deref(), Some("arm"));
    }

    #[test]
    fn given_wins_over_the_stages_default_which_wins_over_the_global_value() {
        let (_, global) = global("ARG A=1\nARG B=1\nFROM x", &[("A", "3")]);
        let mut scope = StageScope::default();
        assert_eq!(declare(&mut scope, &global, &arg("A", Some("2"))).as_deref(), Some("3"));
        assert_eq!(declare(&mut scope, &global, &arg("B", Some("2"))).as_deref(), Some("2"));
        assert_eq!(global.lookup("A").as_deref(), Some("3"));
    }

    #[test]
    fn the_later_of_env_and_arg_wins() {
        let (_, global) = global("FROM x", &[]);
        let mut scope = StageScope::from_image(&["A=image".to_owned(), "PATH=/bin".to_owned()]);
        declare(&mut scope, &global, &arg("A", Some("arg")));
        assert_eq!(scope.lookup("A").as_deref(), Some("arg"));
        scope.set_env("A", "env");
        assert_eq!(scope.lookup("A").as_deref(), Some("env"));
        assert_eq!(scope.environment()[0], ("A".to_owned(), "env".to_owned()));
    }

    #[test]
    fn an_argument_without_a_value_hides_no_env() {
        let (_, global) = global("FROM x", &[]);
        let mut scope = StageScope::from_image(&["A=image".to_owned()]);
        assert_eq!(declare(&mut scope, &global, &arg("A", None)), None);
        assert_eq!(scope.lookup("A").as_deref(), Some("image"));
        assert_eq!(scope.declared_args(), []);
    }

    #[test]
    fn a_stage_from_a_stage_inherits_its_arguments() {
        let (_, global) = global("FROM x", &[]);
        let mut first = StageScope::default();
        declare(&mut first, &global, &arg("A", Some("1")));
        let second = first.clone();
        assert_eq!(second.lookup("A").as_deref(), Some("1"));
        assert_eq!(second.declared_args(), [("A".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn proxies_need_no_declaration_and_are_seen_in_either_case_and_others_are_unread() {
        let (dockerfile, global) =
            global("FROM x\nARG A", &[("https_proxy", "p"), ("A", "1"), ("TYPO", "1")]);
        let proxy = |name: &str| (name.to_owned(), "p".to_owned());
        assert_eq!(global.proxies(), [proxy("HTTPS_PROXY"), proxy("https_proxy")]);
        assert_eq!(global.unread(&dockerfile), ["TYPO"]);
    }
}
