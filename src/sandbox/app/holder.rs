//! The holder: one loop that owns an app process, its log and its socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::inner::{Answer, BODY, Request};
use super::log::{LogWriter, Stream};
use super::outputs::Outputs;
use super::{
    AppSpec, AppState, AppStatus, ControlAnswer, ControlRequest, LONGEST_BACKOFF, Restart, SHUTDOWN_GRACE,
    backoff,
};
use crate::sandbox::error::Doing;
use crate::sandbox::{Channel, NetworkMode, Outcome, Received, RootSpec, SandboxError, Worker, WorkerSpec};

/// A client that has connected says what it wants at once.
const REQUEST_WITHIN: Duration = Duration::from_secs(2);
/// How often the uplink is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Holds the app process until it is told to stop.
pub(super) fn run(spec: AppSpec, listener: &UnixListener) {
    let log = match LogWriter::open(&spec.directory, spec.log_max_bytes) {
        Ok(log) => log,
        Err(error) => {
            tracing::error!(%error, "the log of an app process cannot be written");
            return;
        }
    };
    let mut holder = Holder {
        spec,
        log,
        worker: None,
        outputs: Outputs::default(),
        state: AppState::Starting,
        phase: Phase::Waiting { until: Instant::now() },
        restarts: 0,
        in_a_row: 0,
        started: None,
        unlimited: None,
        stoppers: Vec::new(),
        ended: None,
        dirty: false,
    };
    if let Err(error) = holder.hold(listener) {
        holder.say(format!("the holder failed: {}", error.chain()));
    }
    holder.end();
}

struct Holder {
    spec: AppSpec,
    log: LogWriter,
    worker: Option<Worker>,
    outputs: Outputs,
    state: AppState,
    phase: Phase,
    restarts: u32,
    /// Restarts since it last ran for long.
    in_a_row: u32,
    started: Option<(Instant, Timestamp)>,
    unlimited: Option<String>,
    /// Clients who wait for the end.
    stoppers: Vec<Channel>,
    /// An end that was told while another answer was waited for.
    ended: Option<Result<Outcome, String>>,
    /// Whether there may be something in the scratch directory.
    dirty: bool,
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The time to start.
    Waiting { until: Instant },
    /// The app's end.
    Running,
    /// The app's end, or the end of the grace.
    Stopping { deadline: Instant, killed: bool },
    /// To be told to stop: nothing runs, nothing will.
    Idle,
    /// Nothing: it is over.
    Over,
}

impl Holder {
    fn hold(&mut self, listener: &UnixListener) -> Result<(), SandboxError> {
        let mut asked_to_end = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            asked_to_end.add(signal);
        }
        asked_to_end.thread_block().doing(|| "block signals".to_owned())?;
        let signals = SignalFd::with_flags(&asked_to_end, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .doing(|| "watch for signals".to_owned())?;
        while !matches!(self.phase, Phase::Over) {
            self.do_what_is_due();
            if self.ended.is_none() {
                let ready = self.wait(listener, &signals)?;
                self.outputs.read(&ready.outputs, &mut self.log);
                if ready.worker {
                    self.hear_worker();
                }
                if ready.signal && matches!(signals.read_signal(), Ok(Some(_))) {
                    self.stop(SHUTDOWN_GRACE);
                }
                if ready.client {
                    self.serve_client(listener);
                }
            }
            if let Some(outcome) = self.ended.take() {
                self.app_ended(outcome);
            }
        }
        Ok(())
    }

    fn do_what_is_due(&mut self) {
        match self.phase {
            Phase::Waiting { until } if until <= Instant::now() => self.start(),
            Phase::Stopping { deadline, killed: false } if deadline <= Instant::now() => {
                self.say("the app did not end in time and is killed".to_owned());
                self.phase = Phase::Stopping { deadline: Instant::now() + REQUEST_WITHIN, killed: true };
                self.ask_or_lose(&Request::Kill);
            }
            // The kernel could not end it through the worker; then the worker goes.
            Phase::Stopping { deadline, killed: true } if deadline <= Instant::now() => {
                self.lose_worker("is stuck");
            }
            _ => {}
        }
        if matches!(self.phase, Phase::Running) && self.worker.as_mut().is_some_and(Worker::uplink_has_ended)
        {
            self.lose_worker("has lost its network");
        }
    }

    fn start(&mut self) {
        self.state = AppState::Starting;
        match self.try_to_start() {
            Ok(()) => {
                self.started = Some((Instant::now(), Timestamp::now()));
                self.state = AppState::Running;
                self.phase = Phase::Running;
            }
            Err(error) => {
                self.worker = None;
                self.outputs = Outputs::default();
                self.app_ended(Err(error.chain()));
            }
        }
    }

    fn try_to_start(&mut self) -> Result<(), SandboxError> {
        if self.worker.is_none() {
            let worker = Worker::start(&self.worker_spec(NetworkMode::Isolated))?;
            self.unlimited = worker.limits_in_force().err().map(ToString::to_string);
            self.worker = Some(worker);
        }
        let (outputs, stdio) = Outputs::open()?;
        let scratch = &self.spec.scratch;
        let request = Request::Start {
            root: RootSpec {
                lowers: self.spec.lowers.clone(),
                upper: scratch.join("upper"),
                work: scratch.join("work"),
                mount_point: scratch.join("root"),
            },
            scratch: scratch.clone(),
            step: Box::new(self.spec.step.clone()),
        };
        let fds = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        self.dirty = true;
        self.ask(&request, &fds)?;
        self.outputs = outputs;
        Ok(())
    }

    /// Asks the worker; its end or failure is an error.
    fn ask(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), SandboxError> {
        let nothing = || SandboxError::Reported("the app does not run".to_owned());
        let worker = self.worker.as_mut().ok_or_else(nothing)?;
        let mut received = worker.call::<_, Answer>(request, fds)?;
        if let Answer::Ended(outcome) = received.message {
            // It ended just before it was asked.
            self.ended = Some(outcome);
            received = worker.channel().receive()?.ok_or_else(nothing)?;
        }
        match received.message {
            Answer::Failed(why) => Err(SandboxError::Reported(why)),
            answer => Ok((answer, received.fds)),
        }
    }

    fn ask_or_lose(&mut self, request: &Request) {
        match self.ask(request, &[]) {
            // That it does not run is known in a moment.
            Ok(_) | Err(SandboxError::Reported(_)) => {}
            Err(error) => self.lose_worker(&format!("failed: {}", error.chain())),
        }
    }

    fn lose_worker(&mut self, why: &str) {
        self.say(format!("the sandbox {why}"));
        self.worker = None;
        self.ended = Some(Ok(Outcome::Signalled(Signal::SIGKILL as i32)));
    }

    fn hear_worker(&mut self) {
        let Some(worker) = self.worker.as_mut() else {
            return;
        };
        match worker.channel().receive::<Answer>() {
            Ok(Some(Received { message: Answer::Ended(outcome), .. })) => self.ended = Some(outcome),
            Ok(Some(Received { message, .. })) => self.lose_worker(&format!("said {message:?} unasked")),
            Ok(None) => self.lose_worker("ended"),
            Err(error) => self.lose_worker(&format!("failed: {error}")),
        }
    }

    fn app_ended(&mut self, how: Result<Outcome, String>) {
        self.outputs.drain(&mut self.log);
        let text = match &how {
            Ok(outcome) => describe(*outcome),
            Err(why) => format!("could not be started: {why}"),
        };
        if let Phase::Stopping { killed, .. } = self.phase {
            let is_wanted = how.is_ok_and(|outcome| is_stop(outcome, self.spec.stop_signal, killed));
            self.say(if is_wanted { "stopped".to_owned() } else { format!("stopped: {text}") });
            self.phase = Phase::Over;
            return;
        }
        match (self.spec.restart, how) {
            (Restart::Never, how) => {
                self.say(text);
                self.state = match how {
                    Ok(last) => AppState::Ended { last },
                    Err(why) => AppState::Failed { why },
                };
                self.phase = Phase::Idle;
                if let Err(error) = self.clean() {
                    self.say(format!("what the app wrote could not be removed: {}", error.chain()));
                }
            }
            (Restart::WithBackoff, how) => {
                if self.started.take().is_some_and(|(at, _)| at.elapsed() >= LONGEST_BACKOFF) {
                    self.in_a_row = 0;
                }
                let wait = backoff(self.in_a_row);
                self.in_a_row += 1;
                self.restarts += 1;
                self.say(format!("{text}; it is started again in {} s", wait.as_secs()));
                let until = Timestamp::now() + wait;
                let (last, why) = (how.as_ref().ok().copied(), how.err());
                self.state = AppState::BackingOff { last, why, until };
                self.phase = Phase::Waiting { until: Instant::now() + wait };
            }
        }
    }

    fn serve_client(&mut self, listener: &UnixListener) {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        if let Err(error) = self.answer_client(stream) {
            tracing::debug!(%error, "a client of an app's holder went away");
        }
    }

    fn answer_client(&mut self, stream: UnixStream) -> Result<(), crate::sandbox::ProtocolError> {
        stream.set_read_timeout(Some(REQUEST_WITHIN))?;
        stream.set_write_timeout(Some(REQUEST_WITHIN))?;
        let mut client = Channel::from(stream);
        let Some(Received { message, .. }) = client.receive()? else {
            return Ok(());
        };
        let request = match message {
            ControlRequest::Status => return client.send(&ControlAnswer::Status(self.status()), &[]),
            ControlRequest::Stop { grace } => {
                self.stoppers.push(client);
                self.stop(grace);
                return Ok(());
            }
            ControlRequest::Connect { port } => Request::Connect { port },
            ControlRequest::Listening => Request::Listening,
            ControlRequest::Signal { signal } => Request::Signal { signal },
        };
        match self.ask(&request, &[]) {
            Ok((answer, fds)) => {
                let answer = match answer {
                    Answer::Connecting => ControlAnswer::Connecting,
                    Answer::Refused => ControlAnswer::Refused,
                    Answer::Listening(listeners) => ControlAnswer::Listening(listeners),
                    Answer::Done => ControlAnswer::Done,
                    other => ControlAnswer::Failed(format!("unexpected: {other:?}")),
                };
                let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                client.send(&answer, &fds)
            }
            // An app that is between two starts listens nowhere.
            Err(_) if self.worker.is_none() && matches!(request, Request::Connect { .. }) => {
                client.send(&ControlAnswer::Refused, &[])
            }
            Err(SandboxError::Reported(why)) => client.send(&ControlAnswer::Failed(why), &[]),
            Err(error) => {
                let why = error.chain();
                self.lose_worker(&format!("failed: {why}"));
                client.send(&ControlAnswer::Failed(why), &[])
            }
        }
    }

    fn stop(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        match self.phase {
            Phase::Running => {
                self.state = AppState::Stopping;
                self.phase = Phase::Stopping { deadline, killed: false };
                self.ask_or_lose(&Request::Stop { signal: self.spec.stop_signal });
            }
            Phase::Stopping { deadline: earlier, killed: false } => {
                self.phase = Phase::Stopping { deadline: earlier.min(deadline), killed: false };
            }
            Phase::Stopping { .. } => {}
            Phase::Waiting { .. } | Phase::Idle | Phase::Over => self.phase = Phase::Over,
        }
    }

    /// Cleans up and answers who waits for the end. Only the sandbox's root can remove what the app wrote.
    fn end(&mut self) {
        if let Err(error) = self.clean() {
            self.say(format!("what the app wrote could not be removed: {}", error.chain()));
        }
        for mut client in self.stoppers.drain(..) {
            if let Err(error) = client.send(&ControlAnswer::Done, &[]) {
                tracing::debug!(%error, "a client of an app's holder went away");
            }
        }
    }

    fn clean(&mut self) -> Result<(), SandboxError> {
        if !self.dirty {
            return Ok(());
        }
        if self.worker.is_none() {
            self.worker = Some(Worker::start(&self.worker_spec(NetworkMode::Host))?);
        }
        self.dirty = false;
        self.ask(&Request::Clean { scratch: self.spec.scratch.clone() }, &[])?;
        self.worker.take().map_or(Ok(()), Worker::close)
    }

    fn worker_spec(&self, network: NetworkMode) -> WorkerSpec {
        WorkerSpec {
            isolation: crate::sandbox::Isolation::Userns,
            executable: WorkerSpec::own_executable(),
            body: BODY.to_owned(),
            ids: self.spec.ids.clone(),
            directory: self.spec.layers.clone(),
            network,
            limits: self.spec.limits.clone(),
            environment: Vec::new(),
        }
    }

    fn status(&self) -> AppStatus {
        AppStatus {
            state: self.state.clone(),
            restarts: self.restarts,
            started_at: self.started.map(|(_, at)| at),
            holder: std::process::id(),
            unlimited: self.unlimited.clone(),
        }
    }

    fn say(&mut self, text: String) {
        self.log.append(Stream::Holder, &[text]);
    }

    fn wait(&self, listener: &UnixListener, signals: &SignalFd) -> Result<Ready, SandboxError> {
        let mut fds = vec![
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        let worker = self.worker.as_ref().map(Worker::as_fd);
        fds.extend(worker.map(|worker| PollFd::new(worker, PollFlags::POLLIN)));
        let outputs_from = fds.len();
        fds.extend(self.outputs.fds().map(|output| PollFd::new(output, PollFlags::POLLIN)));
        let timeout = match self.phase {
            Phase::Waiting { until: deadline } | Phase::Stopping { deadline, .. } => {
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1)
            }
            Phase::Running | Phase::Idle | Phase::Over => CHECK_EVERY,
        };
        match nix::poll::poll(&mut fds, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).doing(|| "wait for the app".to_owned()),
        }
        let happened = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
        Ok(Ready {
            client: fds.first().is_some_and(happened),
            signal: fds.get(1).is_some_and(happened),
            worker: worker.is_some() && fds.get(2).is_some_and(happened),
            outputs: fds.iter().skip(outputs_from).map(happened).collect(),
        })
    }
}

struct Ready {
    client: bool,
    signal: bool,
    worker: bool,
    outputs: Vec<bool>,
}

/// Whether an app that was told to stop ended as one that stops: nothing else is to be said of it.
fn is_stop(outcome: Outcome, stop_signal: i32, killed: bool) -> bool {
    match outcome {
        // As shells say that a signal ended their command.
        Outcome::Exited(status) => status == 0 || status == 128 + stop_signal,
        Outcome::Signalled(signal) => signal == stop_signal || (killed && signal == Signal::SIGKILL as i32),
        Outcome::TimedOut | Outcome::Cancelled => false,
    }
}

fn describe(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(127) => "exited with status 127: the command was not found".to_owned(),
        Outcome::Exited(126) => "exited with status 126: the command cannot be executed".to_owned(),
        Outcome::Exited(status) => format!("exited with status {status}"),
        Outcome::Signalled(9) => "was killed by signal 9 (out of memory, if nobody sent it)".to_owned(),
        Outcome::Signalled(signal) => format!("was ended by signal {signal}"),
        Outcome::TimedOut => "took too long".to_owned(),
        Outcome::Cancelled => "was cancelled".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_that_ends_as_it_was_told_to_is_not_blamed_for_it() {
        for (outcome, killed, expected) in [
            (Outcome::Exited(0), false, true),
            (Outcome::Exited(143), false, true),
            (Outcome::Signalled(15), false, true),
            (Outcome::Signalled(9), true, true),
            (Outcome::Signalled(9), false, false),
            (Outcome::Exited(1), false, false),
            (Outcome::Signalled(11), true, false),
        ] {
            assert_eq!(is_stop(outcome, 15, killed), expected, "{outcome:?}");
        }
        assert!(is_stop(Outcome::Signalled(3), 3, false) && !is_stop(Outcome::Signalled(15), 3, false));
    }
}
