//! The build checks, alone and as the notes of a build.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::build::context::read_text;
use crate::build::driver::BuildFailure;
use crate::build::engine::{BuildOptions, Engine};
use crate::build::error::EngineError;
use crate::build::event::BuildEvent;
use crate::build::plan::ImageName;
use crate::dockerfile::{
    self, CheckInput, Dockerfile, Expander, Findings, GlobalScope, IgnoreFile, PlatformArgs,
};
use crate::oci::Platform;

/// How long a check waits to learn what a base sets.
const BASE_LIMIT: Duration = Duration::from_secs(10);

/// What a check says of a Dockerfile.
#[derive(Debug)]
pub struct CheckReport {
    /// The Dockerfile as it was named.
    pub file: String,
    /// What is in it.
    pub text: Vec<u8>,
    /// What was found, or why it does not read: the line and a sentence.
    pub outcome: Result<Findings, (usize, String)>,
}

/// Checks the Dockerfile of a build, and builds nothing. Of bases that are not reached in time nothing is said.
pub async fn check(options: BuildOptions) -> Result<CheckReport, BuildFailure> {
    report(options).await.map_err(|error| error.into_failure(None))
}

async fn report(options: BuildOptions) -> Result<CheckReport, EngineError> {
    let engine = Engine::open(options, std::sync::Arc::new(|_| {}), jiff::Timestamp::now())?;
    let file = engine.options.dockerfile.display().to_string();
    let text = engine.text()?;
    let parsed = match dockerfile::parse(&text, &file) {
        Ok(parsed) => parsed,
        Err(error) => {
            let outcome = Err((error.position.line, error.problem.to_string()));
            return Ok(CheckReport { file, text, outcome });
        }
    };
    let environments = engine.environments(&parsed).await;
    let findings = engine.findings(&parsed, &text, &|base| environments.get(base).cloned())?;
    Ok(CheckReport { file, text, outcome: Ok(findings) })
}

impl Engine {
    /// Tells what the checks find, which is an error only if the Dockerfile says so.
    pub(super) fn check(&self, dockerfile: &Dockerfile) -> Result<(), EngineError> {
        let environment = |base: &str| {
            let mut names = self.images.iter().filter(|(name, _)| name.reference == base);
            names.next().map(|(_, image): (&ImageName, _)| image.config.config.env.clone())
        };
        let found = self.findings(dockerfile, &self.text()?, &environment)?;
        for finding in &found.findings {
            let at = self.location(finding.span.start.line);
            let text = format!("{at}: {}: {}", finding.rule.name(), finding.detail);
            (self.events)(BuildEvent::Note { text });
        }
        let mut rules: Vec<&str> = found.findings.iter().map(|finding| finding.rule.name()).collect();
        rules.sort_unstable();
        rules.dedup();
        if found.are_errors && !rules.is_empty() {
            let rules = rules.join(", ");
            return Err(EngineError::Wrong(format!(
                "the Dockerfile's `check=error=true` makes these errors: {rules}"
            )));
        }
        Ok(())
    }

    /// What is in the Dockerfile.
    pub(super) fn text(&self) -> Result<Vec<u8>, EngineError> {
        if let Some(text) = &self.options.dockerfile_text {
            return Ok(text.clone());
        }
        let name = self.options.dockerfile.display();
        let text = read_text(&self.options.context.join(&self.options.dockerfile))?;
        text.ok_or_else(|| EngineError::Wrong(format!("there is no `{name}` in the context")))
    }

    fn platform_args(&self) -> PlatformArgs {
        PlatformArgs {
            target: self.options.platform.clone(),
            build: Platform::native(),
            target_stage: self.options.target.clone().unwrap_or_else(|| "default".to_owned()),
        }
    }

    fn findings(
        &self,
        dockerfile: &Dockerfile,
        text: &[u8],
        environment: &dyn Fn(&str) -> Option<Vec<String>>,
    ) -> Result<Findings, EngineError> {
        let ignore = match &self.context.ignore {
            Some(ignore) => IgnoreFile::parse(&ignore.text, &ignore.name)?,
            None => IgnoreFile::default(),
        };
        let input = CheckInput {
            text,
            build_args: &self.options.build_args,
            platforms: &self.platform_args(),
            ignore: Some(&ignore).filter(|ignore| !ignore.is_empty()),
            environment,
        };
        dockerfile::check(dockerfile, &input).map_err(|error| EngineError::Wrong(error.to_string()))
    }

    /// What the bases set, of those that are reached in time.
    async fn environments(&self, dockerfile: &Dockerfile) -> BTreeMap<String, Vec<String>> {
        let platforms = self.platform_args();
        let Ok(global) = GlobalScope::new(dockerfile, &self.options.build_args, &platforms) else {
            return BTreeMap::new();
        };
        let lookup = |name: &str| global.lookup(name);
        let expander = Expander::new(dockerfile.escape, &lookup);
        let mut bases: Vec<String> = dockerfile
            .stages
            .iter()
            .filter_map(|stage| Some((stage, expander.word(&stage.base).ok()?)))
            .filter(|(stage, base)| base != "scratch" && dockerfile.base_stage(stage.index, base).is_none())
            .map(|(_, base)| base)
            .collect();
        bases.sort();
        bases.dedup();
        let deadline = Instant::now() + BASE_LIMIT;
        let known = bases.iter().map(|base| {
            let asked = self.trees.bases.finder.resolve(base, &self.options.platform);
            async move {
                let answer = tokio::time::timeout_at(deadline.into(), asked).await;
                answer.ok().and_then(Result::ok).map(|found| (base.clone(), found.config.config.env))
            }
        });
        join_all(known).await.into_iter().flatten().collect()
    }
}
