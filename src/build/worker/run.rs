//! RUN: a command in a root, with what its step mounts.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::roots::OpenRoot;
use super::{Body, WorkerError, accounts};
use crate::build::mounts::{self, Laid, Provided};
use crate::build::protocol::{Response, RunEnd, RunRequest};
use crate::layers::{self, LaidFiles, Look};
use crate::sandbox::{Access, MemoryKills, Mount, MountSource, Outcome, Stdio, Step, StepNetwork, UserIds};

/// What the processes of a RUN see as the name of their machine.
const HOSTNAME: &str = "hephy-build";

/// The status of what could not be run because it is not there.
const NOT_FOUND: i32 = 127;

/// The name, in a step's scratch directory, of the script of a RUN heredoc.
const SCRIPT_FILE: &str = "script";

impl Body {
    pub(super) fn run(&mut self, run: &RunRequest, fds: Vec<OwnedFd>) -> Result<Response, WorkerError> {
        let mut fds = fds.into_iter();
        let output = fds.next().ok_or(WorkerError::Protocol)?;
        let mut provided = Provided::default();
        let ran = provided
            .fill(self, &run.mounts, fds.next().as_ref())
            .and_then(|()| self.run_with(run, &provided, output));
        let released = provided.release(self);
        let ran = ran?;
        released.map(|()| ran)
    }

    fn run_with(
        &mut self,
        run: &RunRequest,
        provided: &Provided,
        output: OwnedFd,
    ) -> Result<Response, WorkerError> {
        let staged = self.stage()?;
        let mut open = self.open_root(&staged, &run.lowers, LaidFiles::Copied)?;
        let scratch = staged.work().with_file_name(SCRIPT_FILE);
        let ran = self.run_in(&mut open, run, (provided, &scratch), output);
        match ran {
            Ok(end @ RunEnd::Exited(0)) => {
                let made = self.close_changed(open, Look::Everywhere, staged, run.lowers.clone())?;
                Ok(Response::Ran { end, made: Some(made) })
            }
            Ok(end) => self.close_spoilt(open).map(|()| Response::Ran { end, made: None }),
            Err(error) => self.close_spoilt(open).and(Err(error)),
        }
    }

    fn run_in(
        &mut self,
        open: &mut OpenRoot,
        run: &RunRequest,
        (provided, scratch): (&Provided, &Path),
        output: OwnedFd,
    ) -> Result<RunEnd, WorkerError> {
        let files = layers::Root::open(open.path())?;
        let java_home = run.environment.get("JAVA_HOME").map(String::as_str);
        let lay = |pem| Laid::lay(&files, pem)?.with_java(&files, pem, java_home);
        open.laid = run.trusted.as_deref().map(lay).transpose()?;
        let OpenRoot { root, laid, .. } = open;
        let user = accounts(&files)?.process_user(run.user.as_deref())?;
        files.create_dirs(Path::new(&run.directory), 0o755, None)?;
        let mut environment: Vec<_> = run.environment.clone().into_iter().collect();
        environment.retain(|(name, _)| !run.secrets.contains_key(name));
        environment.extend(run.secrets.iter().map(|(name, value)| (name.clone(), value.reveal().clone())));
        let mut mounts = script(run, scratch)?;
        mounts.extend(provided.mounts().iter().cloned());
        if let Some(laid) = &laid {
            mounts.push(laid.mount());
            environment.extend(mounts::variables(|name| {
                run.environment.contains_key(name) || run.secrets.contains_key(name)
            }));
        }
        if !run.environment.contains_key("HOME") {
            environment.push(("HOME".to_owned(), user.home));
        }
        let step = Step {
            argv: run.argv.clone(),
            environment,
            directory: PathBuf::from(&run.directory),
            user: UserIds { uid: user.uid, gid: user.gid, groups: user.groups },
            hostname: HOSTNAME.to_owned(),
            mounts,
            network: if run.offline { StepNetwork::None } else { StepNetwork::Workers },
            privileged: run.privileged,
            ..Step::default()
        };
        let before = MemoryKills::read();
        let running = self.sandbox.start(root, &step, Stdio::merged(output.as_fd())?)?;
        drop(output);
        // After the start, since a process that starts another has one thread; it ends before this returns.
        let _watch = laid.as_ref().and_then(|laid| laid.watch(&files));
        let limit = Duration::from_millis(run.limit_millis);
        let outcome = running.wait(Some(limit), self.hangup.as_ref().map(AsFd::as_fd))?;
        Ok(match outcome {
            Outcome::Exited(NOT_FOUND) if is_absent(&files, run) => RunEnd::NoProgram,
            Outcome::Exited(0) => RunEnd::Exited(0),
            Outcome::Exited(status) => out_of_memory(before, status).unwrap_or(RunEnd::Exited(status)),
            Outcome::Signalled(signal) => {
                out_of_memory(before, 128 + signal).unwrap_or(RunEnd::Signalled(signal))
            }
            Outcome::TimedOut => RunEnd::TimedOut,
            Outcome::Cancelled => RunEnd::Cancelled,
        })
    }
}

/// The end of a command that failed, if the kernel has killed for memory since `before`.
fn out_of_memory(before: Option<MemoryKills>, status: i32) -> Option<RunEnd> {
    let limit_bytes = MemoryKills::read()?.limit_since(before)?;
    Some(RunEnd::OutOfMemory { status, limit_bytes })
}

/// Whether the program of a RUN is named by its path and is not there, neither in the image nor by a mount.
fn is_absent(files: &layers::Root, run: &RunRequest) -> bool {
    let Some(program) = run.argv.first().map(Path::new).filter(|path| path.is_absolute()) else {
        return false;
    };
    let is_mounted =
        run.script.is_some() || run.mounts.iter().any(|mount| program.starts_with(&mount.target));
    !is_mounted && files.resolve(program).is_err_and(|error| error.is_not_found())
}

/// The script of a RUN heredoc, as a file that the step sees where `argv` says.
fn script(run: &RunRequest, scratch: &Path) -> Result<Vec<Mount>, WorkerError> {
    let (Some(content), Some(target)) = (&run.script, run.argv.first()) else { return Ok(Vec::new()) };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(scratch)
        .map_err(WorkerError::Script)?;
    file.write_all(content.as_bytes()).map_err(WorkerError::Script)?;
    let source = MountSource::Bind { source: scratch.to_owned() };
    Ok(vec![Mount { target: PathBuf::from(target), source, access: Access::ReadOnly }])
}
