//! The rules that need no more than how the file is written.

use super::{Checker, Rule, directive_value};
use crate::dockerfile::error::Span;
use crate::dockerfile::instruction::{Instruction, Located};
use crate::dockerfile::stages::Stage;
use crate::dockerfile::{CommandLine, KeyValue};

/// Parts of names that stand for secrets, and those that take the suspicion away.
const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const NOT_SECRET: [&str; 3] = ["public", "file", "version"];

impl Checker<'_> {
    pub(super) fn text(&mut self) {
        self.casing();
        for position in &self.dockerfile.empty_continuations {
            let span = Span { start: *position, end_line: position.line };
            self.find(Rule::NoEmptyContinuation, span, "Empty continuation line");
        }
        let mut names: Vec<&str> = Vec::new();
        for located in &self.dockerfile.global_args {
            self.instruction(located);
        }
        for stage in &self.dockerfile.stages {
            self.stage_name(stage, &mut names);
            for located in &stage.instructions {
                self.instruction(located);
            }
            self.only_the_last(stage);
        }
    }

    fn casing(&mut self) {
        let mut keywords: Vec<(&str, Span)> = Vec::new();
        for stage in &self.dockerfile.stages {
            keywords.push((first_word(&stage.text), stage.span));
            keywords
                .extend(stage.instructions.iter().map(|located| (first_word(&located.text), located.span)));
        }
        let lower = keywords.iter().filter(|(word, _)| is_lower(word)).count();
        let upper = keywords.iter().filter(|(word, _)| is_upper(word)).count();
        let (is_right, casing): (fn(&str) -> bool, _) =
            if lower > upper { (is_lower, "lowercase") } else { (is_upper, "uppercase") };
        for (word, span) in keywords.into_iter().filter(|(word, _)| !is_right(word)) {
            let detail = format!("Command '{word}' should match the case of the command majority ({casing})");
            self.find(Rule::ConsistentInstructionCasing, span, detail);
        }
    }

    fn stage_name<'a>(&mut self, stage: &'a Stage, names: &mut Vec<&'a str>) {
        let words: Vec<&str> = stage.text.split_whitespace().filter(|word| !word.starts_with("--")).collect();
        let [from, _, keyword, written] = words.as_slice() else { return };
        let Some(name) = stage.name.as_deref() else { return };
        let span = stage.span;
        if *written != name {
            self.find(Rule::StageNameCasing, span, format!("Stage name '{written}' should be lowercase"));
        }
        let matches = if is_lower(from) { is_lower(keyword) } else { !is_upper(from) || is_upper(keyword) };
        if !matches {
            let detail = format!("'{keyword}' and '{from}' keywords' casing do not match");
            self.find(Rule::FromAsCasing, span, detail);
        }
        if matches!(name, "context" | "scratch") {
            let detail = format!("Stage name should not use the same name as reserved stage \"{name}\"");
            self.find(Rule::ReservedStageName, span, detail);
        }
        if names.contains(&name) {
            let detail = format!("Duplicate stage name \"{name}\", stage names should be unique");
            self.find(Rule::DuplicateStageName, span, detail);
        }
        names.push(name);
        self.description("FROM", &[name], span);
    }

    fn instruction(&mut self, located: &Located) {
        let span = located.span;
        match &located.instruction {
            Instruction::Maintainer(_) => {
                let detail = "Maintainer instruction is deprecated in favor of using label";
                self.find(Rule::MaintainerDeprecated, span, detail);
            }
            Instruction::Env(pairs) => {
                self.legacy("ENV", located, pairs);
                for pair in pairs {
                    self.secret("ENV", &pair.key, span);
                }
            }
            Instruction::Label(pairs) => self.legacy("LABEL", located, pairs),
            Instruction::Arg(declarations) => {
                let names: Vec<&str> = declarations.iter().map(|one| one.name.as_str()).collect();
                self.description("ARG", &names, span);
                for name in names {
                    self.secret("ARG", name, span);
                }
            }
            _ => {}
        }
    }

    fn secret(&mut self, instruction: &str, name: &str, span: Span) {
        let lower = name.to_lowercase();
        let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
        if has(&SECRET) && !has(&NOT_SECRET) {
            let detail =
                format!("Do not use ARG or ENV instructions for sensitive data ({instruction} \"{name}\")");
            self.find(Rule::SecretsUsedInArgOrEnv, span, detail);
        }
    }

    fn legacy(&mut self, name: &str, located: &Located, pairs: &[KeyValue]) {
        let rest = located.text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim_start());
        let [pair] = pairs else { return };
        let after = rest.strip_prefix(pair.key.as_str());
        if after.is_some_and(|after| after.starts_with(char::is_whitespace)) {
            let detail =
                format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format");
            self.find(Rule::LegacyKeyValueFormat, located.span, detail);
        }
    }

    fn description(&mut self, instruction: &str, names: &[&str], span: Span) {
        let comments = self.comments_above(span.start.line);
        let Some(last) = comments.last() else { return };
        let is_directive =
            ["syntax", "escape", "check"].iter().any(|name| directive_value(last, name).is_some());
        let first = last.split(' ').next().unwrap_or_default();
        if is_directive || names.contains(&first) {
            return;
        }
        let example = if let [one] = names { one } else { "<arg_key>" };
        let detail =
            format!("Comment for {instruction} should follow the format: `# {example} <description>`");
        self.find(Rule::InvalidDefinitionDescription, span, detail);
    }

    /// Of each kind only the last counts in a stage.
    fn only_the_last(&mut self, stage: &Stage) {
        for name in ["CMD", "ENTRYPOINT", "HEALTHCHECK"] {
            let spans: Vec<Span> = stage
                .instructions
                .iter()
                .filter(|located| located.instruction.name() == name)
                .map(|located| located.span)
                .collect();
            for span in spans.iter().rev().skip(1) {
                let detail = format!(
                    "Multiple {name} instructions should not be used in the same stage because only the last one will be used"
                );
                self.find(Rule::MultipleInstructionsDisallowed, *span, detail);
            }
        }
    }
}

/// Whether a command is text for a shell that nobody chose.
pub(super) const fn is_shell_form(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::Cmd(CommandLine::Shell(_)) | Instruction::Entrypoint(CommandLine::Shell(_))
    )
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or_default()
}

fn is_lower(word: &str) -> bool {
    word == word.to_lowercase()
}

fn is_upper(word: &str) -> bool {
    word == word.to_uppercase()
}
