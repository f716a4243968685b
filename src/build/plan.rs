//! What of a Dockerfile is built, in which order.
//!
//! Pure: stages that the target does not need are left out before anything is looked up, so that neither are they
//! built nor their bases pulled.

use std::collections::{BTreeMap, BTreeSet};

use crate::build::error::EngineError;
use crate::build::named::{Named, NamedContexts};
use crate::dockerfile::{
    Dockerfile, Expander, GlobalScope, Instruction, Located, MountSpec, Stage, parse_trigger,
};

/// What a stage begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    /// Nothing.
    Scratch,
    /// Another stage.
    Stage(usize),
    /// An image.
    Image(ImageName),
}

/// An image as the Dockerfile names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ImageName {
    pub(crate) reference: String,
    /// What `FROM --platform` says.
    pub(crate) platform: Option<String>,
}

impl ImageName {
    fn plain(reference: &str) -> Self {
        Self { reference: reference.to_owned(), platform: None }
    }
}

/// Where COPY takes its files from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Context,
    Stage(usize),
    Image(ImageName),
}

/// What is built.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) named: &'a NamedContexts,
    pub(crate) target: usize,
    /// The stages that the target needs and itself, in the order of the file, with their bases.
    pub(crate) stages: BTreeMap<usize, Base>,
}

impl<'a> Plan<'a> {
    /// The plan for a target: the last stage if none is named.
    pub(crate) fn new(
        dockerfile: &'a Dockerfile,
        named: &'a NamedContexts,
        target: Option<&str>,
        global: &GlobalScope,
    ) -> Result<Self, EngineError> {
        let last = named.stages.checked_sub(1);
        let last = last.ok_or_else(|| EngineError::Wrong("the Dockerfile has no FROM".to_owned()))?;
        let target = match target {
            None | Some("") => last,
            Some(name) => dockerfile.stage_index(name).ok_or_else(|| {
                let names: Vec<String> = dockerfile.stages.iter().map(Stage::label).collect();
                EngineError::Wrong(format!("there is no stage `{name}`; the stages are {}", names.join(", ")))
            })?,
        };
        let mut plan = Self { dockerfile, named, target, stages: BTreeMap::new() };
        plan.add(target, global)?;
        Ok(plan)
    }

    /// Adds a stage and what it needs.
    fn add(&mut self, target: usize, global: &GlobalScope) -> Result<(), EngineError> {
        let mut wanted = vec![target];
        while let Some(index) = wanted.pop() {
            let Some(stage) = self.dockerfile.stages.get(index) else { continue };
            if self.stages.contains_key(&index) {
                continue;
            }
            let base = base(self, stage, global)?;
            if let Base::Stage(other) = base {
                wanted.push(other);
            }
            self.stages.insert(index, base);
            for located in &stage.instructions {
                wanted.extend(self.needed(index, &located.instruction));
            }
        }
        Ok(())
    }

    /// The stages that an instruction of stage `index` copies from or mounts.
    fn needed(&self, index: usize, instruction: &Instruction) -> Vec<usize> {
        let stage = |from: &str| match self.from(index, Some(from)) {
            From::Stage(other) => Some(other),
            From::Context | From::Image(_) => None,
        };
        places(instruction).into_iter().filter_map(stage).collect()
    }

    /// What `COPY --from` in stage `index` means.
    pub(crate) fn from(&self, index: usize, from: Option<&str>) -> From {
        match from {
            None => From::Context,
            Some(name) => match (self.named.find(name), self.dockerfile.stage_before(index, name)) {
                (Some(Named::Stage(stage)), _) | (None, Some(stage)) => From::Stage(stage),
                (Some(Named::Image(image)), _) => From::Image(ImageName::plain(image)),
                (None, None) => From::Image(ImageName::plain(name)),
            },
        }
    }

    /// Adds the triggers of the bases that are known; `on_build` says what an image brings.
    pub(crate) fn add_base_triggers(
        &mut self,
        on_build: &dyn Fn(&ImageName) -> Vec<String>,
        global: &GlobalScope,
        triggers: &mut BTreeMap<usize, Vec<Located>>,
    ) -> Result<(), EngineError> {
        for (index, base) in self.stages.clone() {
            let texts = match &base {
                Base::Scratch => Vec::new(),
                Base::Image(name) => on_build(name),
                Base::Stage(other) => {
                    self.dockerfile.stages.get(*other).map(onbuild_texts).unwrap_or_default()
                }
            };
            if texts.is_empty() || triggers.contains_key(&index) {
                continue;
            }
            let parsed: Vec<Located> =
                texts.iter().map(|text| parse_trigger(text, "ONBUILD")).collect::<Result<_, _>>()?;
            self.add_triggers(index, &parsed, global)?;
            triggers.insert(index, parsed);
        }
        Ok(())
    }

    /// Adds what ONBUILD triggers of a stage's base need.
    fn add_triggers(
        &mut self,
        index: usize,
        triggers: &[Located],
        global: &GlobalScope,
    ) -> Result<(), EngineError> {
        let needed: BTreeSet<usize> =
            triggers.iter().flat_map(|located| self.needed(index, &located.instruction)).collect();
        needed.into_iter().try_for_each(|stage| self.add(stage, global))
    }

    /// The stages that must be finished before a stage begins.
    pub(crate) fn needs(&self, index: usize, triggers: &BTreeMap<usize, Vec<Located>>) -> BTreeSet<usize> {
        let own = self.dockerfile.stages.get(index).map_or(&[][..], |stage| &stage.instructions);
        let triggered = triggers.get(&index).map_or(&[][..], Vec::as_slice);
        let copied = own.iter().chain(triggered).flat_map(|located| self.needed(index, &located.instruction));
        let base = self.stages.get(&index).and_then(|base| match base {
            Base::Stage(other) => Some(*other),
            _ => None,
        });
        copied.chain(base).collect()
    }

    /// The stages whose layers are the image's: the target, what it begins with, and so on.
    pub(crate) fn in_image(&self) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([self.target]);
        let mut index = self.target;
        while let Some(Base::Stage(other)) = self.stages.get(&index) {
            found.insert(*other);
            index = *other;
        }
        found
    }

    /// The images that stages begin with or copy from, each once, with the first line that names it.
    pub(crate) fn images(&self, triggers: &BTreeMap<usize, Vec<Located>>) -> BTreeMap<ImageName, usize> {
        let mut images = BTreeMap::new();
        for (index, base) in &self.stages {
            let Some(stage) = self.dockerfile.stages.get(*index) else { continue };
            if let Base::Image(name) = base {
                images.entry(name.clone()).or_insert(stage.span.start.line);
            }
            let own = stage.instructions.iter().map(|located| (located, located.span.start.line));
            let triggered =
                triggers.get(index).into_iter().flatten().map(|located| (located, stage.span.start.line));
            for (located, line) in own.chain(triggered) {
                for from in places(&located.instruction) {
                    match self.from(*index, Some(from)) {
                        From::Image(name) if name.reference != "scratch" => {
                            images.entry(name).or_insert(line);
                        }
                        From::Image(_) | From::Stage(_) | From::Context => {}
                    }
                }
            }
        }
        images
    }
}

/// What an instruction names after `from`.
fn places(instruction: &Instruction) -> Vec<&str> {
    match instruction {
        Instruction::Copy(copy) => copy.from.as_deref().into_iter().collect(),
        Instruction::Run(run) => run.mounts.iter().filter_map(MountSpec::from).collect(),
        _ => Vec::new(),
    }
}

fn onbuild_texts(stage: &Stage) -> Vec<String> {
    let text = |located: &Located| match &located.instruction {
        Instruction::Onbuild(onbuild) => Some(onbuild.text.clone()),
        _ => None,
    };
    stage.instructions.iter().filter_map(text).collect()
}

fn base(plan: &Plan<'_>, stage: &Stage, global: &GlobalScope) -> Result<Base, EngineError> {
    let dockerfile = plan.dockerfile;
    let lookup = |name: &str| global.lookup(name);
    let expander = Expander::new(dockerfile.escape, &lookup);
    let name = expander.word(&stage.base)?;
    if name.is_empty() {
        return Err(EngineError::Wrong(format!("`FROM {}` expands to nothing", stage.base)));
    }
    let platform = stage.platform.as_deref().map(|text| expander.word(text)).transpose()?;
    let is_made = plan.named.directory(stage.index).is_some();
    let name = match plan.named.find(&name) {
        Some(Named::Stage(index)) if !is_made => return Ok(Base::Stage(index)),
        Some(Named::Image(image)) if !is_made => image.to_owned(),
        _ => name,
    };
    if let Some(other) = dockerfile.stage_before(stage.index, &name) {
        // Numbers name stages in COPY --from only.
        if name.parse::<usize>().is_err() {
            return Ok(Base::Stage(other));
        }
    }
    Ok(if name == "scratch" {
        Base::Scratch
    } else {
        Base::Image(ImageName { reference: name, platform: platform.filter(|platform| !platform.is_empty()) })
    })
}

/// Whether an instruction is a step of its own, with a number and a time.
pub(crate) const fn is_step(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::Run(_) | Instruction::Copy(_) | Instruction::Add(_) | Instruction::Workdir(_)
    )
}
