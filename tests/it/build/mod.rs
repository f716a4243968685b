//! Whole builds by the engine's own program, from a busybox made here: no network, no registry of others.

pub(crate) mod base;
mod adds;
mod cache;
mod cache_mounts;
mod checks;
mod contexts;
mod copies;
mod driver;
mod elsewhere;
mod explained;
mod failures;
mod hostile;
mod images;
mod kaniko;
mod in_place;
mod mounts;
mod owners;
mod places;
pub(crate) mod pushes;
mod registries;
mod saved_caches;
mod secrets;
mod several;
mod stages;
mod trust;
pub(crate) mod web;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use hephy::build::{BuildEvent, BuildFailure, BuildResult, Outcome, StepFailure, StepState};
use hephy::oci::{ImageConfig, Manifest, RawManifest};
use tempfile::TempDir;

/// The commit time of every build here.
pub(crate) const EPOCH: &str = "1700000000";

/// A place for builds: a context, a layer store, and the results.
pub(crate) struct Place {
    pub(crate) directory: Arc<TempDir>,
}

/// What a build left.
pub(crate) struct Built {
    pub(crate) output: Output,
    pub(crate) result: BuildResult,
    pub(crate) events: Vec<BuildEvent>,
    layout: PathBuf,
    /// Keeps the layout.
    _place: Arc<TempDir>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(directory.path().join("context")).unwrap();
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file of the context.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path("context").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// The engine, told to build this context into this store.
    pub(crate) fn command(&self, dockerfile: &str, arguments: &[&str]) -> Command {
        self.command_with(&format!("oci:{}", base::layout().display()), dockerfile, arguments)
    }

    /// The same with bases from somewhere else.
    pub(crate) fn command_with(&self, mirror: &str, dockerfile: &str, arguments: &[&str]) -> Command {
        self.file("Dockerfile", dockerfile);
        let build = self.path("build");
        drop(fs::remove_dir_all(&build));
        let mut command = Command::new(crate::ordinary_user::executable());
        command.arg("build").arg("--context").arg(self.path("context"));
        command.arg("--data").arg(self.path("data")).arg("--build-directory").arg(build);
        command.arg("--mirror").arg(mirror);
        command.args(["--source-date-epoch", EPOCH]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn build_with(&self, dockerfile: &str, arguments: &[&str]) -> Built {
        let layout = self.path("layout");
        drop(fs::remove_dir_all(&layout));
        let mut command = self.command(dockerfile, arguments);
        let output = command.arg("--oci-layout-path").arg(&layout).output().unwrap();
        self.built(output)
    }

    /// What a build that has just ended here left.
    pub(crate) fn built(&self, output: Output) -> Built {
        let layout = self.path("layout");
        let events = self.events();
        let result = BuildResult::read(&self.path("build/result.json")).unwrap();
        let result =
            result.unwrap_or_else(|| panic!("no result: {}", String::from_utf8_lossy(&output.stderr)));
        Built { output, result, events, layout, _place: Arc::clone(&self.directory) }
    }

    pub(crate) fn build(&self, dockerfile: &str) -> Built {
        self.build_with(dockerfile, &[])
    }

    pub(crate) fn events(&self) -> Vec<BuildEvent> {
        let text = fs::read_to_string(self.path("build/events.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What builds that ended have left half done.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let names = |path: PathBuf| {
            let entries = fs::read_dir(path).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let mut found = names(self.path("data/layers/tmp"));
        found.extend(names(self.path("data/layers/leases")));
        found
    }
}

impl Built {
    /// The result of a build that must have succeeded.
    pub(crate) fn ok(self) -> Self {
        if let Outcome::Failed(failure) = &self.result.outcome {
            panic!("{failure:?}\n{}", self.lines().join("\n"));
        }
        assert!(self.output.status.success(), "{:?}", self.output);
        self
    }

    /// The failure of a build that must have failed by its pusher's fault.
    pub(crate) fn app_failure(&self) -> &StepFailure {
        match &self.result.outcome {
            Outcome::Failed(BuildFailure::App(step)) => {
                assert_eq!(self.output.status.code(), Some(1));
                step
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn digest(&self) -> String {
        match &self.result.outcome {
            Outcome::Built { image, .. } => image.manifest.to_string(),
            Outcome::Failed(failure) => panic!("{failure:?}"),
        }
    }

    /// What RUN printed.
    pub(crate) fn lines(&self) -> Vec<&str> {
        fn line(event: &BuildEvent) -> Option<&str> {
            match event {
                BuildEvent::Output { line, .. } => Some(line),
                _ => None,
            }
        }
        self.events.iter().filter_map(line).collect()
    }

    /// How steps ended: `cached`, `done`, `failed`, or why they were done.
    pub(crate) fn steps(&self) -> Vec<String> {
        let state = |event: &BuildEvent| match event {
            BuildEvent::Step { state, .. } => match state {
                StepState::Started => None,
                StepState::Cached => Some("cached".to_owned()),
                StepState::Done { why: Some(why), .. } if why.starts_with("changed: ") => Some(why.clone()),
                StepState::Done { .. } => Some("done".to_owned()),
                StepState::Failed { .. } => Some("failed".to_owned()),
            },
            _ => None,
        };
        self.events.iter().filter_map(state).collect()
    }

    fn blob(&self, digest: &hephy::oci::Digest) -> Vec<u8> {
        fs::read(self.layout.join("blobs/sha256").join(digest.hex())).unwrap()
    }

    pub(crate) fn manifest(&self) -> Manifest {
        let digest = self.digest().parse().unwrap();
        RawManifest::parse(self.blob(&digest), None).unwrap().as_image().unwrap().clone()
    }

    pub(crate) fn config(&self) -> ImageConfig {
        ImageConfig::parse(&self.blob(&self.manifest().config.digest)).unwrap()
    }

    /// The entries of a layer, from the top: path, uid, gid, mode, and content or link.
    pub(crate) fn layer(&self, from_top: usize) -> Vec<Entry> {
        let layers = self.manifest().layers;
        let blob = self.blob(&layers[layers.len() - 1 - from_top].digest);
        let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(&blob[..]));
        let entry = |entry: std::io::Result<tar::Entry<'_, _>>| {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            let mut content = String::new();
            std::io::Read::read_to_string(&mut entry, &mut content).unwrap_or_default();
            Entry {
                path: entry.path().unwrap().display().to_string(),
                owner: (header.uid().unwrap(), header.gid().unwrap()),
                mode: header.mode().unwrap(),
                mtime: header.mtime().unwrap(),
                content: header.link_name().unwrap().map_or(content, |link| link.display().to_string()),
            }
        };
        tar.entries().unwrap().map(entry).collect()
    }

    pub(crate) fn layer_paths(&self, from_top: usize) -> Vec<String> {
        self.layer(from_top).into_iter().map(|entry| entry.path).collect()
    }
}

/// An entry of a layer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: String,
    pub(crate) owner: (u64, u64),
    pub(crate) mode: u32,
    pub(crate) mtime: u64,
    pub(crate) content: String,
}

/// Whether a program with this word among its arguments runs.
pub(crate) fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    arguments
        .into_iter()
        .any(|line| line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes()))
}

/// Reads a file if it is there.
pub(crate) fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
