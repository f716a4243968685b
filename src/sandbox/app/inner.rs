//! The worker of one app process: in the app's network namespace, so it can connect there and see who listens.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn};
use serde::{Deserialize, Serialize};

use crate::sandbox::error::Doing;
use crate::sandbox::{
    ADDRESS, Channel, Outcome, Received, Root, RootSpec, Running, Sandbox, SandboxError, Step, steps, worker,
};

/// The name of this worker body.
pub const BODY: &str = "app";
/// More than this of `/proc/net/tcp` is not read: some ten thousand sockets.
const MAX_TABLE_BYTES: u64 = 2 << 20;

/// Somebody who listens for TCP connections in an app's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listener {
    /// On which address; unspecified for all.
    pub address: IpAddr,
    /// On which port.
    pub port: u16,
}

/// What the holder asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Start the app on a new root, with its streams.
    Start { root: RootSpec, scratch: PathBuf, step: Box<Step> },
    /// Begin a connection to the app.
    Connect { port: u16 },
    /// Who listens.
    Listening,
    /// Send a signal to the app.
    Signal { signal: i32 },
    /// Send it the signal that ends it, and wait for all its processes.
    Stop { signal: i32 },
    /// Kill all its processes.
    Kill,
    /// Remove what it wrote.
    Clean { scratch: PathBuf },
}

/// What the holder is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    /// With a socket.
    Connecting,
    Refused,
    Listening(Vec<Listener>),
    Failed(String),
    /// Not an answer: the app has ended.
    Ended(Result<Outcome, String>),
}

/// Serves the holder until it hangs up.
#[must_use]
pub fn main() -> ExitCode {
    match worker::enter().and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        // The holder has been told, or has gone.
        Err(_) => ExitCode::FAILURE,
    }
}

struct Inner {
    sandbox: Box<dyn Sandbox>,
    app: Option<(Running, Root)>,
}

fn serve(entered: worker::Entered) -> Result<(), SandboxError> {
    let worker::Entered { mut channel, sandbox } = entered;
    let mut inner = Inner { sandbox, app: None };
    loop {
        let (asked, ended) = wait(&channel, inner.app.as_ref().map(|(running, _)| running))?;
        if ended {
            let outcome = inner.finish().map_err(|error| error.chain());
            channel.send(&Answer::Ended(outcome), &[])?;
        }
        if asked {
            let Some(Received { message, fds }) = channel.receive()? else {
                return Ok(());
            };
            match inner.answer(message, fds) {
                Ok((answer, Some(socket))) => channel.send(&answer, &[socket.as_fd()])?,
                Ok((answer, None)) => channel.send(&answer, &[])?,
                Err(error) => channel.send(&Answer::Failed(error.chain()), &[])?,
            }
        }
    }
}

fn wait(channel: &Channel, running: Option<&Running>) -> Result<(bool, bool), SandboxError> {
    let mut fds = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    fds.extend(running.map(|running| PollFd::new(running.as_fd(), PollFlags::POLLIN)));
    match nix::poll::poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).doing(|| "wait for the app".to_owned()),
    }
    let happened =
        |index: usize| fds.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
    Ok((happened(0), happened(1)))
}

impl Inner {
    fn answer(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<(Answer, Option<OwnedFd>), SandboxError> {
        let answer = match request {
            Request::Start { root, scratch, step } => {
                if self.app.is_some() {
                    return Err(SandboxError::Reported("the app runs".to_owned()));
                }
                steps::remove(&scratch)?;
                let mut root = self.sandbox.open(&root)?;
                let stdio = steps::stdio(fds)?;
                match self.sandbox.start(&mut root, &step, stdio) {
                    Ok(running) => self.app = Some((running, root)),
                    Err(error) => {
                        self.sandbox.close(root)?;
                        return Err(error);
                    }
                }
                Answer::Done
            }
            Request::Connect { port } => {
                return Ok(match connect(port)? {
                    Some(socket) => (Answer::Connecting, Some(socket)),
                    None => (Answer::Refused, None),
                });
            }
            Request::Listening => Answer::Listening(listening()?),
            Request::Signal { signal } => {
                self.running()?.signal(signal)?;
                Answer::Done
            }
            Request::Stop { signal } => {
                self.running()?.linger()?;
                self.running()?.signal(signal)?;
                Answer::Done
            }
            Request::Kill => {
                self.running()?.signal(Signal::SIGKILL as i32)?;
                Answer::Done
            }
            Request::Clean { scratch } => {
                steps::remove(&scratch)?;
                Answer::Done
            }
        };
        Ok((answer, None))
    }

    fn running(&self) -> Result<&Running, SandboxError> {
        let running = self.app.as_ref().map(|(running, _)| running);
        running.ok_or_else(|| SandboxError::Reported("the app does not run".to_owned()))
    }

    fn finish(&mut self) -> Result<Outcome, SandboxError> {
        let (running, root) =
            self.app.take().ok_or_else(|| SandboxError::Reported("the app does not run".to_owned()))?;
        let outcome = running.finish();
        self.sandbox.close(root)?;
        outcome
    }
}

/// Begins a connection to the namespace's own address; `None` when nobody listens.
///
/// It never waits, so that one slow app connection does not hold up another: whoever gets the socket waits for it.
fn connect(port: u16) -> Result<Option<OwnedFd>, SandboxError> {
    let doing = || format!("connect to the app's port {port}");
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Stream, flags, None).doing(doing)?;
    let address = SockaddrIn::from(SocketAddrV4::new(ADDRESS, port));
    match nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(Some(socket)),
        Err(Errno::ECONNREFUSED) => Ok(None),
        Err(error) => Err(error).doing(doing),
    }
}

/// `/proc/self/net` is this process's network namespace, which is the app's.
fn listening() -> Result<Vec<Listener>, SandboxError> {
    let mut listeners = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let mut text = String::new();
        match File::open(table) {
            Ok(file) => {
                file.take(MAX_TABLE_BYTES).read_to_string(&mut text).doing(|| format!("read `{table}`"))?;
                listeners.extend(text.lines().skip(1).filter_map(parse_listener));
            }
            // A kernel without IPv6.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(|| format!("open `{table}`")),
        }
    }
    listeners.sort_unstable();
    listeners.dedup();
    Ok(listeners)
}

/// `sl local_address rem_address st …`, addresses in words of the machine's order, in hexadecimal.
fn parse_listener(line: &str) -> Option<Listener> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    let bytes = words?.concat();
    let address = if let Ok(bytes) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::from(Ipv4Addr::from(bytes))
    } else {
        IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?))
    };
    Some(Listener { address, port: u16::from_str_radix(port, 16).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_are_read_from_the_kernels_table() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1";
        let listener = parse_listener(line).unwrap();
        assert_eq!((listener.address, listener.port), (IpAddr::from(Ipv4Addr::LOCALHOST), 8080));
        let line = "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0";
        assert_eq!(parse_listener(line).unwrap().address, IpAddr::from(Ipv6Addr::LOCALHOST));
        let established = "   1: 0100007F:1F90 0100007F:9999 01 0";
        assert_eq!(parse_listener(established), None);
    }

    #[test]
    fn a_line_that_is_none_is_passed_over() {
        assert_eq!(parse_listener("  sl  local_address rem_address   st"), None);
        assert_eq!(parse_listener("0: ZZ:1 0:0 0A"), None);
    }
}
