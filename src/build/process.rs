//! The worker process as the engine sees it: started when first needed, ended with the build.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::build::driver::{BuildLimits, NetworkMode};
use crate::build::error::EngineError;
use crate::build::protocol::{Request, Response};
use crate::layers::{LayerStore, Owner, StoreError};
use crate::sandbox::{IdMap, Isolation, Killer, Limits, TIDY, Worker, WorkerSpec};

/// How a worker is started.
#[derive(Clone)]
pub(crate) struct WorkerOptions {
    /// The layer store, which is the worker's directory.
    pub(crate) layers: PathBuf,
    pub(crate) isolation: Isolation,
    pub(crate) ids: IdMap,
    /// The name under which the store keeps trees of this id map.
    pub(crate) map: String,
    pub(crate) network: NetworkMode,
    pub(crate) limits: BuildLimits,
}

/// Opens the layer store that builds and apps of these ids share.
pub fn open_layer_store(layers: &Path, ids: &IdMap) -> Result<LayerStore, StoreError> {
    LayerStore::open(layers, &map_name(ids), store_owner(ids))
}

/// Opens a layer store, for a worker of these ids to make trees in.
pub(crate) fn open_store(layers: &Path, ids: &IdMap) -> Result<(LayerStore, String), EngineError> {
    Ok((open_layer_store(layers, ids)?, map_name(ids)))
}

/// How long a worker has to end what it runs, and to tidy up, before it is killed: of a build that is cancelled.
pub(crate) const CANCELLED: Duration = Duration::from_secs(1);
/// The same of a build that has ended, for which nobody waits.
pub(crate) const ENDED: Duration = TIDY;
/// How long the end of what was killed may take.
const KILLED: Duration = Duration::from_secs(1);

/// The worker of a build.
#[derive(Clone)]
pub(crate) struct WorkerProcess {
    calls: mpsc::UnboundedSender<Call>,
    killer: Killer,
    /// Our end of the conversation, to end it.
    socket: Arc<OwnedFd>,
    /// Says when the worker has ended.
    ended: watch::Receiver<bool>,
}

struct Call {
    request: Request,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<Response, EngineError>>,
}

impl WorkerProcess {
    /// Starts a worker, and makes it open the store.
    ///
    /// It is started and spoken to by a thread of its own: the kernel ends a worker with the thread that started it.
    pub(crate) async fn start(options: &WorkerOptions) -> Result<Self, EngineError> {
        let (started, start) = oneshot::channel();
        let (calls, incoming) = mpsc::unbounded_channel::<Call>();
        let (ending, ended) = watch::channel(false);
        let options = options.clone();
        let serve = move || {
            match start_worker(&options) {
                Ok((worker, socket)) => {
                    if started.send(Ok((worker.killer(), socket))).is_ok() {
                        serve_calls(worker, incoming);
                    }
                }
                // Whoever wanted a worker was cancelled.
                Err(error) => drop(started.send(Err(error))),
            }
            ending.send_replace(true);
        };
        std::thread::Builder::new()
            .name("worker".to_owned())
            .spawn(serve)
            .map_err(EngineError::io("start a thread"))?;
        let (killer, socket) = start.await.map_err(|_| EngineError::Protocol)??;
        Ok(Self { calls, killer, socket: Arc::new(socket), ended })
    }

    /// Ends the worker and everything it runs. It removes what it had begun, if `grace` is enough for that.
    pub(crate) async fn end(&self, grace: Duration) {
        // One that is gone already needs no word from us.
        let _gone = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        let (answer, _) = oneshot::channel();
        drop(self.calls.send(Call { request: Request::Settle, fds: Vec::new(), answer }));
        let mut ended = self.ended.clone();
        if tokio::time::timeout(grace, ended.wait_for(|ended| *ended)).await.is_err() {
            self.killer.kill();
            // What it held is free once it is gone.
            drop(tokio::time::timeout(KILLED, ended.wait_for(|ended| *ended)).await);
        }
    }

    /// Asks, with descriptors that are closed here when the answer is there.
    pub(crate) async fn call(&self, request: Request, fds: Vec<OwnedFd>) -> Result<Response, EngineError> {
        let (answer, response) = oneshot::channel();
        self.calls.send(Call { request, fds, answer }).map_err(|_| EngineError::Protocol)?;
        response.await.map_err(|_| EngineError::Protocol)?
    }

    /// Asks for something that is written to a pipe, which `read` reads meanwhile.
    ///
    /// # Errors
    /// The reader's, if both ends fail: of a reader that stopped the writer only knows that nobody reads.
    pub(crate) async fn call_reading<T: Send + 'static>(
        &self,
        request: Request,
        read: impl FnOnce(io::PipeReader) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<(Response, T), EngineError> {
        self.call_reading_with(request, Vec::new(), read).await
    }

    /// The same with more descriptors, after the pipe.
    pub(crate) async fn call_reading_with<T: Send + 'static>(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        read: impl FnOnce(io::PipeReader) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<(Response, T), EngineError> {
        let (reader, writer) = io::pipe().map_err(EngineError::io("make a pipe"))?;
        let reading = blocking(move || read(reader));
        let fds = std::iter::once(writer.into()).chain(fds).collect();
        let (read, response) = tokio::join!(reading, self.call(request, fds));
        both_ends(read, response).map(|(read, response)| (response, read))
    }

    /// Asks for something that is read from a pipe, which `write` writes to meanwhile.
    ///
    /// # Errors
    /// The writer's, if both ends fail, but where all it knows is that nobody reads: what it did not write the reader misses.
    pub(crate) async fn call_writing(
        &self,
        request: Request,
        write: impl FnOnce(io::PipeWriter) -> Result<(), EngineError> + Send + 'static,
    ) -> Result<Response, EngineError> {
        let (reader, writer) = io::pipe().map_err(EngineError::io("make a pipe"))?;
        let writing = blocking(move || write(writer));
        let (written, response) = tokio::join!(writing, self.call(request, vec![reader.into()]));
        both_ends(written, response).map(|((), response)| response)
    }
}

/// What our end of a pipe and the worker's came to. If both failed, ours says why, unless it only says that the other is gone.
fn both_ends<T>(
    ours: Result<T, EngineError>,
    workers: Result<Response, EngineError>,
) -> Result<(T, Response), EngineError> {
    match (ours, workers) {
        (Ok(ours), Ok(response)) => Ok((ours, response)),
        (Err(ours), Err(workers)) if is_broken_pipe(&ours) => Err(workers),
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Passes calls on until nobody can call any more, or the worker is gone.
fn serve_calls(mut worker: Worker, mut incoming: mpsc::UnboundedReceiver<Call>) {
    while let Some(Call { request, fds, answer }) = incoming.blocking_recv() {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let response = worker.call(&request, &borrowed).map(|received| received.message);
        drop(borrowed);
        drop(fds);
        let is_gone = response.is_err();
        // Whoever asked was cancelled; the answer is nobody's.
        drop(answer.send(response.map_err(EngineError::from).and_then(checked)));
        if is_gone {
            break;
        }
    }
    // How it ends is of no interest when all that was asked has been answered.
    drop(worker.close());
}

fn start_worker(options: &WorkerOptions) -> Result<(Worker, OwnedFd), EngineError> {
    let mut worker = Worker::start(&WorkerSpec {
        executable: WorkerSpec::own_executable(),
        body: "build".to_owned(),
        isolation: options.isolation,
        ids: options.ids.clone(),
        directory: options.layers.clone(),
        network: options.network.into(),
        limits: limits(&options.limits),
        environment: Vec::new(),
    })?;
    let response = worker.call(&Request::Begin { map: options.map.clone() }, &[])?.message;
    let Response::Ready { .. } = checked(response)? else { return Err(EngineError::Protocol) };
    let socket =
        worker.channel().as_fd().try_clone_to_owned().map_err(EngineError::io("copy a descriptor"))?;
    Ok((worker, socket))
}

fn checked(response: Response) -> Result<Response, EngineError> {
    match response {
        Response::Failed(failure) => Err(EngineError::Worker(failure)),
        response => Ok(response),
    }
}

fn limits(limits: &BuildLimits) -> Option<Limits> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few thousand at most, and not negative"
    )]
    let cpu_millis = limits.cpus.map(|cpus| (cpus.max(0.0) * 1000.0) as u64);
    let any = limits.memory_bytes.is_some() || cpu_millis.is_some();
    any.then_some(Limits { memory_bytes: limits.memory_bytes, cpu_millis, processes: None })
}

/// Runs file-heavy work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| EngineError::Io { what: "finish a task".to_owned(), source: error.into() })?
}

/// Reads lines and gives each to `line`, cut at `max_bytes`, as UTF-8.
pub(crate) fn read_lines(
    mut from: impl Read,
    max_bytes: usize,
    mut line: impl FnMut(String),
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut pending: Vec<u8> = Vec::new();
    let mut cut = false;
    let mut emit = |pending: &mut Vec<u8>, cut: &mut bool| {
        let mut text = String::from_utf8_lossy(pending.strip_suffix(b"\r").unwrap_or(pending)).into_owned();
        text.retain(|c| c == '\t' || c == '\u{1b}' || !c.is_control());
        if std::mem::take(cut) {
            text.push_str(" …");
        }
        line(text);
        pending.clear();
    };
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for part in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
            let (part, ended) = part.strip_suffix(b"\n").map_or((part, false), |part| (part, true));
            let room = max_bytes.saturating_sub(pending.len());
            pending.extend_from_slice(&part[..part.len().min(room)]);
            cut |= part.len() > room;
            if ended {
                emit(&mut pending, &mut cut);
            }
        }
    }
    if !pending.is_empty() || cut {
        emit(&mut pending, &mut cut);
    }
    Ok(())
}

/// The name under which trees of an id map are kept.
fn map_name(ids: &IdMap) -> String {
    let text = serde_json::to_vec(ids).unwrap_or_default();
    crate::oci::Digest::of(text).short()
}

/// Who owns the trees, if it is somebody else than us.
fn store_owner(ids: &IdMap) -> Option<Owner> {
    let (uid, gid) = ids.host_root();
    rustix::process::geteuid().is_root().then_some(Owner { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::protocol::WorkerFailure;

    fn lines(input: &[u8], max: usize) -> Vec<String> {
        let mut lines = Vec::new();
        read_lines(input, max, |line| lines.push(line)).unwrap();
        lines
    }

    #[test]
    fn lines_are_cut_and_made_utf8_and_the_last_needs_no_newline() {
        assert_eq!(lines(b"a\r\n\nb\xff\x07c", 10), ["a", "", "b\u{fffd}c"]);
        assert_eq!(lines(b"abcdef\ngh", 3), ["abc …", "gh"]);
    }

    #[test]
    fn of_a_pipes_two_ends_the_one_that_knows_why_is_told() {
        let told = |ours: Option<io::ErrorKind>, workers: Option<&str>| {
            let ours = ours.map_or(Ok(()), |kind| Err(EngineError::io("keep a layer")(kind.into())));
            let workers = workers.map_or(Ok(Response::Done), |text| {
                let chain = vec![text.to_owned(), "broken pipe".to_owned()];
                Err(EngineError::Worker(WorkerFailure { app: false, chain }))
            });
            both_ends(ours, workers).map(|_| ()).map_err(|error| error.to_string())
        };
        let (ours, workers) = (Err("failed to keep a layer".to_owned()), Err("cannot write".to_owned()));
        assert_eq!(told(Some(io::ErrorKind::StorageFull), Some("cannot write")), ours);
        assert_eq!(told(Some(io::ErrorKind::StorageFull), None), ours);
        assert_eq!(told(Some(io::ErrorKind::BrokenPipe), Some("cannot write")), workers);
        assert_eq!(told(Some(io::ErrorKind::BrokenPipe), None), ours);
        assert_eq!(told(None, Some("cannot write")), workers);
        assert_eq!(told(None, None), Ok(()));
    }

    #[test]
    fn a_line_of_ten_megabytes_is_cut_and_what_follows_is_read() {
        let mut input = vec![b'x'; 10 * 1024 * 1024];
        input.extend_from_slice(b"\nnext\n");
        let lines = lines(&input, 8192);
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].chars().count(), lines[1].as_str()), (8194, "next"));
    }
}
