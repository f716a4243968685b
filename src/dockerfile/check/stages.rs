//! The rules that need to know what variables are, stage by stage.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::text::is_shell_form;
use super::{Checker, Rule};
use crate::dockerfile::error::Span;
use crate::dockerfile::expansion::Expander;
use crate::dockerfile::instruction::{Instruction, Located};
use crate::dockerfile::scope::{GlobalScope, StageScope};
use crate::dockerfile::stages::Stage;
use crate::model::nearest;
use crate::oci::{Platform, Reference};

/// The path of a base that says nothing of its environment.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is known at a place of a stage.
#[derive(Clone, Default)]
struct State {
    scope: StageScope,
    /// Names that ARG declared, with a value or without.
    declared: BTreeSet<String>,
    /// Whether all that the base sets is known.
    is_complete: bool,
    has_workdir: bool,
    has_shell: bool,
}

/// The variables that a text was expanded with: those that are set, and those that are not.
#[derive(Default)]
struct Used {
    set: BTreeSet<String>,
    unset: BTreeSet<String>,
}

impl Checker<'_> {
    pub(super) fn stages(&mut self) {
        let Ok(global) = GlobalScope::new(self.dockerfile, self.input.build_args, self.input.platforms)
        else {
            return;
        };
        let defaults = GlobalScope::new(self.dockerfile, &BTreeMap::new(), self.input.platforms).ok();
        let mut states: Vec<State> = Vec::new();
        for stage in &self.dockerfile.stages {
            let base = self.from(stage, &global);
            if let Some(defaults) = &defaults {
                self.default_base(stage, defaults);
            }
            let parent = self.dockerfile.base_stage(stage.index, &base).and_then(|index| states.get(index));
            let mut state = parent.cloned().unwrap_or_else(|| self.of_image(&base));
            for located in &stage.instructions {
                self.in_stage(located, &mut state, &global);
            }
            states.push(state);
        }
    }

    fn of_image(&self, base: &str) -> State {
        let environment = if base == "scratch" { Some(Vec::new()) } else { (self.input.environment)(base) };
        let is_complete = environment.is_some();
        let mut environment = environment.unwrap_or_default();
        if !environment.iter().any(|variable| variable.starts_with("PATH=")) {
            environment.push(PATH.to_owned());
        }
        State { scope: StageScope::from_image(&environment), is_complete, ..State::default() }
    }

    /// The rules of FROM; returns the base.
    fn from(&mut self, stage: &Stage, global: &GlobalScope) -> String {
        let declared: BTreeSet<&str> = self
            .dockerfile
            .global_args
            .iter()
            .filter_map(
                |located| if let Instruction::Arg(found) = &located.instruction { Some(found) } else { None },
            )
            .flatten()
            .map(|declaration| declaration.name.as_str())
            .collect();
        let lookup = |name: &str| global.lookup(name);
        let (base, used) = self.expanded(&stage.base, &lookup);
        let mut unset = used.unset;
        if let Some(platform) = &stage.platform {
            let (value, used) = self.expanded(platform, &lookup);
            let is_only = used.unset.is_empty() && used.set.len() == 1;
            if is_only
                && used.set.contains("TARGETPLATFORM")
                && global.lookup("TARGETPLATFORM").as_ref() == Some(&value)
            {
                let detail = format!(
                    "Setting platform to predefined {platform} in FROM is redundant as this is the default behavior"
                );
                self.find(Rule::RedundantTargetPlatform, stage.span, detail);
            }
            if used.unset.is_empty() && used.set.is_empty() {
                self.constant_platform(stage, &value);
            }
            unset.extend(used.unset);
        }
        for name in unset.iter().filter(|name| !declared.contains(name.as_str())) {
            let near = nearest(name, declared.iter().copied());
            let detail = suggestion(format!("FROM argument '{name}' is not declared"), near, "");
            self.find(Rule::UndefinedArgInFrom, stage.span, detail);
        }
        base
    }

    fn constant_platform(&mut self, stage: &Stage, value: &str) {
        let Ok(platform) = value.parse::<Platform>() else { return };
        let name = stage.name.as_deref().unwrap_or_default();
        if !name.contains(platform.os()) && !name.contains(platform.architecture()) {
            let detail = format!("FROM --platform flag should not use constant value \"{value}\"");
            self.find(Rule::FromPlatformFlagConstDisallowed, stage.span, detail);
        }
    }

    fn default_base(&mut self, stage: &Stage, defaults: &GlobalScope) {
        let lookup = |name: &str| defaults.lookup(name);
        let (base, _) = self.expanded(&stage.base, &lookup);
        let is_stage = self.dockerfile.base_stage(stage.index, &base).is_some();
        if !is_stage && base.parse::<Reference>().is_err() {
            let detail =
                format!("Default value for ARG {} results in empty or invalid base image name", stage.base);
            self.find(Rule::InvalidDefaultArgInFrom, stage.span, detail);
        }
    }

    fn expanded(&self, text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> (String, Used) {
        let used = RefCell::new(Used::default());
        let recording = |name: &str| {
            let value = lookup(name);
            let mut used = used.borrow_mut();
            if value.is_some() { &mut used.set } else { &mut used.unset }.insert(name.to_owned());
            value
        };
        let value = Expander::new(self.dockerfile.escape, &recording).word(text).unwrap_or_default();
        (value, used.into_inner())
    }

    fn in_stage(&mut self, located: &Located, state: &mut State, global: &GlobalScope) {
        let span = located.span;
        let unset = RefCell::new(BTreeSet::new());
        let recording = |name: &str| {
            let value = state.scope.lookup(name);
            if value.is_none() {
                unset.borrow_mut().insert(name.to_owned());
            }
            value
        };
        let expander = Expander::new(self.dockerfile.escape, &recording);
        let instruction = located.instruction.expand(&expander);
        if let Instruction::Arg(declarations) = &located.instruction {
            for default in declarations.iter().filter_map(|declaration| declaration.default.as_ref()) {
                // What does not expand is the build's business.
                drop(expander.word(default));
            }
        }
        let unset = unset.into_inner();
        self.variables(&unset, span, state);
        let Ok(instruction) = instruction else { return };
        self.typed(&instruction, located, state, global);
    }

    fn variables(&mut self, unset: &BTreeSet<String>, span: Span, state: &State) {
        if !state.is_complete {
            return;
        }
        let known = state.scope.environment();
        for name in unset.iter().filter(|name| !state.declared.contains(*name)) {
            let near = nearest(name, known.iter().map(|(name, _)| name.as_str()));
            let detail = suggestion(format!("Usage of undefined variable '${name}'"), near, "$");
            self.find(Rule::UndefinedVar, span, detail);
        }
    }

    fn typed(
        &mut self,
        instruction: &Instruction,
        located: &Located,
        state: &mut State,
        global: &GlobalScope,
    ) {
        let span = located.span;
        match instruction {
            Instruction::Env(pairs) => {
                for pair in pairs {
                    state.scope.set_env(&pair.key, &pair.value);
                }
            }
            Instruction::Arg(declarations) => {
                for declaration in declarations {
                    // What does not expand is the build's business.
                    drop(state.scope.declare(declaration, global, self.dockerfile.escape));
                    state.declared.insert(declaration.name.clone());
                }
            }
            Instruction::Workdir(path) => {
                if !state.has_workdir && !path.starts_with('/') {
                    let detail = format!(
                        "Relative workdir \"{path}\" can have unexpected results if the base image changes"
                    );
                    self.find(Rule::WorkdirRelativePath, span, detail);
                }
                state.has_workdir = true;
            }
            Instruction::Shell(_) => state.has_shell = true,
            Instruction::Cmd(_) | Instruction::Entrypoint(_)
                if is_shell_form(instruction) && !state.has_shell =>
            {
                let name = instruction.name();
                let detail = format!(
                    "JSON arguments recommended for {name} to prevent unintended behavior related to OS signals"
                );
                self.find(Rule::JSONArgsRecommended, span, detail);
            }
            Instruction::Expose(ports) => {
                for port in ports {
                    self.port(port, span);
                }
            }
            Instruction::Copy(copy) if copy.from.is_none() => self.ignored("Copy", &copy.sources.paths, span),
            Instruction::Add(add) => {
                let is_local = |path: &&String| !path.contains("://") && !path.contains('@');
                let local: Vec<String> = add.sources.paths.iter().filter(is_local).cloned().collect();
                self.ignored("Add", &local, span);
            }
            _ => {}
        }
    }

    fn port(&mut self, port: &str, span: Span) {
        let protocol = port.rsplit_once('/').map_or("", |(_, protocol)| protocol);
        if protocol != protocol.to_lowercase() {
            let detail = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
            self.find(Rule::ExposeProtoCasing, span, detail);
        }
        if port.contains(':') {
            let detail = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
            );
            self.find(Rule::ExposeInvalidFormat, span, detail);
        }
    }

    fn ignored(&mut self, command: &str, sources: &[String], span: Span) {
        // With exceptions a directory may be ignored and what is in it not.
        let Some(ignore) = self.input.ignore.filter(|ignore| !ignore.has_exceptions()) else { return };
        for source in sources {
            let parts: Vec<&str> = source.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
            let clean = parts.join("/");
            // The root is ignored by what ignores everything in it.
            let path = if clean.is_empty() { "\u{1}" } else { clean.as_str() };
            if ignore.is_ignored(Path::new(path)) {
                let name = if clean.is_empty() { "." } else { clean.as_str() };
                let detail =
                    format!("Attempting to {command} file \"{name}\" that is excluded by .dockerignore");
                self.find(Rule::CopyIgnoredFile, span, detail);
            }
        }
    }
}

fn suggestion(text: String, near: Option<&str>, prefix: &str) -> String {
    match near {
        Some(near) => format!("{text} (did you mean {prefix}{near}?)"),
        None => text,
    }
}
