//! A Dockerfile as stages: which there are, what they are called, and what a name means at a place.

use super::error::{ParseError, Position, Problem, Span};
use super::flags::Flags;
use super::instruction::{Instruction, Located};
use super::lexer::{Escape, decode, directives};
use super::statement::{Statement, statements};
use super::typed::{arguments_at, located, not_a_trigger};
use super::words::at_spaces;

/// A Dockerfile, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The file as its caller named it.
    pub file: String,
    /// The escape character of the file.
    pub escape: Escape,
    /// What `# syntax=` names. No frontend is ever fetched or run: this is for a warning if it is not
    /// `docker/dockerfile`.
    pub syntax: Option<String>,
    /// What `# check=` says.
    pub check: Option<String>,
    /// The ARGs before the first FROM.
    pub global_args: Vec<Located>,
    /// The stages in order; there is at least one.
    pub stages: Vec<Stage>,
    /// Where an instruction is continued over an empty line, which a later version of the language will refuse.
    pub empty_continuations: Vec<Position>,
}

/// From one FROM to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Its number, from 0.
    pub index: usize,
    /// Its name, in lower case.
    pub name: Option<String>,
    /// What follows FROM, with its variables.
    pub base: String,
    /// `--platform`, with its variables.
    pub platform: Option<String>,
    /// Where its FROM stands.
    pub span: Span,
    /// Its FROM as written.
    pub text: String,
    /// The instructions after FROM.
    pub instructions: Vec<Located>,
}

impl Stage {
    /// Its name or else its number: what people call it.
    #[must_use]
    pub fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.index.to_string())
    }
}

/// Reads a Dockerfile. `file` is how errors name it.
pub fn parse(bytes: &[u8], file: &str) -> Result<Dockerfile, ParseError> {
    let text = decode(bytes, file)?;
    let directives = directives(text, file)?;
    let escape = directives.escape.unwrap_or_default();
    let mut dockerfile = Dockerfile {
        file: file.to_owned(),
        escape,
        syntax: directives.syntax,
        check: directives.check,
        global_args: Vec::new(),
        stages: Vec::new(),
        empty_continuations: Vec::new(),
    };
    let statements = statements(text, escape, file)?;
    for statement in &statements {
        let empty = statement.line.empty_continuations.iter();
        dockerfile.empty_continuations.extend(empty.map(|line| Position { line: *line, column: 1 }));
        dockerfile.add(statement)?;
    }
    if dockerfile.stages.is_empty() {
        let position = Position { line: statements.last().map_or(1, |last| last.line.last_line), column: 1 };
        return Err(dockerfile.error(position, Problem::NoFrom));
    }
    Ok(dockerfile)
}

/// Reads an ONBUILD trigger from the config of a base image.
pub fn parse_trigger(text: &str, file: &str) -> Result<Located, ParseError> {
    let fail = |position, problem| Err(ParseError { file: file.to_owned(), position, problem });
    let trigger = statements(decode(text.as_bytes(), file)?, Escape::Backslash, file)?;
    let [statement] = trigger.as_slice() else {
        let problem = Problem::Arguments { instruction: "ONBUILD", needs: "exactly one instruction" };
        return fail(Position { line: 1, column: 1 }, problem);
    };
    match not_a_trigger(&statement.name()) {
        Some(name) => fail(statement.line.position(0), Problem::OnbuildTrigger(name)),
        None => located(statement, file),
    }
}

impl Dockerfile {
    fn error(&self, position: Position, problem: Problem) -> ParseError {
        ParseError { file: self.file.clone(), position, problem }
    }

    fn add(&mut self, statement: &Statement) -> Result<(), ParseError> {
        if statement.name() == "FROM" {
            let stage = from(statement, self.stages.len())
                .map_err(|(position, problem)| self.error(position, problem))?;
            self.stages.push(stage);
            return Ok(());
        }
        let located = located(statement, &self.file)?;
        match (self.stages.last_mut(), &located.instruction) {
            (Some(stage), _) => stage.instructions.push(located),
            (None, Instruction::Arg(_)) => self.global_args.push(located),
            (None, other) => {
                return Err(self.error(located.span.start, Problem::BeforeFrom(other.name())));
            }
        }
        Ok(())
    }

    /// The stage that a `--target` means: a name in any case, or a number. Of a name given twice, the last.
    #[must_use]
    pub fn stage_index(&self, target: &str) -> Option<usize> {
        self.stage_before(self.stages.len(), target)
    }

    /// The stage that `FROM`, `COPY --from` or `--mount=from` means inside the stage `index`: one before it.
    #[must_use]
    pub fn stage_before(&self, index: usize, reference: &str) -> Option<usize> {
        let earlier = self.stages.get(..index).unwrap_or(&self.stages);
        let lower = reference.to_lowercase();
        let named = earlier.iter().rposition(|stage| stage.name.as_deref() == Some(lower.as_str()));
        named.or_else(|| reference.parse::<usize>().ok().filter(|number| *number < earlier.len()))
    }

    /// The stage that a FROM means: by name only, since `FROM 0` is an image.
    #[must_use]
    pub fn base_stage(&self, index: usize, base: &str) -> Option<usize> {
        let lower = base.to_lowercase();
        let earlier = self.stages.get(..index).unwrap_or(&self.stages);
        earlier.iter().rposition(|stage| stage.name.as_deref() == Some(lower.as_str()))
    }

    /// The earlier stages that a stage reads, in order and each once: its base (given expanded), `COPY --from`,
    /// `RUN --mount=from`, also in the triggers that its base brings.
    #[must_use]
    pub fn dependencies(&self, index: usize, base: &str, triggers: &[Located]) -> Vec<usize> {
        let mut found: Vec<usize> = self.base_stage(index, base).into_iter().collect();
        let own = self.stages.get(index).map_or(&[] as &[Located], |stage| &stage.instructions);
        for located in triggers.iter().chain(own) {
            for reference in located.instruction.references() {
                found.extend(self.stage_before(index, reference));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Instruction {
    /// What the `from` of this instruction names: stages, named contexts or images.
    #[must_use]
    pub fn references(&self) -> Vec<&str> {
        match self {
            Self::Copy(copy) => copy.from.as_deref().into_iter().collect(),
            Self::Run(run) => run.mounts.iter().filter_map(|mount| mount.from()).collect(),
            _ => Vec::new(),
        }
    }
}

fn from(statement: &Statement, index: usize) -> super::flags::At<Stage> {
    let mut flags = Flags::new(statement, "FROM");
    let platform = flags.text("platform")?;
    flags.end()?;
    let words = at_spaces(&statement.rest);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (base, name) = match words.as_slice() {
        [base] => (*base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (
            *base,
            Some(
                stage_name(name)
                    .ok_or_else(|| (arguments_at(statement), Problem::StageName((*name).to_owned())))?,
            ),
        ),
        _ => {
            let needs = "an image or stage, and no more than `AS name` after it";
            return Err((arguments_at(statement), Problem::Arguments { instruction: "FROM", needs }));
        }
    };
    Ok(Stage {
        index,
        name,
        base: base.to_owned(),
        platform,
        span: statement.span(),
        text: statement.line.text.trim().to_owned(),
        instructions: Vec::new(),
    })
}

/// The name in lower case, if it is one: a letter, then letters, digits, `-`, `_`, `.`.
fn stage_name(text: &str) -> Option<String> {
    let name = text.to_lowercase();
    let rest = name.strip_prefix(|c: char| c.is_ascii_lowercase())?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    rest.chars().all(allowed).then(|| name.clone())
}
