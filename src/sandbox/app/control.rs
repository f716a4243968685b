//! The client of a holder: one connection for each question.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::{AppStatus, ControlAnswer, ControlRequest, Listener};
use crate::sandbox::protocol::{self, ProtocolError};

/// How long a holder that lives may take; it may be starting its sandbox.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// What a holder may take beyond the grace: to kill, and to clean up.
const END_WITHIN: Duration = Duration::from_secs(30);

/// A holder could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no holder.
    #[error("nothing holds an app process in `{}`", directory.display())]
    Gone {
        /// Its directory.
        directory: PathBuf,
    },
    /// Nobody listens on that port of the app's address.
    #[error("the app does not listen on port {port}")]
    Refused {
        /// The port.
        port: u16,
    },
    /// The app's holder did not answer in time.
    #[error("the holder of the app process did not answer within {} s", after.as_secs())]
    TimedOut {
        /// The time it had.
        after: Duration,
    },
    /// The holder answered that it could not.
    #[error("the holder of the app process reported: {0}")]
    Reported(String),
    /// The conversation broke.
    #[error("failed to talk to the holder of the app process")]
    Protocol(#[from] ProtocolError),
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> Self {
        Self::Protocol(error.into())
    }
}

/// An app process, by the directory of its holder. Dropping it stops nothing.
#[derive(Debug, Clone)]
pub struct Control {
    directory: PathBuf,
}

impl Control {
    /// The holder in this directory, whether there is one or not.
    #[must_use]
    pub fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the app does.
    pub async fn status(&self) -> Result<AppStatus, ControlError> {
        match self.ask(&ControlRequest::Status, ANSWER_WITHIN).await? {
            (ControlAnswer::Status(status), _) => Ok(status),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Connects to the app from inside its namespace, at the address that is not its loopback.
    pub async fn connect(&self, port: u16) -> Result<TcpStream, ControlError> {
        let answer = self.ask(&ControlRequest::Connect { port }, ANSWER_WITHIN).await?;
        let socket = match answer {
            (ControlAnswer::Connecting, socket) => socket,
            (ControlAnswer::Refused, _) => return Err(ControlError::Refused { port }),
            (other, _) => return Err(unexpected(other)),
        };
        let socket = socket.into_iter().next().ok_or(ProtocolError::Truncated)?;
        let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
        tokio::time::timeout(ANSWER_WITHIN, stream.writable())
            .await
            .map_err(|_| ControlError::TimedOut { after: ANSWER_WITHIN })??;
        match stream.take_error()? {
            None => {}
            Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(ControlError::Refused { port });
            }
            Some(error) => return Err(error.into()),
        }
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Who listens in the app's namespace.
    pub async fn listening(&self) -> Result<Vec<Listener>, ControlError> {
        match self.ask(&ControlRequest::Listening, ANSWER_WITHIN).await? {
            (ControlAnswer::Listening(listeners), _) => Ok(listeners),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Sends a signal to the app.
    pub async fn signal(&self, signal: i32) -> Result<(), ControlError> {
        self.ask(&ControlRequest::Signal { signal }, ANSWER_WITHIN).await.and_then(done)
    }

    /// Asks the app to end, kills what is left after `grace`, and returns when app and holder have ended.
    ///
    /// Asked again, the shorter time holds.
    pub async fn stop(&self, grace: Duration) -> Result<(), ControlError> {
        self.ask(&ControlRequest::Stop { grace }, grace.saturating_add(END_WITHIN)).await.and_then(done)
    }

    async fn ask(
        &self,
        request: &ControlRequest,
        within: Duration,
    ) -> Result<(ControlAnswer, Vec<OwnedFd>), ControlError> {
        let asked = tokio::time::timeout(within, async {
            let mut stream = self.open().await?;
            let answer = async {
                send(&mut stream, request).await?;
                receive(&mut stream).await
            };
            answer.await.map_err(|error| if is_end(&error) { self.gone() } else { error })
        });
        asked.await.map_err(|_| ControlError::TimedOut { after: within })?
    }

    async fn open(&self) -> Result<UnixStream, ControlError> {
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => self.gone(),
            _ => error.into(),
        };
        let directory = OwnedFd::from(File::open(&self.directory).map_err(gone)?);
        UnixStream::connect(socket_path(&directory)).await.map_err(gone)
    }

    fn gone(&self) -> ControlError {
        ControlError::Gone { directory: self.directory.clone() }
    }
}

/// The socket's name through an open directory: a socket's name has at most 107 bytes, a data directory's may have more.
pub(super) fn socket_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/control", directory.as_raw_fd()))
}

/// Whether the holder has ended between the connection, which the kernel accepts for it, and its answer.
fn is_end(error: &ControlError) -> bool {
    match error {
        ControlError::Protocol(ProtocolError::Truncated) => true,
        ControlError::Protocol(ProtocolError::Socket(error)) => matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
        ),
        _ => false,
    }
}

async fn send<M: Serialize>(stream: &mut UnixStream, message: &M) -> Result<(), ControlError> {
    let body = serde_json::to_vec(message).map_err(ProtocolError::from)?;
    stream.write_all(&protocol::frame_length(body.len())?).await?;
    stream.write_all(&body).await?;
    Ok(())
}

async fn receive(stream: &mut UnixStream) -> Result<(ControlAnswer, Vec<OwnedFd>), ControlError> {
    let mut header = [0; 4];
    let received = stream.async_io(Interest::READABLE, || {
        protocol::receive_with_fds(stream.as_fd(), &mut header).map_err(|error| match error {
            ProtocolError::Socket(error) => error,
            other => io::Error::other(other),
        })
    });
    let (read, fds) = received.await?;
    if read == 0 {
        return Err(ProtocolError::Truncated.into());
    }
    stream.read_exact(header.get_mut(read..).unwrap_or_default()).await?;
    let mut body = vec![0; protocol::checked_length(header)?];
    stream.read_exact(&mut body).await?;
    Ok((serde_json::from_slice(&body).map_err(ProtocolError::from)?, fds))
}

fn done(answer: (ControlAnswer, Vec<OwnedFd>)) -> Result<(), ControlError> {
    match answer {
        (ControlAnswer::Done, _) => Ok(()),
        (other, _) => Err(unexpected(other)),
    }
}

fn unexpected(answer: ControlAnswer) -> ControlError {
    match answer {
        ControlAnswer::Failed(why) => ControlError::Reported(why),
        other => ControlError::Reported(format!("an answer to another question: {other:?}")),
    }
}
