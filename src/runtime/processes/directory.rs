//! The directories of instances, whose names say what they are.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{AppName, ReleaseNumber};
use crate::rollout::{InstanceName, RuntimeError};

const RECORD: &str = "instance.json";
const ENDED: &str = "ended";
/// How many ended instances of an app are kept for the sake of their logs.
const KEPT_LOGS: usize = 8;

/// Where all instances have their directories.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: PathBuf,
}

/// Which instance a directory is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) app: AppName,
    pub(super) release: ReleaseNumber,
    pub(super) instance: InstanceName,
    /// A command that is run once, apart from the instances that the app is scaled to.
    pub(super) once: bool,
}

impl Id {
    /// `hello--v4--web--1`; no part can hold `--`.
    pub(super) fn text(&self) -> String {
        let Self { app, release, instance: InstanceName { process_type, number }, once } = self;
        let once = if *once { "--once" } else { "" };
        format!("{app}--{release}--{process_type}--{number}{once}")
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split("--").collect();
        let (parts, once) = match parts.as_slice() {
            [parts @ .., "once"] => (parts, true),
            parts => (parts, false),
        };
        let [app, release, process_type, number] = parts else { return None };
        let instance =
            InstanceName { process_type: process_type.parse().ok()?, number: number.parse().ok()? };
        let id = Self { app: app.parse().ok()?, release: release.parse().ok()?, instance, once };
        (id.text() == text).then_some(id)
    }
}

/// What is noted of an instance beside its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Where a process that answers requests is to listen.
    pub(super) port: u16,
    /// When the directory was made.
    pub(super) made_at: Timestamp,
}

/// An instance's directory that is there.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) id: Id,
    pub(super) path: PathBuf,
}

impl Directory {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory of `id`, whether it is there or not.
    pub(super) fn place(&self, id: &Id) -> Found {
        Found { id: id.clone(), path: self.root.join(id.text()) }
    }

    /// Every instance of every app, in order.
    pub(super) fn all(&self) -> Result<Vec<Found>, RuntimeError> {
        list(&self.root)
    }

    /// Every instance of `app`, in order.
    pub(super) fn of(&self, app: &AppName) -> Result<Vec<Found>, RuntimeError> {
        Ok(self.all()?.into_iter().filter(|found| found.id.app == *app).collect())
    }

    /// What is left of the instances of `app` that ended: their logs.
    pub(super) fn ended(&self, app: &AppName) -> Result<Vec<Found>, RuntimeError> {
        let ended = list(&self.root.join(ENDED))?;
        Ok(ended.into_iter().filter(|found| found.id.app == *app).collect())
    }

    /// Makes the directory of `id` anew, with its record.
    pub(super) fn create(&self, id: &Id, port: u16) -> Result<Found, RuntimeError> {
        let found = self.place(id);
        let record = Record { port, made_at: Timestamp::now() };
        let create = || -> io::Result<()> {
            remove(&found.path)?;
            std::fs::create_dir_all(&found.path)?;
            std::fs::write(found.path.join(RECORD), serde_json::to_vec(&record)?)
        };
        create().map_err(state(&found.path))?;
        Ok(found)
    }

    /// Keeps the log of an instance that ended, and forgets the rest of it and the oldest logs.
    pub(super) fn archive(&self, found: &Found) -> Result<(), RuntimeError> {
        let ended = self.root.join(ENDED);
        let to = ended.join(found.id.text());
        let archive = || -> io::Result<()> {
            std::fs::create_dir_all(&ended)?;
            remove(&to)?;
            std::fs::create_dir(&to)?;
            for entry in std::fs::read_dir(&found.path)? {
                let entry = entry?;
                let name = entry.file_name();
                let keep = name == RECORD || name.as_encoded_bytes().starts_with(b"log");
                if keep && entry.file_type()?.is_file() {
                    std::fs::rename(entry.path(), to.join(name))?;
                }
            }
            remove(&found.path)
        };
        match archive() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(state(&found.path)(error)),
            _ => {}
        }
        let kept = self.ended(&found.id.app)?;
        let surplus = kept.len().saturating_sub(KEPT_LOGS);
        for old in kept.iter().take(surplus) {
            remove(&old.path).map_err(state(&old.path))?;
        }
        Ok(())
    }

    /// Forgets all of `app` that ended.
    pub(super) fn forget(&self, app: &AppName) -> Result<(), RuntimeError> {
        self.ended(app)?.iter().try_for_each(|old| remove(&old.path).map_err(state(&old.path)))
    }
}

impl Found {
    pub(super) fn record(&self) -> Result<Record, RuntimeError> {
        let path = self.path.join(RECORD);
        let read = || Ok(serde_json::from_slice(&std::fs::read(&path)?)?);
        read().map_err(state(&path))
    }

    /// Forgets everything of an instance that ended.
    pub(super) fn remove(&self) -> Result<(), RuntimeError> {
        remove(&self.path).map_err(state(&self.path))
    }
}

fn list(directory: &Path) -> Result<Vec<Found>, RuntimeError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(state(directory)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(state(directory))?;
        if let Some(id) = entry.file_name().to_str().and_then(Id::parse) {
            found.push(Found { id, path: entry.path() });
        }
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn state(path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |source| RuntimeError::State { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        Id::parse(text).unwrap()
    }

    #[test]
    fn the_name_of_a_directory_is_the_instance_and_nothing_else_is_one() {
        for text in ["hello--v4--web--1", "a-b--v10--my-worker--12", "hello--v4--run--1--once"] {
            assert_eq!(id(text).text(), text);
        }
        for text in
            ["hello", "ended", "hello--v4--web", "hello--4--web--1", "hello--v4--web--01", "a--v1--web--1--x"]
        {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }

    #[test]
    fn what_ended_leaves_its_log_and_only_the_newest_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().join("runtime"));
        for number in 1..=KEPT_LOGS + 2 {
            let found = directory.create(&id(&format!("hello--v{number}--web--1")), 5000).unwrap();
            assert_eq!(found.record().unwrap().port, 5000);
            std::fs::write(found.path.join("log"), "line").unwrap();
            std::fs::write(found.path.join("spec.json"), "SECRET").unwrap();
            directory.archive(&found).unwrap();
        }
        assert_eq!(directory.all().unwrap().len(), 0);
        let ended = directory.ended(&"hello".parse().unwrap()).unwrap();
        assert_eq!(ended.len(), KEPT_LOGS);
        assert_eq!(ended[0].id.release, ReleaseNumber(3));
        assert!(ended[0].path.join("log").exists() && !ended[0].path.join("spec.json").exists());
    }
}
