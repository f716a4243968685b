//! The steps that touch files: RUN, COPY, ADD and WORKDIR, from instruction to layer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::build::adds::Remote;
use crate::build::capture::{StepRecord, record};
use crate::build::copies::{add_step, copy_step};
use crate::build::driver::CacheUse;
use crate::build::engine::{BegunStep, Engine, millis};
use crate::build::error::{EngineError, ending};
use crate::build::event::{BuildEvent, MAX_LINE_BYTES, StepState, elapsed};
use crate::build::explain::{Facts, Memory};
use crate::build::image::{Layer, LayerBlob};
use crate::build::key::KeyBuilder;
use crate::build::mounts::RunMounts;
use crate::build::plan::Plan;
use crate::build::process::read_lines;
use crate::build::protocol::{CopyRequest, Request, Response, RunEnd, RunRequest};
use crate::build::state::StageState;
use crate::build::trees::Ensured;
use crate::dockerfile::{Expander, Instruction, Located, Network, Run, RunCommand, Security, Stage};
use crate::oci::Digest;

/// How many of RUN's last lines a failure tells.
const LAST_LINES: usize = 20;

/// How long it may take to unpack what is here until that has a line of its own.
const TOLD_MILLIS: u64 = 1000;

/// Where the script of a RUN heredoc is seen.
const SCRIPT_DIRECTORY: &str = "/run/hephy";

/// A step that is known completely: its key and the work that makes its layer.
pub(super) struct Work {
    pub(super) key: Digest,
    /// What its key is made of, for people.
    pub(super) facts: Facts,
    pub(super) action: Action,
    pub(super) created_by: String,
}

pub(super) enum Action {
    /// The command for people, and the request with what it mounts.
    Run(String, Box<RunRequest>, RunMounts),
    Copy(CopyRequest, Option<Vec<Layer>>, Vec<Remote>),
    MakeDirectory {
        path: String,
        user: Option<String>,
    },
}

/// What the cache has for a step.
struct Known {
    /// Its layer, if it makes one.
    layer: Option<Layer>,
    /// When it was run.
    at: Option<Timestamp>,
}

impl Known {
    fn record(&self) -> StepRecord {
        StepRecord { layer: self.layer.as_ref().map(|layer| layer.diff_id), at: self.at }
    }
}

impl Engine {
    /// Applies one instruction.
    pub(super) async fn instruction(
        &mut self,
        plan: &Plan<'_>,
        index: usize,
        label: Option<&str>,
        state: &mut StageState,
        (located, line): (&Located, usize),
    ) -> Result<(), EngineError> {
        let escape = plan.dockerfile.escape;
        let instruction = {
            let lookup = |name: &str| state.scope.lookup(name);
            located.instruction.expand(&Expander::new(escape, &lookup))?
        };
        let global = self.global.clone().ok_or(EngineError::Protocol)?;
        if state.apply(&instruction, &global, escape)? {
            return Ok(());
        }
        let step = self.begin(label, &located.text, line);
        let outcome = self.file_step(plan, index, state, (&instruction, &located.text), &step).await;
        match outcome {
            Ok((cached, why)) => {
                self.end(&step, cached, why);
                Ok(())
            }
            Err(error) => {
                let exit_status = match &error {
                    EngineError::Run { status, .. } => *status,
                    _ => None,
                };
                self.tell(&step, StepState::Failed { millis: self.millis(&step), exit_status });
                Err(error)
            }
        }
    }

    /// Whether the step came from the cache, and what is told of why it did not.
    async fn file_step(
        &mut self,
        plan: &Plan<'_>,
        index: usize,
        state: &mut StageState,
        (instruction, text): (&Instruction, &str),
        step: &BegunStep,
    ) -> Result<(bool, Option<String>), EngineError> {
        let work = match instruction {
            Instruction::Run(run) => self.run_work(plan, index, state, run).await?,
            Instruction::Workdir(path) => self.directory_work(state, path)?,
            Instruction::Copy(copy) => self.copy_work(state, &copy_step(plan, index, copy), text).await?,
            Instruction::Add(add) => self.copy_work(state, &add_step(add), text).await?,
            _ => return Err(EngineError::Protocol),
        };
        let Some(mut work) = work else { return Ok((true, None)) };
        let facts = std::mem::take(&mut work.facts).of(text);
        let cached = self.perform(state, work, step).await?;
        let why = if cached { None } else { self.why(plan, index, &facts) };
        self.memory.add(facts);
        Ok((cached, why))
    }

    /// The beginning of every key: what the step stands upon.
    pub(super) fn key(&self, kind: &str, below: &[Layer]) -> KeyBuilder {
        let mut key = KeyBuilder::new(kind);
        key.text(&self.options.platform.to_string());
        key.list(below.iter().map(|layer| layer.diff_id.to_string()));
        if self.options.reproducible {
            key.optional(self.options.epoch.map(|epoch| epoch.to_string()).as_deref());
        }
        key
    }

    async fn run_work(
        &self,
        plan: &Plan<'_>,
        index: usize,
        state: &StageState,
        run: &Run,
    ) -> Result<Option<Work>, EngineError> {
        self.permit(run)?;
        let mut mounts = self.plan_mounts(plan, index, state, run).await?;
        let (argv, script) = match &run.command {
            RunCommand::Shell(text) => {
                let mut argv = state.shell();
                argv.push(text.clone());
                (argv, None)
            }
            RunCommand::Exec(words) => (words.clone(), None),
            RunCommand::Script { name, content } => {
                (vec![format!("{SCRIPT_DIRECTORY}/{name}")], Some(content.clone()))
            }
        };
        if argv.first().is_none_or(String::is_empty) {
            return Err(EngineError::Wrong("RUN has no command".to_owned()));
        }
        let (offline, privileged) = (run.network == Network::None, run.security == Security::Insecure);
        let user = state.config.config.user.clone();
        let directory = state.working_directory();
        let mut environment = state.environment();
        let mut key = self.key("run", &state.layers);
        key.list(argv.iter()).optional(script.as_deref());
        key.list(environment.iter().map(|(name, value)| format!("{name}={value}")));
        key.text(&directory).optional(user.as_deref()).number(u64::from(offline));
        if privileged {
            key.text("insecure");
        }
        mounts.add_to(&mut key);
        let mut facts = Facts::new(state.layers.iter().map(|layer| &layer.diff_id));
        facts.see("the command", &format!("{argv:?} {script:?}")).see("the working directory", &directory);
        facts.see("the user", user.as_deref().unwrap_or_default()).see("the network", &offline.to_string());
        facts.see_variables(environment.iter());
        mounts.tell(&mut facts);
        for (name, value) in self.global.iter().flat_map(|global| global.proxies()) {
            environment.entry(name).or_insert(value);
        }
        let arguments = state.scope.declared_args();
        let mut created_by = "RUN ".to_owned();
        if !arguments.is_empty() {
            created_by.push_str(&format_arguments(&arguments));
        }
        created_by.push_str(&script.clone().unwrap_or_else(|| argv.join(" ")));
        let command = match &run.command {
            RunCommand::Shell(text) => text.clone(),
            RunCommand::Exec(_) | RunCommand::Script { .. } => argv.join(" "),
        };
        let limit_millis = u64::try_from(self.options.limits.time.as_millis()).unwrap_or(u64::MAX);
        let lowers = diff_ids(&state.layers);
        let request = RunRequest {
            lowers,
            argv,
            script,
            environment,
            directory,
            user,
            offline,
            privileged,
            mounts: Vec::new(),
            secrets: BTreeMap::new(),
            trusted: self.options.mounts.ca_bundle.clone(),
            limit_millis,
        };
        let action = Action::Run(command, Box::new(request), mounts);
        Ok(Some(Work { key: key.finish(), facts, action, created_by }))
    }

    fn directory_work(&self, state: &mut StageState, path: &str) -> Result<Option<Work>, EngineError> {
        let path = state.enter(path)?;
        let created_by = format!("WORKDIR {path}");
        if path == "/" {
            state.record(created_by, None);
            return Ok(None);
        }
        let user = state.config.config.user.clone();
        let mut key = self.key("directory", &state.layers);
        key.text(&path).optional(user.as_deref());
        let mut facts = Facts::new(state.layers.iter().map(|layer| &layer.diff_id));
        facts.see("the directory", &path).see("the user", user.as_deref().unwrap_or_default());
        Ok(Some(Work { key: key.finish(), facts, action: Action::MakeDirectory { path, user }, created_by }))
    }

    /// What the cache has for a key, if the layer's blob is still there.
    ///
    /// A layer that only other stages see needs no blob. One of the image that has none yet gets it from its tree.
    async fn known(&self, below: &[Layer], key: &Digest, is_run: bool) -> Result<Option<Known>, EngineError> {
        if self.options.cache == CacheUse::Ignore {
            return Ok(None);
        }
        match self.known_here(below, key, is_run).await? {
            None => self.known_elsewhere(key, is_run).await,
            Some(known) => {
                self.share(key, &known, is_run);
                Ok(Some(known))
            }
        }
    }

    /// Leaves a step that is known here in the cache repository. One whose blob is being made goes there with it.
    fn share(&self, key: &Digest, known: &Known, is_run: bool) {
        let Some(cache) = self.capture.cache().filter(|cache| cache.wants(is_run)) else { return };
        let Some(at) = cache.birthday(known.at) else { return };
        let layer = match &known.layer {
            None => None,
            Some(Layer { blob: LayerBlob::Stored(compressed), .. }) => Some(compressed.clone()),
            Some(_) => return,
        };
        if let [remote] = &self.capture.remote_keys(&[*key])[..] {
            cache.share(&self.trees.bases.store, remote, layer, at);
        }
    }

    /// What the cache repository has.
    async fn known_elsewhere(&self, key: &Digest, is_run: bool) -> Result<Option<Known>, EngineError> {
        let Some(cache) = self.capture.cache().filter(|cache| cache.wants(is_run)) else { return Ok(None) };
        let [remote] = self.capture.remote_keys(&[*key])[..] else { return Ok(None) };
        let Some(found) = cache.find(&remote).await else { return Ok(None) };
        let layer = found.layer.map(|(diff_id, descriptor)| {
            let blob = LayerBlob::Cached { descriptor, source: cache.source() };
            Layer { diff_id, blob }
        });
        let known = Known { layer, at: Some(found.at) };
        record(&self.trees.bases.store, &[*key], &known.record())?;
        Ok(Some(known))
    }

    async fn known_here(
        &self,
        below: &[Layer],
        key: &Digest,
        is_run: bool,
    ) -> Result<Option<Known>, EngineError> {
        let store = &self.trees.bases.store;
        let record = store.step(key)?.and_then(|bytes| serde_json::from_slice::<StepRecord>(&bytes).ok());
        let (diff_id, at) = match record {
            None => return Ok(None),
            Some(StepRecord { layer: None, at }) => return Ok(Some(Known { layer: None, at })),
            Some(StepRecord { layer: Some(diff_id), at }) => (diff_id, at),
        };
        let known = |blob| Ok(Some(Known { layer: Some(Layer { diff_id, blob }), at }));
        if let Some(compressed) = store.compressed(&diff_id, self.options.compression) {
            return known(LayerBlob::Stored(compressed));
        }
        if !self.trees.has(&diff_id)? {
            return Ok(None);
        }
        if !self.in_image {
            return known(LayerBlob::Tree);
        }
        self.ensure(below).await?;
        let worker = self.trees.worker().await?;
        if self.capture.pack(worker, diff_id, diff_ids(below), (key, is_run, at)).await? {
            return known(LayerBlob::Making);
        }
        Ok(None)
    }

    /// Takes a step from the cache or does it. True: it was known.
    async fn perform(
        &mut self,
        state: &mut StageState,
        work: Work,
        step: &BegunStep,
    ) -> Result<bool, EngineError> {
        let is_linked = matches!(&work.action, Action::Copy(request, ..) if request.lowers.is_empty());
        let below: &[Layer] = if is_linked { &[] } else { &state.layers };
        let is_run = matches!(&work.action, Action::Run(..));
        if let Some(known) = self.known(below, &work.key, is_run).await? {
            state.record(work.created_by, known.layer);
            return Ok(true);
        }
        let mut keys = vec![work.key];
        self.ensure(below).await?;
        if let Some(key) = self.better_key(&work).await? {
            if let Some(known) = self.known(below, &key, is_run).await? {
                record(&self.trees.bases.store, &keys, &known.record())?;
                state.record(work.created_by, known.layer);
                return Ok(true);
            }
            keys.push(key);
        }
        // Only now: what it stands upon was told by itself.
        self.tell(step, StepState::Started);
        let made = match work.action {
            Action::MakeDirectory { path, user } => {
                let lowers = diff_ids(&state.layers);
                self.changed(Request::MakeDirectory { lowers, path, user }, Vec::new()).await?
            }
            Action::Run(command, request, mounts) => {
                self.run_command(command, *request, &mounts, step).await?
            }
            Action::Copy(request, None, remotes) => self.copy_context(request, remotes).await?,
            Action::Copy(request, Some(_), _) => self.changed(Request::Copy(request), Vec::new()).await?,
        };
        let worker = self.trees.worker().await?.clone();
        let (epoch, in_image) = (self.options.epoch, self.in_image);
        let layer = self.capture.layer(&worker, made, epoch, &keys, (in_image, is_run)).await?;
        let blob = if in_image { LayerBlob::Making } else { LayerBlob::Tree };
        state.record(work.created_by, layer.map(|diff_id| Layer { diff_id, blob }));
        Ok(false)
    }

    /// The key of a step by what it takes of other layers, for which these are fetched; none if it takes nothing of them.
    async fn better_key(&self, work: &Work) -> Result<Option<Digest>, EngineError> {
        match &work.action {
            Action::Run(_, _, mounts) => self.mounts_content_key(mounts).await,
            Action::Copy(request, Some(layers), _) => {
                self.ensure(layers).await?;
                self.content_key(request, &work.created_by).await.map(Some)
            }
            Action::Copy(_, None, _) | Action::MakeDirectory { .. } => Ok(None),
        }
    }

    /// What is told of why a step had to be done.
    fn why(&mut self, plan: &Plan<'_>, index: usize, facts: &Facts) -> Option<String> {
        let first = !std::mem::replace(&mut self.memory.missed, true);
        if self.options.cache == CacheUse::Ignore {
            return None;
        }
        let stage = plan.dockerfile.stages.get(index)?;
        let texts: Vec<&str> = stage.instructions.iter().map(|located| located.text.as_str()).collect();
        let told = self.memory.why(facts, &texts).told(first, self.options.explain)?;
        let is_news = self.memory.is_news(&told);
        (is_news || self.options.explain).then_some(told)
    }

    /// Takes up what is known of how a stage was last built. It only explains: one that cannot be read is empty.
    pub(super) fn remember(&mut self, stage: &Stage) {
        let bytes = self.trees.bases.store.step(&self.memory_of(stage)).ok().flatten();
        self.memory = Memory::read(bytes);
    }

    /// Keeps what its steps saw, if one of them had to be done. A disk that is full fails the build where it matters.
    pub(super) fn keep_memory(&self, stage: &Stage) {
        if self.memory.missed
            && let Some(bytes) = self.memory.to_bytes()
        {
            drop(self.trees.bases.store.put_step(&self.memory_of(stage), &bytes));
        }
    }

    /// Names a stage from build to build: by where its image goes, or if that is nowhere by where its files are.
    fn memory_of(&self, stage: &Stage) -> Digest {
        let options = &self.options;
        let mut slot = KeyBuilder::new("memory");
        slot.text(&options.platform.to_string()).text(&stage.label());
        slot.text(&options.dockerfile.display().to_string());
        slot.list(options.destinations.iter().map(|destination| destination.repository.to_string()));
        if options.destinations.is_empty() {
            slot.text(&options.context.display().to_string());
        }
        slot.finish()
    }

    pub(super) async fn ensure(&self, layers: &[Layer]) -> Result<(), EngineError> {
        let events = Arc::clone(&self.events);
        let note = |text: String| events(BuildEvent::Note { text });
        let fetching = |bytes: u64| {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            note(format!("fetching {:.1} MB of the base image", bytes as f64 / 1e6));
        };
        let clock = Instant::now();
        let ensured = self.trees.ensure(layers, &fetching).await?;
        let millis = millis(clock);
        let what = match ensured {
            Ensured::Present => return Ok(()),
            Ensured::Unpacked => "the base image is unpacked",
            Ensured::Fetched => "the base image is fetched and unpacked",
        };
        self.fetching.fetch_add(millis, Ordering::Relaxed);
        if ensured == Ensured::Fetched || millis >= TOLD_MILLIS {
            note(format!("{what:<39} {}", elapsed(millis)));
        }
        Ok(())
    }

    pub(super) async fn changed(
        &self,
        request: Request,
        fds: Vec<std::os::fd::OwnedFd>,
    ) -> Result<crate::build::protocol::Made, EngineError> {
        match self.trees.worker().await?.call(request, fds).await? {
            Response::Changed(made) => Ok(made),
            _ => Err(EngineError::Protocol),
        }
    }

    async fn run_command(
        &mut self,
        command: String,
        mut request: RunRequest,
        mounts: &RunMounts,
        step: &BegunStep,
    ) -> Result<crate::build::protocol::Made, EngineError> {
        let program = request.argv.first().cloned().unwrap_or_default();
        // Of the exec form the words are the command.
        let is_shell = request.argv.join(" ") != command;
        let mut materials = self.provide(mounts, &mut request).await?;
        let left = self.options.limits.time.saturating_sub(self.clock.elapsed());
        request.limit_millis =
            u64::try_from(left.max(Duration::from_millis(1)).as_millis()).unwrap_or(u64::MAX);
        let (events, number, stage) = (Arc::clone(&self.events), step.number, step.stage.clone());
        let last = Arc::new(Mutex::new(VecDeque::with_capacity(LAST_LINES)));
        let kept = Arc::clone(&last);
        let tell = move |line: String| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == LAST_LINES {
                kept.pop_front();
            }
            kept.push_back(line.clone());
            drop(kept);
            events(BuildEvent::Output { step: number, stage: stage.clone(), line });
        };
        let worker = self.trees.worker().await?;
        let reading = move |output| {
            read_lines(output, MAX_LINE_BYTES, tell).map_err(EngineError::io("read what RUN prints"))
        };
        let context = materials.context.take().into_iter().collect();
        let (response, ()) = worker.call_reading_with(Request::Run(request), context, reading).await?;
        drop(materials);
        let Response::Ran { end, made } = response else { return Err(EngineError::Protocol) };
        let millis = self.millis(step);
        let mut out_of_memory = None;
        let (status, end) = match end {
            RunEnd::Exited(0) => return made.ok_or(EngineError::Protocol),
            RunEnd::NoProgram => return Err(EngineError::NoProgram { program, is_shell }),
            RunEnd::Exited(status) => (Some(status), ending(Some(status), None, millis)),
            RunEnd::Signalled(signal) => (Some(128 + signal), ending(None, Some(signal), millis)),
            RunEnd::OutOfMemory { status, limit_bytes } => {
                out_of_memory = Some(limit_bytes);
                (Some(status), ending(Some(status), None, millis))
            }
            RunEnd::TimedOut => return Err(EngineError::TimedOut { limit: self.options.limits.time }),
            RunEnd::Cancelled => return Err(EngineError::Cancelled),
        };
        let last_lines = last.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        Err(EngineError::Run { command, end, status, out_of_memory, last_lines })
    }
}

fn format_arguments(arguments: &[(String, String)]) -> String {
    let words: Vec<String> = arguments.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("|{} {} ", words.len(), words.join(" "))
}

pub(super) fn diff_ids(layers: &[Layer]) -> Vec<Digest> {
    layers.iter().map(|layer| layer.diff_id).collect()
}
