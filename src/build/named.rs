//! Contexts with names (`--build-context`): what FROM, COPY and mounts find under a name before stages and images.
//!
//! A directory is a stage of its own that copies it, so that everything that can be done with a stage can be done with
//! it; nothing of it is copied if no stage that is needed asks for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::dockerfile::{Copy, Dockerfile, Instruction, Located, Sources, Stage};
use crate::oci::Reference;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedContext {
    /// A directory of this machine.
    Directory(PathBuf),
    /// An image: its reference, `scratch`, or `oci-layout://DIRECTORY[:TAG][@DIGEST]`.
    Image(String),
}

/// The names of a build, and the stages that were made for them.
#[derive(Debug, Default)]
pub(crate) struct NamedContexts {
    found: BTreeMap<String, Found>,
    directories: BTreeMap<usize, PathBuf>,
    /// How many stages the Dockerfile itself has.
    pub(crate) stages: usize,
}

#[derive(Debug)]
enum Found {
    Stage(usize),
    Image(String),
}

/// What a name stands for in a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named<'a> {
    Stage(usize),
    Image(&'a str),
}

impl NamedContexts {
    /// The Dockerfile with a stage for each directory after its own, and the names. A stage that is called as a context is that
    /// context.
    pub(crate) fn add(dockerfile: &Dockerfile, given: &BTreeMap<String, NamedContext>) -> (Dockerfile, Self) {
        let mut with = dockerfile.clone();
        let mut named = Self { stages: dockerfile.stages.len(), ..Self::default() };
        for (name, context) in given {
            let name = normal(name);
            for stage in with.stages.iter_mut().filter(|stage| stage.name.as_deref() == Some(&name)) {
                stage.base.clone_from(&name);
                stage.platform = None;
                stage.instructions.clear();
            }
            let found = match context {
                NamedContext::Image(image) => Found::Image(image.clone()),
                NamedContext::Directory(directory) => {
                    let index = with.stages.len();
                    with.stages.extend(copying(&name, index, dockerfile));
                    named.directories.insert(index, directory.clone());
                    Found::Stage(index)
                }
            };
            named.found.insert(name, found);
        }
        (with, named)
    }

    /// What a name stands for, if it is one of these.
    pub(crate) fn find(&self, name: &str) -> Option<Named<'_>> {
        if self.found.is_empty() {
            return None;
        }
        self.found.get(&normal(name)).map(|found| match found {
            Found::Stage(index) => Named::Stage(*index),
            Found::Image(image) => Named::Image(image),
        })
    }

    /// The directory that a stage copies, instead of the context.
    pub(crate) fn directory(&self, stage: usize) -> Option<&Path> {
        self.directories.get(&stage).map(PathBuf::as_path)
    }
}

/// `FROM scratch` and `COPY . /`.
fn copying(name: &str, index: usize, dockerfile: &Dockerfile) -> Option<Stage> {
    let span = dockerfile.stages.first()?.span;
    let sources = Sources { paths: vec![".".to_owned()], destination: "/".to_owned(), ..Sources::default() };
    let instruction = Instruction::Copy(Copy { sources, ..Copy::default() });
    Some(Stage {
        index,
        name: Some(format!("context {name}")),
        base: "scratch".to_owned(),
        platform: None,
        span,
        text: format!("FROM scratch AS {name}"),
        instructions: vec![Located { span, text: "COPY . /".to_owned(), instruction }],
    })
}

/// The one spelling of a name: of images without what is the default.
fn normal(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => {
            let name = reference.familiar();
            name.strip_suffix(":latest").map(str::to_owned).unwrap_or(name)
        }
        Err(_) => name.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::parse;

    fn named(text: &str, given: &[(&str, NamedContext)]) -> (Dockerfile, NamedContexts) {
        let dockerfile = parse(text.as_bytes(), "Dockerfile").unwrap();
        let given = given.iter().map(|(name, context)| ((*name).to_owned(), context.clone())).collect();
        NamedContexts::add(&dockerfile, &given)
    }

    #[test]
    fn a_name_is_found_however_its_image_is_written() {
        let image = NamedContext::Image("other:1".to_owned());
        let (_, contexts) = named("FROM a", &[("alpine", image.clone()), ("Src", image)]);
        for name in ["alpine", "alpine:latest", "docker.io/library/alpine", "src", "SRC"] {
            assert_eq!(contexts.find(name), Some(Named::Image("other:1")), "{name}");
        }
        assert_eq!((contexts.find("alpine:3"), contexts.find("a")), (None, None));
    }

    #[test]
    fn a_stage_that_is_called_as_a_context_is_the_context() {
        let directory = NamedContext::Directory(PathBuf::from("/d"));
        let (with, contexts) = named("FROM a AS x\nRUN b\nFROM c", &[("x", directory)]);
        assert_eq!((with.stages.len(), contexts.stages), (3, 2));
        assert_eq!((with.stages[0].base.as_str(), with.stages[0].instructions.len()), ("x", 0));
        assert_eq!(contexts.find("x"), Some(Named::Stage(2)));
        assert_eq!((contexts.directory(2), contexts.directory(0)), (Some(Path::new("/d")), None));
    }
}
