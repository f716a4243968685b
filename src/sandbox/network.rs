//! The network of a sandbox.
//!
//! An isolated network namespace belongs to a user namespace *around* the one that steps run in, so that root in a step
//! has no power over it: addresses, routes and filters are what we made them. Outward it goes through slirp4netns,
//! which has the rights of its caller, with the host's loopback closed.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::error::Doing;
use super::{SandboxError, StepNetwork, system};

/// The address of an isolated namespace, where a program must listen to be reached.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// Where slirp4netns answers names.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Link-local, where clouds keep machine identities.
const CLOSED: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(169, 254, 0, 0), Ipv4Addr::new(255, 255, 0, 0));
/// slirp4netns is ready in 25 ms; a machine that takes this long is not going to be.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// The network that a worker and its steps see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// The caller's own.
    Host,
    /// A loopback and nothing else.
    None,
    /// A namespace with a way out, and none to the host's loopback or to link-local addresses.
    Isolated,
}

/// What `resolv.conf` and `hosts` say in a step.
#[derive(Debug, Clone)]
pub(super) struct NetworkFiles {
    mode: NetworkMode,
    resolv_conf: String,
}

impl NetworkFiles {
    pub(super) fn new(mode: NetworkMode) -> Self {
        let resolv_conf = match mode {
            NetworkMode::Host => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            NetworkMode::None => String::new(),
            NetworkMode::Isolated => format!("nameserver {NAME_SERVER}\n"),
        };
        Self { mode, resolv_conf }
    }

    pub(super) fn resolv_conf(&self, network: StepNetwork) -> &str {
        match network {
            StepNetwork::Workers => &self.resolv_conf,
            StepNetwork::None => "",
        }
    }

    pub(super) fn hosts(&self, hostname: &str, network: StepNetwork) -> String {
        let own = match (self.mode, network) {
            (NetworkMode::Isolated, StepNetwork::Workers) => ADDRESS,
            _ => Ipv4Addr::LOCALHOST,
        };
        format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own} {hostname}\n")
    }
}

/// Prepares the network namespace that this process has just made and still has power over.
pub(super) fn configure() -> Result<(), SandboxError> {
    let socket =
        nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .doing(|| "open a socket".to_owned())?;
    system::loopback_up(socket.as_fd()).doing(|| "bring up the loopback interface".to_owned())?;
    system::add_unreachable_route(socket.as_fd(), CLOSED.0, CLOSED.1)
        .doing(|| "close 169.254.0.0/16".to_owned())?;
    // Absent or read-only in some containers; then low ports and ping need what they always needed.
    for (file, value) in [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 65535")] {
        let written = fs::write(Path::new("/proc/sys/net/ipv4").join(file), value);
        if let Err(error) = written {
            tracing::debug!(file, %error, "network setting left as it is");
        }
    }
    Ok(())
}

/// A running slirp4netns; it ends when this is dropped, and when this process ends in any other way.
#[derive(Debug)]
pub(super) struct Uplink {
    child: Child,
    /// slirp4netns ends when this is closed.
    _alive: OwnedFd,
    /// What it says; never read after the start, but a pipe without a reader would kill it.
    output: fs::File,
}

impl Uplink {
    /// Connects the network namespace of `process`, which is in the user namespace that owns it.
    pub(super) fn start(process: Pid) -> Result<Self, SandboxError> {
        let doing =
            || "start `slirp4netns` (`sudo apt-get install -y slirp4netns` if it is missing)".to_owned();
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).doing(doing);
        let ((ready, ready_theirs), (alive_theirs, alive), (output, output_theirs)) =
            (pipe()?, pipe()?, pipe()?);
        // When the pipe is full, words are lost instead of the network.
        nix::fcntl::fcntl(&output_theirs, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(doing)?;
        let mut command = Command::new("slirp4netns");
        command
            .args([
                "--configure",
                "--mtu=65520",
                "--disable-host-loopback",
                "--enable-sandbox",
                "--exit-fd=0",
            ])
            .arg(format!("--ready-fd={}", ready_theirs.as_raw_fd()))
            .args([process.to_string().as_str(), "tap0"])
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
            .stdin(Stdio::from(alive_theirs))
            .stdout(Stdio::from(output_theirs.try_clone().doing(doing)?))
            .stderr(Stdio::from(output_theirs));
        system::keep_open(&mut command, ready_theirs.as_fd());
        let child = command.spawn().doing(doing)?;
        drop((command, ready_theirs));
        let mut uplink = Self { child, _alive: alive, output: output.into() };
        uplink.wait_until_ready(ready)?;
        Ok(uplink)
    }

    fn wait_until_ready(&mut self, ready: OwnedFd) -> Result<(), SandboxError> {
        let deadline = Instant::now() + READY_WITHIN;
        let mut ready = fs::File::from(ready);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut fds, timeout) {
                Err(nix::errno::Errno::EINTR) => {}
                Ok(0) => return Err(self.failed("it was not ready after 10 s")),
                Ok(_) => break,
                Err(error) => return Err(error).doing(|| "wait for `slirp4netns`".to_owned()),
            }
        }
        match ready.read(&mut [0]) {
            Ok(1) => Ok(()),
            _ => Err(self.failed("it ended")),
        }
    }

    /// Ends it and tells what it said, as far as one read gives it.
    fn failed(&mut self, why: &str) -> SandboxError {
        let mut said = [0; 4096];
        let ended = self.child.kill().and_then(|()| self.child.wait());
        let length = ended.and_then(|_| self.output.read(&mut said)).unwrap_or(0);
        let said = String::from_utf8_lossy(said.get(..length).unwrap_or_default()).trim().replace('\n', "; ");
        SandboxError::Program { program: "slirp4netns", output: format!("{why}: {said}") }
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            tracing::warn!(%error, "slirp4netns could not be ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_isolated_step_asks_the_name_server_of_its_namespace() {
        let files = NetworkFiles::new(NetworkMode::Isolated);
        assert_eq!(files.resolv_conf(StepNetwork::Workers), "nameserver 10.0.2.3\n");
        assert_eq!(files.resolv_conf(StepNetwork::None), "");
        assert!(files.hosts("web", StepNetwork::Workers).ends_with("10.0.2.100 web\n"));
    }
}
