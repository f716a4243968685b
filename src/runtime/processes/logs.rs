//! The lines of an app's instances, merged by time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use tracing::warn;

use super::directory::{Directory, Found, Id};
use crate::model::AppName;
use crate::rollout::{Author, InstanceLine, LogQuery, RuntimeError};
use crate::sandbox::app::log;

const INTERVAL: Duration = Duration::from_millis(200);
const CHUNK: usize = 1000;
/// More than enough to find an app's own last lines among the runtime's.
const MAX_TAIL: usize = 200;

/// The last lines that an instance wrote, for an error.
pub(super) fn last_lines(found: &Found, count: usize) -> Vec<String> {
    let lines = tail(found, MAX_TAIL).into_iter().filter(|line| line.author == Author::App);
    let mut last: VecDeque<String> = lines.map(|line| line.text).collect();
    last.drain(..last.len().saturating_sub(count));
    last.into()
}

/// The last lines that an instance wrote; none where its log cannot be read.
pub(super) fn tail(found: &Found, count: usize) -> Vec<InstanceLine> {
    Reader::default().tail(found, count)
}

/// The lines that `query` asks for, and with `follow` those that come, until the stream is dropped.
pub(super) async fn stream(
    directory: &Directory,
    app: &AppName,
    query: LogQuery,
) -> Result<BoxStream<'static, InstanceLine>, RuntimeError> {
    let mut follower =
        Follower { directory: directory.clone(), app: app.clone(), query, readers: BTreeMap::new() };
    let follow = follower.query.follow;
    let (first, follower) = blocking(app, move || (follower.history(), follower)).await?;
    let history = stream::iter(first?);
    if !follow {
        return Ok(history.boxed());
    }
    let later = stream::unfold(follower, async |mut follower| {
        tokio::time::sleep(INTERVAL).await;
        let app = follower.app.clone();
        match blocking(&app, move || (follower.news(), follower)).await {
            Ok((Ok(lines), follower)) => Some((stream::iter(lines), follower)),
            Ok((Err(error), _)) | Err(error) => {
                warn!(%app, error = &error as &dyn std::error::Error, "cannot follow the log of an app");
                None
            }
        }
    });
    Ok(history.chain(later.flatten()).boxed())
}

async fn blocking<T: Send + 'static>(
    app: &AppName,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RuntimeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|source| RuntimeError::BrokeOff { app: app.clone(), source })
}

/// Reads one log from where it last stopped.
#[derive(Default)]
struct Reader {
    after: u64,
    /// The file's length and time when all of it had been read.
    complete: Option<(u64, SystemTime)>,
}

impl Reader {
    fn next(&mut self, found: &Found, max_lines: usize) -> Vec<InstanceLine> {
        let now = state(&found.path);
        if self.complete.is_some() && self.complete == now {
            return Vec::new();
        }
        // A log that is not there yet, or no more, has no lines.
        let lines = log::read(&found.path, self.after, max_lines).unwrap_or_default();
        self.complete = now.filter(|_| lines.len() < max_lines);
        self.read(found, lines)
    }

    fn tail(&mut self, found: &Found, count: usize) -> Vec<InstanceLine> {
        let lines = log::tail(&found.path, count.max(1)).unwrap_or_default();
        let mut lines = self.read(found, lines);
        lines.drain(..lines.len().saturating_sub(count));
        lines
    }

    fn read(&mut self, found: &Found, lines: Vec<log::LogLine>) -> Vec<InstanceLine> {
        self.after = lines.last().map_or(self.after, |line| line.number);
        let Id { release, instance, .. } = &found.id;
        let of = |line: log::LogLine| InstanceLine {
            at: line.at,
            release: *release,
            instance: instance.clone(),
            author: match line.stream {
                log::Stream::Output | log::Stream::Error => Author::App,
                log::Stream::Holder => Author::Runtime,
            },
            text: line.text,
        };
        lines.into_iter().map(of).collect()
    }
}

fn state(directory: &Path) -> Option<(u64, SystemTime)> {
    let metadata = directory.join("log").metadata().ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// An instance of this name that was made then: the next of the name numbers its lines anew.
type Key = (Id, Option<Timestamp>);

fn key(found: &Found) -> Key {
    (found.id.clone(), found.record().ok().map(|record| record.made_at))
}

struct Follower {
    directory: Directory,
    app: AppName,
    query: LogQuery,
    readers: BTreeMap<Key, Reader>,
}

impl Follower {
    fn instances(&self) -> Result<Vec<Found>, RuntimeError> {
        let asked = |found: &Found| {
            self.query.process_type.as_ref().is_none_or(|asked| *asked == found.id.instance.process_type)
        };
        Ok(self.directory.of(&self.app)?.into_iter().filter(asked).collect())
    }

    /// The last lines of what runs and of what ended.
    fn history(&mut self) -> Result<Vec<InstanceLine>, RuntimeError> {
        let count = self.query.lines;
        let mut lines = Vec::new();
        for found in &self.instances()? {
            lines.extend(self.readers.entry(key(found)).or_default().tail(found, count));
        }
        for found in self.directory.ended(&self.app)? {
            let asked = self.query.process_type.as_ref();
            if asked.is_none_or(|asked| *asked == found.id.instance.process_type) {
                lines.extend(tail(&found, count));
            }
        }
        by_time(&mut lines);
        lines.drain(..lines.len().saturating_sub(count));
        Ok(lines)
    }

    /// What was written since.
    fn news(&mut self) -> Result<Vec<InstanceLine>, RuntimeError> {
        let instances = self.instances()?;
        let mut lines = Vec::new();
        for found in &instances {
            lines.extend(self.readers.entry(key(found)).or_default().next(found, CHUNK));
        }
        let there: BTreeSet<Key> = instances.iter().map(key).collect();
        if self.readers.keys().any(|key| !there.contains(key)) {
            for found in self.directory.ended(&self.app)? {
                if let Some(mut reader) = self.readers.remove(&key(&found)) {
                    lines.extend(reader.next(&found, CHUNK));
                }
            }
            self.readers.retain(|key, _| there.contains(key));
        }
        by_time(&mut lines);
        Ok(lines)
    }
}

fn by_time(lines: &mut [InstanceLine]) {
    lines.sort_by_key(|line| line.at);
}
