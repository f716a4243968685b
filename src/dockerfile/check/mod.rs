//! The build checks: what a Dockerfile may say and should not, as BuildKit's linter knows it.
//!
//! A finding never changes the image. Which rules count is said by `# check=skip=…;error=true` at the top of the
//! file, and by the same comment right above an instruction for that instruction.

mod rule;
mod stages;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use super::error::Span;
use super::ignore::IgnoreFile;
use super::lexer::MAX_FILE_BYTES;
use super::scope::PlatformArgs;
use super::stages::Dockerfile;

pub use rule::{CheckOptions, CheckOptionsError, Rule};

/// What a check sees besides the Dockerfile.
#[derive(Clone, Copy)]
pub struct CheckInput<'a> {
    /// The Dockerfile's bytes: comments are not in what was parsed.
    pub text: &'a [u8],
    /// Build arguments.
    pub build_args: &'a BTreeMap<String, String>,
    /// The automatic arguments.
    pub platforms: &'a PlatformArgs,
    /// The context's ignore file.
    pub ignore: Option<&'a IgnoreFile>,
    /// The environment of a base image by its name; `None` if it is not known, and then nothing is said of variables.
    pub environment: &'a dyn Fn(&str) -> Option<Vec<String>>,
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which rule says so.
    pub rule: Rule,
    /// What it says.
    pub detail: String,
    /// Where.
    pub span: Span,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// In the order of the file.
    pub findings: Vec<Finding>,
    /// Whether findings are errors.
    pub are_errors: bool,
}

/// Checks a Dockerfile.
///
/// # Errors
/// What is wrong with `# check=`.
pub fn check(dockerfile: &Dockerfile, input: &CheckInput<'_>) -> Result<Findings, CheckOptionsError> {
    let directive = input.build_args.get("BUILDKIT_DOCKERFILE_CHECK").or(dockerfile.check.as_ref());
    let options = CheckOptions::parse(directive.map_or("", String::as_str))?;
    let text = String::from_utf8_lossy(input.text.get(..MAX_FILE_BYTES).unwrap_or(input.text));
    let lines: Vec<&str> = text.lines().collect();
    let mut checker = Checker { dockerfile, input, lines, options, findings: Vec::new() };
    checker.text();
    checker.stages();
    let mut findings = checker.findings;
    findings.sort_by_key(|finding| finding.span.start.line);
    findings.dedup();
    Ok(Findings { findings, are_errors: checker.options.are_errors })
}

struct Checker<'a> {
    dockerfile: &'a Dockerfile,
    input: &'a CheckInput<'a>,
    lines: Vec<&'a str>,
    options: CheckOptions,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    /// Adds a finding, if its rule counts there.
    fn find(&mut self, rule: Rule, span: Span, detail: impl Into<String>) {
        let mut counts = self.options.counts(rule);
        for comment in self.comments_above(span.start.line) {
            let Some(value) = directive_value(comment, "check") else { continue };
            // What is wrong with a comment is no reason to fail.
            if let Ok(own) = CheckOptions::parse(value.split(' ').next().unwrap_or_default()) {
                counts = if rule.is_experimental() {
                    counts || own.counts(rule)
                } else {
                    counts && own.counts(rule)
                };
            }
        }
        if counts {
            self.findings.push(Finding { rule, detail: detail.into(), span });
        }
    }

    /// The comments right above a line, without their `#`.
    fn comments_above(&self, line: usize) -> Vec<&str> {
        let above = self.lines.get(..line.saturating_sub(1)).unwrap_or_default();
        let comments = above.iter().rev().map_while(|line| line.trim_start().strip_prefix('#'));
        let mut comments: Vec<&str> = comments.map(str::trim).collect();
        comments.reverse();
        comments
    }
}

/// The value of a comment that is a directive of this name.
fn directive_value<'a>(comment: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = comment.split_once('=')?;
    key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
}
