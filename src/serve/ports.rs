//! Listening, and who has the port if it is taken.

use std::fs;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("{address} is taken by {holder}: stop that, or give another address with `{flag}`")]
    Busy {
        /// The address.
        address: SocketAddr,
        /// Which program, as far as it can be seen.
        holder: String,
        /// The flag that chooses another.
        flag: &'static str,
    },
    /// The system said no.
    #[error("cannot listen on {address}: give another address with `{flag}`")]
    Io {
        /// The address.
        address: SocketAddr,
        /// The flag that chooses another.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Listens on `address`, which the setting `flag` chose.
pub(super) async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ListenError> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(ListenError::Busy { address, holder: holder_of(address), flag })
        }
        Err(source) => Err(ListenError::Io { address, flag, source }),
    }
}

/// The same, where an address is given; it becomes the one that is listened on.
pub(super) async fn listen_optional(
    address: &mut Option<SocketAddr>,
    flag: &'static str,
) -> Result<Option<TcpListener>, ListenError> {
    let Some(given) = address else { return Ok(None) };
    let listener = listen(*given, flag).await?;
    *given = listener.local_addr().map_err(|source| ListenError::Io { address: *given, flag, source })?;
    Ok(Some(listener))
}

/// The program that listens on the port, by /proc: `nginx (pid 812)`.
fn holder_of(address: SocketAddr) -> String {
    let unknown = || "another program (of another user)".to_owned();
    let sockets = listening_sockets(address.port());
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let held = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten().any(|fd| {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            sockets.iter().any(|inode| target.as_os_str() == format!("socket:[{inode}]").as_str())
        });
        if held {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return format!("{} (pid {pid})", name.trim());
        }
    }
    unknown()
}

/// The inodes of listening sockets that are in the way (proc(5), `/proc/net/tcp`).
fn listening_sockets(port: u16) -> Vec<String> {
    const LISTEN: &str = "0A";
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(&LISTEN), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            let here = local.rsplit_once(':').and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok());
            if here == Some(port) {
                inodes.push((*inode).to_owned());
            }
        }
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_busy_port_names_its_holder_and_the_flag() {
        let taken = listen("127.0.0.1:0".parse().unwrap(), "--http").await.unwrap();
        let error = listen(taken.local_addr().unwrap(), "--http").await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("(pid {})", std::process::id())) && error.contains("`--http`"),
            "{error}"
        );
    }
}
