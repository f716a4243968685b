//! The pack: from the client through `git index-pack` into the quarantine.

use std::io;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::report::Reporter;
use super::{Limits, Quarantine};
use crate::git::child::{Group, drain, message};
use crate::git::{GitError, ReceiveError};

/// Findings of `git fsck` that old and honest repositories have, and that harm nobody.
pub(super) const STRICT: &str = "--strict=badTimezone=ignore,missingSpaceBeforeDate=ignore,zeroPaddedFilemode=ignore,\
    missingEmail=ignore,badDate=ignore,zeroPaddedDate=ignore,missingNameBeforeEmail=ignore,missingSpaceBeforeEmail=ignore";
const BUFFER_BYTES: usize = 128 << 10;

/// What the header of a pack says: how many objects follow.
pub(super) struct PackHeader {
    bytes: [u8; 12],
    pub(super) objects: u32,
}

impl PackHeader {
    pub(super) async fn read<R: AsyncRead + Unpin>(
        reader: &mut R,
        limits: &Limits,
    ) -> Result<Self, ReceiveError> {
        let mut bytes = [0; 12];
        within(limits.stall, reader.read_exact(&mut bytes)).await?;
        let [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] = bytes else {
            let begin = bytes.escape_ascii();
            return Err(ReceiveError::Protocol(format!("`{begin}` where a pack should begin")));
        };
        let objects = u32::from_be_bytes(count);
        if objects > limits.max_objects {
            let max = limits.max_objects;
            return Err(ReceiveError::Limit(format!(
                "the pack has {objects} objects, more than the {max} allowed"
            )));
        }
        Ok(Self { bytes, objects })
    }
}

/// Reads the rest of the pack, whose objects are then in the quarantine: hashed, well-formed, and with every object
/// that they name at hand; the latter two only if the repository is here whole.
pub(super) async fn ingest<R, W>(
    header: PackHeader,
    quarantine: &Quarantine,
    limits: &Limits,
    reader: &mut R,
    reporter: &mut Reporter<W>,
) -> Result<(), ReceiveError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    if header.objects == 0 {
        // What follows is the hash of the header.
        return within(limits.stall, reader.read_exact(&mut [0; 20])).await.map(drop);
    }
    let storage = |source| ReceiveError::Storage(GitError::Io { doing: "run", path: "git".into(), source });
    let mut command = quarantine.git("index-pack").map_err(ReceiveError::Storage)?;
    command
        .args(["--stdin", "--fix-thin", "--report-end-of-input"])
        .args(quarantine.repository().distant().is_none().then_some(STRICT))
        .arg(format!("--max-input-size={}", limits.max_pack_bytes))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut group = Group::spawn(&mut command).map_err(storage)?;
    group.limit_memory(limits.memory_bytes).map_err(storage)?;
    let (Some(stdin), Some(mut stdout), Some(mut stderr)) =
        (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take())
    else {
        return Err(storage(io::ErrorKind::BrokenPipe.into()));
    };
    let complete = OnceLock::new();
    let feed = feed(header, limits, reader, stdin, &complete);
    let ended = async {
        // index-pack writes a NUL when it has read the pack to its end.
        let seen = |data: &[u8]| {
            if data.contains(&0) {
                let _first = complete.set(Instant::now());
            }
        };
        let (said, _name) = tokio::try_join!(message(&mut stderr, seen), drain(&mut stdout, 256, |_| ()))?;
        Ok::<_, io::Error>((group.wait().await?, said))
    };
    let (status, said) = tokio::select! {
        ended = ended => ended.map_err(storage)?,
        error = feed => return Err(error),
        error = keep_alive(limits, reporter, &complete) => return Err(error),
    };
    if status.success() {
        Ok(())
    } else if said.contains("unresolved delta") && quarantine.repository().distant().is_some() {
        Err(ReceiveError::Thin)
    } else if said == "early EOF" {
        Err(ReceiveError::ClientGone(None))
    } else if said.is_empty() {
        let memory = limits.memory_bytes >> 20;
        Err(ReceiveError::Pack(format!("index-pack ended with {status} (it may use {memory} MiB of memory)")))
    } else {
        Err(ReceiveError::Pack(said))
    }
}

/// Gives index-pack what the client sends. Ends only with an error: the end of the pack is for index-pack to see.
async fn feed<R: AsyncRead + Unpin>(
    header: PackHeader,
    limits: &Limits,
    reader: &mut R,
    mut stdin: tokio::process::ChildStdin,
    complete: &OnceLock<Instant>,
) -> ReceiveError {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = header.bytes.len() as u64;
    // A write fails when index-pack has ended, and then its message says why.
    let mut open = stdin.write_all(&header.bytes).await.is_ok();
    while open {
        let read = match timeout(limits.stall, reader.read(&mut buffer)).await {
            Err(_) if complete.get().is_some() => continue,
            Err(_) => return ReceiveError::Stalled(limits.stall),
            Ok(Err(error)) => return ReceiveError::ClientGone(Some(error)),
            Ok(Ok(0)) => break,
            Ok(Ok(read)) => read,
        };
        bytes += read as u64;
        if bytes > limits.max_pack_bytes {
            let max = limits.max_pack_bytes >> 20;
            return ReceiveError::Limit(format!(
                "the push is larger than {max} MiB; keep build results and large files out of the repository"
            ));
        }
        open = stdin.write_all(buffer.get(..read).unwrap_or_default()).await.is_ok();
    }
    drop(stdin);
    std::future::pending().await
}

/// Shows the client that we live, and gives index-pack only so long after the end of the pack.
pub(super) async fn keep_alive<W: AsyncWrite + Unpin>(
    limits: &Limits,
    reporter: &mut Reporter<W>,
    complete: &OnceLock<Instant>,
) -> ReceiveError {
    let mut ticks = interval_at(Instant::now() + limits.keepalive, limits.keepalive);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(since) = complete.get() else { continue };
        if since.elapsed() > limits.index {
            return ReceiveError::Slow(limits.index);
        }
        if let Err(error) = reporter.keepalive().await {
            return ReceiveError::ClientGone(Some(error));
        }
    }
}

async fn within<T>(patience: Duration, read: impl Future<Output = io::Result<T>>) -> Result<T, ReceiveError> {
    let read = timeout(patience, read).await.map_err(|_| ReceiveError::Stalled(patience))?;
    read.map_err(|error| ReceiveError::ClientGone(Some(error)))
}
