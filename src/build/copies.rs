//! COPY and ADD: from instruction to key and request.

use std::sync::Arc;

use crate::build::adds::{self, AddFlags, Remote};
use crate::build::copying;
use crate::build::driver::chain;
use crate::build::engine::Engine;
use crate::build::error::EngineError;
use crate::build::explain::Facts;
use crate::build::image::Layer;
use crate::build::key::KeyBuilder;
use crate::build::plan::{From, Plan};
use crate::build::process::blocking;
use crate::build::protocol::{CopyFrom, CopyRequest, InlineContent, Made, Request, Response, WorkerFailure};
use crate::build::state::{StageState, absolute};
use crate::build::steps::{Action, Work, diff_ids};
use crate::dockerfile::{Add, Copy, Expander, Sources};
use crate::layers::SourceHash;
use crate::oci::Digest;

/// COPY and ADD, with what they have in common.
pub(super) struct CopyStep<'a> {
    name: &'a str,
    sources: &'a Sources,
    from: From,
    chown: Option<&'a String>,
    chmod: Option<&'a String>,
    exclude: &'a [String],
    parents: bool,
    link: bool,
    extract: bool,
    /// Of ADD: what may be elsewhere.
    elsewhere: Option<AddFlags>,
}

impl Engine {
    pub(super) async fn copy_work(
        &mut self,
        state: &StageState,
        copy: &CopyStep<'_>,
        text: &str,
    ) -> Result<Option<Work>, EngineError> {
        let below: &[Layer] = if copy.link { &[] } else { &state.layers };
        let mut key = self.key(if copy.extract { "add" } else { "copy" }, below);
        let destination = destination(&copy.sources.destination, &state.working_directory());
        key.text(&destination);
        key.optional(copy.chown.map(String::as_str)).optional(copy.chmod.map(String::as_str));
        key.list(copy.exclude.iter()).number(u64::from(copy.parents));
        let inline = inline(state, copy.sources)?;
        for file in &inline {
            key.text(&file.name).text(&file.content);
        }
        let (sources, remotes) = match &copy.elsewhere {
            Some(flags) => {
                let (sources, addresses) = adds::split(&copy.sources.paths, flags)?;
                (sources, self.remotes(addresses, flags, &mut key).await?)
            }
            None => {
                adds::refuse(&copy.sources.paths)?;
                (copy.sources.paths.clone(), Vec::new())
            }
        };
        key.list(sources.iter());
        let (from, layers) = match &copy.from {
            From::Context => (CopyFrom::ContextDirectory { ignore: self.context.ignore.clone() }, None),
            From::Stage(other) => {
                let layers = self.states.get(other).ok_or(EngineError::Protocol)?.layers.clone();
                (CopyFrom::Layers(diff_ids(&layers)), Some(layers))
            }
            From::Image(name) => {
                let layers = self.images.get(name).ok_or(EngineError::Protocol)?.layers.clone();
                (CopyFrom::Layers(diff_ids(&layers)), Some(layers))
            }
        };
        let request = CopyRequest {
            lowers: diff_ids(below),
            from,
            sources,
            fetched: Vec::new(),
            inline,
            destination,
            chown: copy.chown.cloned(),
            chmod: copy.chmod.cloned(),
            exclude: copy.exclude.to_vec(),
            parents: copy.parents,
            extract: copy.extract,
            now: self.options.epoch.unwrap_or_else(|| jiff::Timestamp::now().as_second()),
        };
        let created_by =
            format!("{} {}", copy.name, text.split_once(char::is_whitespace).map_or("", |(_, rest)| rest));
        let mut facts = Facts::new(below.iter().map(|layer| &layer.diff_id));
        facts.see("the instruction", &format!("{created_by} {} {:?}", request.destination, request.chown));
        match &layers {
            Some(layers) => {
                let layers: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
                facts.see("what it copies from", &layers.join(" "));
                key.text("layers").list(layers.iter());
            }
            None if request.sources.is_empty() => {}
            None => {
                let hash = self.hash_context(&request).await?;
                key.text("context").digest(hash.digest);
                facts.see_files(Arc::new(hash));
            }
        }
        let action = Action::Copy(request, layers, remotes);
        Ok(Some(Work { key: key.finish(), facts, action, created_by }))
    }

    pub(super) async fn hash_context(&self, request: &CopyRequest) -> Result<SourceHash, EngineError> {
        let (context, request) = (Arc::clone(&self.context), request.clone());
        blocking(move || {
            copying::hash(&request, context.root(), context.known())
                .map_err(|error| EngineError::Worker(WorkerFailure { app: true, chain: chain(&error) }))
        })
        .await
    }

    /// The key of a copy between stages by what is copied, rather than by what the other stage is.
    pub(super) async fn content_key(
        &self,
        request: &CopyRequest,
        created_by: &str,
    ) -> Result<Digest, EngineError> {
        let worker = self.trees.worker().await?;
        let Response::Hashed(hash) = worker.call(Request::Hash(request.clone()), Vec::new()).await? else {
            return Err(EngineError::Protocol);
        };
        let mut key = KeyBuilder::new("copy-content");
        key.text(&self.options.platform.to_string()).list(request.lowers.iter().map(ToString::to_string));
        key.text(&request.destination).optional(request.chown.as_deref()).optional(request.chmod.as_deref());
        key.text(created_by).list(request.sources.iter()).digest(hash);
        for file in &request.inline {
            key.text(&file.name).text(&file.content);
        }
        if self.options.reproducible {
            key.optional(self.options.epoch.map(|epoch| epoch.to_string()).as_deref());
        }
        Ok(key.finish())
    }

    pub(super) async fn copy_context(
        &mut self,
        mut request: CopyRequest,
        remotes: Vec<Remote>,
    ) -> Result<Made, EngineError> {
        let mut fetched = self.fetch(remotes).await?;
        request.fetched = std::mem::take(&mut fetched.kinds);
        let mut fds = std::mem::take(&mut fetched.fds);
        if request.sources.is_empty() || self.context_for_worker().await? {
            if request.sources.is_empty() {
                // Nothing of the context is read; an empty list of layers is an empty place.
                request.from = CopyFrom::Layers(Vec::new());
            } else {
                request.from = CopyFrom::ContextCopy;
            }
            return self.changed(Request::Copy(request), fds).await;
        }
        fds.insert(0, self.context.descriptor()?);
        self.changed(Request::Copy(request), fds).await
    }
}

/// Where a copy goes: absolute, with the trailing slash that says "a directory".
fn destination(text: &str, directory: &str) -> String {
    let path = absolute(text, directory);
    let is_directory = text.ends_with('/') || text == "." || text.ends_with("/.");
    if is_directory && path != "/" { format!("{path}/") } else { path }
}

fn inline(state: &StageState, sources: &Sources) -> Result<Vec<InlineContent>, EngineError> {
    let lookup = |name: &str| state.scope.lookup(name);
    let expander = Expander::new(crate::dockerfile::Escape::default(), &lookup);
    let content = |file: &crate::dockerfile::InlineFile| {
        let content = if file.expand { expander.heredoc(&file.content)? } else { file.content.clone() };
        Ok(InlineContent { name: file.name.clone(), content })
    };
    sources.inline.iter().map(content).collect()
}

pub(super) fn copy_step<'a>(plan: &Plan<'_>, index: usize, copy: &'a Copy) -> CopyStep<'a> {
    CopyStep {
        name: "COPY",
        sources: &copy.sources,
        from: plan.from(index, copy.from.as_deref()),
        chown: copy.chown.as_ref(),
        chmod: copy.chmod.as_ref(),
        exclude: &copy.exclude,
        parents: copy.parents,
        link: is_linked(copy.link, copy.chmod.as_ref()),
        extract: false,
        elsewhere: None,
    }
}

/// Whether `--link` counts: with `--chmod` BuildKit copies as without it.
const fn is_linked(link: bool, chmod: Option<&String>) -> bool {
    link && chmod.is_none()
}

pub(super) fn add_step(add: &Add) -> CopyStep<'_> {
    CopyStep {
        name: "ADD",
        sources: &add.sources,
        from: From::Context,
        chown: add.chown.as_ref(),
        chmod: add.chmod.as_ref(),
        exclude: &add.exclude,
        parents: false,
        link: is_linked(add.link, add.chmod.as_ref()),
        extract: add.unpack != Some(false),
        elsewhere: Some(add.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_absolute_and_keeps_the_slash_that_says_directory() {
        for (text, expected) in [
            ("/a", "/a"),
            ("/a/", "/a/"),
            ("b", "/w/b"),
            ("b/", "/w/b/"),
            (".", "/w/"),
            ("./", "/w/"),
            ("b/.", "/w/b/"),
            ("..", "/"),
            ("/", "/"),
        ] {
            assert_eq!(destination(text, "/w"), expected, "{text}");
        }
    }

    #[test]
    fn a_copy_with_chmod_is_not_linked() {
        let mode = "0755".to_owned();
        assert!(is_linked(true, None) && !is_linked(true, Some(&mode)) && !is_linked(false, None));
    }
}
