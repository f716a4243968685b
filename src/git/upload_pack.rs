//! `git fetch` and `git clone`, the server's side: `git upload-pack` on a view of the repository.
//!
//! The view is a repository of its own, for as long as the fetch takes: exactly the refs that the caller gives, and
//! the objects of the real one. No other ref can be seen; protocol v2 gives any object to who knows its id.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::child::{self, Group};
use super::quarantine::Directory;
use super::{GitError, Refs, Repository, UploadError};
use crate::model::RefName;

const BUFFER_BYTES: usize = 64 << 10;
const CONFIG: &str =
    "[core]\n\trepositoryformatversion = 0\n\tbare = true\n[uploadpack]\n\tallowFilter = true\n";

/// What a client is shown.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The refs.
    pub refs: &'a Refs,
    /// What `HEAD` points at, which need not be there.
    pub head: &'a RefName,
    /// What the client gave as `GIT_PROTOCOL`, such as `version=2`.
    pub protocol: Option<&'a str>,
    /// How long it may be silent.
    pub idle: Duration,
}

/// Serves one clone or fetch. The caller may drop the future at any time: the child goes with it.
pub async fn upload_pack<R, W>(
    repository: &Repository,
    shown: Shown<'_>,
    reader: R,
    writer: W,
) -> Result<(), UploadError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let view = view(repository, shown.refs, shown.head).map_err(UploadError::Storage)?;
    let mut git = child::git(view.path(), "upload-pack");
    git.env("GIT_OBJECT_DIRECTORY", repository.object_directory());
    if let Some(protocol) = shown.protocol {
        git.env("GIT_PROTOCOL", protocol);
    }
    git.args(["--strict", &format!("--timeout={}", shown.idle.as_secs().max(1))]).arg(view.path());
    git.stdin(Stdio::piped()).stdout(Stdio::piped());
    let storage = |source| UploadError::Storage(GitError::Io { doing: "run", path: "git".into(), source });
    let mut group = Group::spawn(&mut git).map_err(storage)?;
    let (stdin, stdout, stderr) =
        (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let (Some(stdin), Some(stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
        return Err(storage(io::ErrorKind::BrokenPipe.into()));
    };
    let ended = async {
        let answered = copy(stdout, writer);
        let said = async { Ok(child::message(&mut stderr, |_| ()).await.unwrap_or_default()) };
        let ((), message) = tokio::try_join!(answered, said)?;
        Ok::<_, io::Error>(message)
    };
    let asked = async {
        // git says what it makes of a client that ends in the middle.
        let _ended = copy(reader, stdin).await;
        std::future::pending().await
    };
    let message = tokio::select! {
        ended = ended => ended.map_err(UploadError::ClientGone)?,
        never = asked => never,
    };
    let status = group.wait().await.map_err(storage)?;
    if status.success() { Ok(()) } else { Err(UploadError::Child { status: status.to_string(), message }) }
}

/// Copies until the end, and passes on what came before it waits.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        let Some(data) = buffer.get(..read).filter(|data| !data.is_empty()) else { return Ok(()) };
        to.write_all(data).await?;
        to.flush().await?;
    }
}

fn view(repository: &Repository, refs: &Refs, head: &RefName) -> Result<Directory, GitError> {
    let view = Directory::for_view(repository)?;
    let file = |name: &str, content: &str| {
        let path = view.path().join(name);
        fs::write(&path, content).map_err(GitError::io("write", path))
    };
    for directory in ["objects", "refs"] {
        let path = view.path().join(directory);
        fs::create_dir(&path).map_err(GitError::io("create", path))?;
    }
    file("HEAD", &format!("ref: {head}\n"))?;
    file("config", CONFIG)?;
    let lines = refs.iter().map(|(name, id)| format!("{id} {name}\n"));
    file(
        "packed-refs",
        &std::iter::once("# pack-refs with: sorted \n".to_owned()).chain(lines).collect::<String>(),
    )?;
    link_shallow(repository.path(), view.path())?;
    Ok(view)
}

/// The commits without parents are the same in both.
fn link_shallow(repository: &Path, view: &Path) -> Result<(), GitError> {
    let list = repository.join("shallow");
    if list.exists() {
        let path = view.join("shallow");
        let list = fs::canonicalize(&list).map_err(GitError::io("resolve", list))?;
        symlink(list, &path).map_err(GitError::io("create", path))?;
    }
    Ok(())
}
