//! An SSH agent for a step: it may list the keys and sign with them, and nothing else.
//!
//! The step connects to a socket of its own, which the worker made; the engine answers there and asks the real agent. So
//! the agent needs to be reached by the engine alone, and whoever runs in the step can neither remove keys nor lock them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::request::AgentSocket;
use crate::build::error::EngineError;
use crate::build::process::WorkerProcess;
use crate::build::protocol::{Request, Response};

/// The longest message, as OpenSSH has it.
const MAX_MESSAGE_BYTES: u32 = 256 * 1024;

/// How many programs of a step speak to an agent at once.
const MAX_CONNECTIONS: usize = 32;

/// `SSH_AGENTC_REQUEST_IDENTITIES` and `SSH_AGENTC_SIGN_REQUEST` of draft-ietf-sshm-ssh-agent.
const ALLOWED: [u8; 2] = [11, 13];

/// `SSH_AGENT_FAILURE`, whole.
const FAILURE: [u8; 5] = [0, 0, 0, 1, 5];

/// Passes on what a step asks, as long as it lives.
pub(super) struct Forwarding {
    task: JoinHandle<()>,
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarding {
    /// Makes a socket in the sandbox and answers there for the agent at `agent`.
    pub(super) async fn start(
        worker: &WorkerProcess,
        agent: &Path,
        socket: AgentSocket,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Self, EngineError> {
        // Told now, since the step would only see that its agent says nothing.
        UnixStream::connect(agent).await.map_err(|error| {
            EngineError::Wrong(format!("no SSH agent answers at `{}`: {error}", agent.display()))
        })?;
        let doing = "make a socket for an agent";
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let ours = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| EngineError::io(doing)(error.into()))?;
        let theirs: OwnedFd = ours.try_clone().map_err(EngineError::io(doing))?;
        match worker.call(Request::Listen { socket, mode, owner }, vec![theirs]).await? {
            Response::Done => {}
            _ => return Err(EngineError::Protocol),
        }
        let listener = UnixListener::from_std(ours.into()).map_err(EngineError::io(doing))?;
        let task = tokio::spawn(serve(listener, agent.to_owned()));
        Ok(Self { task })
    }
}

async fn serve(listener: UnixListener, agent: PathBuf) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Ends what is still connected with the step.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        let agent = agent.clone();
        connections.spawn(async move {
            // Whichever side hung up, there is nobody to tell.
            drop(answer(stream, &agent).await);
            drop(permit);
        });
    }
}

async fn answer(mut step: UnixStream, agent: &Path) -> io::Result<()> {
    let mut agent = UnixStream::connect(agent).await?;
    loop {
        let Some(question) = message(&mut step).await? else { return Ok(()) };
        if !question.first().is_some_and(|kind| ALLOWED.contains(kind)) {
            step.write_all(&FAILURE).await?;
            continue;
        }
        send(&mut agent, &question).await?;
        let Some(reply) = message(&mut agent).await? else { return Ok(()) };
        send(&mut step, &reply).await?;
    }
}

async fn message(from: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let length = match from.read_u32().await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        length => length?,
    };
    if length == 0 || length > MAX_MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body).await?;
    Ok(Some(body))
}

async fn send(to: &mut UnixStream, body: &[u8]) -> io::Result<()> {
    to.write_u32(u32::try_from(body.len()).map_err(io::Error::other)?).await?;
    to.write_all(body).await
}
