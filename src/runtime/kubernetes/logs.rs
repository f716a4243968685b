//! The lines of an app's pods, merged by time, and those that come, whatever pods come with them.
//!
//! A cluster keeps the lines of a pod as long as the pod.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::io::{AsyncBufRead, AsyncBufReadExt as _};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use kube::api::LogParams;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::debug;

use super::names::CONTAINER;
use super::objects::{ApiError, Objects};
use super::pods::{self, Instance};
use crate::model::{AppName, ProcessType, ReleaseNumber};
use crate::rollout::{Author, InstanceLine, InstanceName, LogQuery, RuntimeError};

/// How often new pods are looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many pods are read at the same moment.
const CONCURRENT: usize = 8;
/// How much of a pod's past is kept, from its end, whatever number of lines it is.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// What is longer is cut.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Lines that nobody has taken yet, before pods are read no further.
const BUFFERED: usize = 1000;

/// The last lines that an instance wrote before it ended, or so far; none where they cannot be read.
pub(super) async fn last_lines(objects: &Objects, instance: &Instance, count: usize) -> Vec<String> {
    let params = params(Some(count));
    let mut lines = read(objects, instance, &params).await.unwrap_or_default();
    if lines.is_empty() && instance.restarts() > 0 {
        let previous = LogParams { previous: true, ..params };
        lines = read(objects, instance, &previous).await.unwrap_or_default();
    }
    lines.into_iter().map(|line| line.text).collect()
}

/// Everything that an instance wrote, up to so many lines from its end.
pub(super) async fn all(
    objects: &Objects,
    instance: &Instance,
    max_lines: usize,
) -> Result<Vec<InstanceLine>, ApiError> {
    read(objects, instance, &params(Some(max_lines))).await
}

/// The lines that `query` asks for, and with `follow` those that come, until the stream is dropped.
pub(super) async fn stream(
    objects: &Objects,
    app: &AppName,
    query: LogQuery,
) -> Result<BoxStream<'static, InstanceLine>, RuntimeError> {
    let instances = asked(pods::list(objects, app).await?, query.process_type.as_ref());
    let (mut lines, after) = history(objects, &instances, query.lines).await;
    lines.sort_by_key(|line| line.at);
    lines.drain(..lines.len().saturating_sub(query.lines));
    let history = stream::iter(lines);
    if !query.follow {
        return Ok(history.boxed());
    }
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let follower = Follower {
        objects: objects.clone(),
        app: app.clone(),
        process_type: query.process_type,
        followed: after
            .into_iter()
            .map(|(uid, after)| (uid, Followed { after, ..Followed::default() }))
            .collect(),
        sender,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(follower.run());
    // The task ends with the stream.
    let later = stream::unfold((receiver, tasks), async |(mut receiver, tasks)| {
        receiver.recv().await.map(|line| (line, (receiver, tasks)))
    });
    Ok(history.chain(later).boxed())
}

fn asked(mut instances: Vec<Instance>, process_type: Option<&ProcessType>) -> Vec<Instance> {
    instances.retain(|instance| process_type.is_none_or(|asked| *asked == instance.name.process_type));
    instances
}

/// The last lines of each pod, those before its last restart included, and when each wrote the last one.
async fn history(
    objects: &Objects,
    instances: &[Instance],
    count: usize,
) -> (Vec<InstanceLine>, Vec<(String, Option<Timestamp>)>) {
    let read = stream::iter(instances.iter().cloned()).map(|instance| async move {
        let params = params(Some(count.max(1)));
        let mut lines = Vec::new();
        if instance.restarts() > 0 {
            let previous = LogParams { previous: true, ..params.clone() };
            lines.extend(read(objects, &instance, &previous).await.unwrap_or_default());
        }
        // A pod that has not started, or is gone meanwhile, has no lines.
        lines.extend(read(objects, &instance, &params).await.unwrap_or_default());
        // Between two runs of a container the one before is also the last one.
        lines.sort_by_key(|line| line.at);
        lines.dedup();
        (instance.uid().to_owned(), lines)
    });
    let all: Vec<(String, Vec<InstanceLine>)> = read.buffered(CONCURRENT).collect().await;
    let after = all.iter().map(|(uid, lines)| (uid.clone(), lines.last().map(|line| line.at))).collect();
    (all.into_iter().flat_map(|(_, lines)| lines).collect(), after)
}

fn params(lines: Option<usize>) -> LogParams {
    LogParams {
        container: Some(CONTAINER.to_owned()),
        timestamps: true,
        tail_lines: lines.and_then(|lines| i64::try_from(lines).ok()),
        ..LogParams::default()
    }
}

async fn read(
    objects: &Objects,
    instance: &Instance,
    params: &LogParams,
) -> Result<Vec<InstanceLine>, ApiError> {
    let reader = objects.log(instance.pod_name(), params).await?;
    let whose = (instance.release, instance.name.clone());
    let kept = last(lines(reader, whose), MAX_BYTES).await;
    kept.map_err(|error| ApiError::Unreachable(Box::new(kube::Error::ReadEvents(error))))
}

/// The last of `lines`, of no more than so many bytes; said where some were left out.
///
/// The API can only be told how much to send from where it begins, which would leave the end out.
async fn last(
    lines: impl futures::Stream<Item = std::io::Result<InstanceLine>>,
    max_bytes: usize,
) -> std::io::Result<Vec<InstanceLine>> {
    let mut lines = std::pin::pin!(lines);
    let (mut kept, mut bytes, mut left_out) = (VecDeque::new(), 0, 0_u64);
    while let Some(line) = lines.try_next().await? {
        bytes += line.text.len();
        kept.push_back(line);
        while bytes > max_bytes
            && let Some(line) = kept.pop_front()
        {
            bytes -= line.text.len();
            left_out += 1;
        }
    }
    if let (Some(first), true) = (kept.front(), left_out > 0) {
        let text = format!("{left_out} lines before this one are left out: too many at once");
        let said = InstanceLine { author: Author::Runtime, text, ..first.clone() };
        kept.push_front(said);
    }
    Ok(kept.into())
}

/// The lines of a pod's log, each with the time before it.
fn lines(
    reader: impl AsyncBufRead + Send + Unpin + 'static,
    (release, instance): (ReleaseNumber, InstanceName),
) -> impl futures::Stream<Item = std::io::Result<InstanceLine>> + Send {
    let texts = stream::try_unfold(reader, async |mut reader| {
        Ok::<_, std::io::Error>(next_line(&mut reader).await?.map(|line| (line, reader)))
    });
    texts.try_filter_map(move |line| {
        let instance = instance.clone();
        let parsed = line.split_once(' ').and_then(|(at, text)| {
            let (at, text) = (at.parse().ok()?, text.to_owned());
            Some(InstanceLine { at, release, instance, author: Author::App, text })
        });
        std::future::ready(Ok(parsed))
    })
}

/// The next line without its end, and without what of it is too long.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let buffer = reader.fill_buf().await?;
        if buffer.is_empty() {
            break;
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = MAX_LINE_BYTES - line.len();
        line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        let used = part.len() + usize::from(end.is_some());
        reader.consume_unpin(used);
        if end.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()));
        }
    }
    Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// What is known of a pod that is followed.
#[derive(Default)]
struct Followed {
    /// The time of the last line that was passed on.
    after: Option<Timestamp>,
    name: Option<InstanceName>,
    /// Of which run of its container the lines have all been read.
    done: Option<u32>,
    busy: Arc<AtomicBool>,
}

/// Passes on what is written, by the pods that are there and those that come.
struct Follower {
    objects: Objects,
    app: AppName,
    process_type: Option<ProcessType>,
    followed: HashMap<String, Followed>,
    sender: mpsc::Sender<InstanceLine>,
}

/// What was read of one run of a pod's container.
struct Read {
    uid: String,
    run: u32,
    after: Option<Timestamp>,
}

impl Follower {
    async fn run(mut self) {
        let mut readers: JoinSet<Read> = JoinSet::new();
        while !self.sender.is_closed() {
            match pods::list(&self.objects, &self.app).await {
                Ok(instances) => {
                    let instances = asked(instances, self.process_type.as_ref());
                    self.followed.retain(|uid, _| instances.iter().any(|found| found.uid() == uid));
                    for instance in instances {
                        self.follow(instance, &mut readers);
                    }
                }
                // The connection to the API server comes back, or whoever follows gives up.
                Err(error) => {
                    debug!(app = %self.app, error = &error as &dyn std::error::Error, "cannot list pods");
                }
            }
            let pause = sleep(INTERVAL);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    () = self.sender.closed() => return,
                    Some(Ok(read)) = readers.join_next() => self.was_read(&read),
                }
            }
        }
    }

    fn was_read(&mut self, read: &Read) {
        if let Some(followed) = self.followed.get_mut(&read.uid) {
            followed.after = followed.after.max(read.after);
            followed.done = Some(read.run);
        }
    }

    /// Reads a pod from where it was last read, unless that is being done, or there is nothing more.
    fn follow(&mut self, instance: Instance, readers: &mut JoinSet<Read>) {
        let (uid, run) = (instance.uid().to_owned(), instance.restarts());
        let has_begun = instance.running_since().is_some() || instance.ended().is_some();
        let followed = self.followed.entry(uid.clone()).or_default();
        // One that runs and is not read lost its connection.
        let is_done = followed.done == Some(run) && instance.running_since().is_none();
        if !has_begun || is_done || followed.busy.swap(true, Ordering::SeqCst) {
            return;
        }
        // A number stays with a pod for as long as it is followed.
        let name = followed.name.get_or_insert_with(|| instance.name.clone()).clone();
        let (busy, after) = (Arc::clone(&followed.busy), followed.after);
        let (objects, sender) = (self.objects.clone(), self.sender.clone());
        readers.spawn(async move {
            let after = pass_on(&objects, &instance, name, after, &sender).await;
            busy.store(false, Ordering::SeqCst);
            Read { uid, run, after }
        });
    }
}

/// Passes on the lines of a pod that are later than `after`, until its container ends; returns the last one's time.
async fn pass_on(
    objects: &Objects,
    instance: &Instance,
    name: InstanceName,
    mut after: Option<Timestamp>,
    sender: &mpsc::Sender<InstanceLine>,
) -> Option<Timestamp> {
    // The API takes whole seconds: what is asked for again is passed over.
    let params = LogParams { follow: true, since_time: after, ..params(None) };
    let Ok(reader) = objects.log(instance.pod_name(), &params).await else {
        return after;
    };
    let mut lines = std::pin::pin!(lines(reader, (instance.release, name)));
    while let Some(Ok(line)) = lines.next().await {
        if after.is_some_and(|after| line.at <= after) {
            continue;
        }
        after = Some(line.at);
        if sender.send(line).await.is_err() {
            break;
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;

    use super::*;

    async fn read(text: &'static [u8]) -> Vec<String> {
        let whose = (ReleaseNumber(2), "web.1".parse().unwrap());
        let lines = lines(Cursor::new(text), whose).try_collect::<Vec<_>>().await.unwrap();
        lines.iter().map(|line| format!("{} {}", line.at, line.text)).collect()
    }

    #[tokio::test]
    async fn lines_have_the_time_that_the_cluster_wrote_before_them() {
        let text = b"2026-01-01T00:00:00.123456789Z hello world\n2026-01-01T00:00:01Z \nno time\n2026-01-01T00:00:02Z end";
        assert_eq!(
            read(text).await,
            [
                "2026-01-01T00:00:00.123456789Z hello world",
                "2026-01-01T00:00:01Z ",
                "2026-01-01T00:00:02Z end"
            ]
        );
    }

    #[tokio::test]
    async fn of_too_much_the_end_is_kept_and_what_is_left_out_is_said() {
        let text: String =
            (0..9).map(|number| format!("2026-01-01T00:00:0{number}Z line {number}\n")).collect();
        let whose = (ReleaseNumber(2), "web.1".parse().unwrap());
        let kept = last(lines(Cursor::new(text), whose), 17).await.unwrap();
        let kept: Vec<_> = kept.iter().map(|line| line.text.as_str()).collect();
        let said = "7 lines before this one are left out: too many at once";
        assert_eq!(kept, [said, "line 7", "line 8"]);
    }

    #[tokio::test]
    async fn a_line_without_end_takes_no_more_than_its_limit() {
        let mut text = b"2026-01-01T00:00:00Z ".to_vec();
        text.resize(10 * MAX_LINE_BYTES, b'x');
        text.extend_from_slice(b"\n2026-01-01T00:00:01Z next\n");
        let lines = read(Box::leak(text.into_boxed_slice())).await;
        assert!(lines[0].len() <= MAX_LINE_BYTES);
        assert_eq!(lines[1], "2026-01-01T00:00:01Z next");
    }
}
