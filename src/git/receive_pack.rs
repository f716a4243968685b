//! `git push`, the server's side: gitprotocol-pack, "Pushing Data To a Server".
//!
//! The mechanism takes the objects and refuses what no server should take; which refs move is the caller's decision.

mod check;
mod ingest;
mod links;
mod report;
mod request;
mod screen;

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

pub use self::report::{Reporter, Verdict};

use self::ingest::PackHeader;
use self::request::{Request, read_request};
use super::objects::oid;
use super::pkt_line::{FLUSH, write_line};
use super::repository::EMPTY_TREE;
use super::{GitError, Quarantine, ReceiveError, Refs, Repository};
use crate::model::{CommitId, RefName};

/// Bounds of one push.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of the pack.
    pub max_pack_bytes: u64,
    /// Objects in the pack.
    pub max_objects: u32,
    /// Refs that one push changes.
    pub max_commands: usize,
    /// Refs of a repository.
    pub max_refs: usize,
    /// How long a client may think after it has seen the refs: its `pre-push` hook runs then.
    pub first_command: Duration,
    /// How long a client may send nothing where it should.
    pub stall: Duration,
    /// How long indexing may take after the last byte.
    pub index: Duration,
    /// Address space of `git index-pack`, in bytes.
    pub memory_bytes: u64,
    /// Between signs of life to a client that waits.
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_pack_bytes: 2 << 30,
            max_objects: 5_000_000,
            max_commands: 1000,
            max_refs: 10_000,
            first_command: Duration::from_mins(15),
            stall: Duration::from_mins(1),
            index: Duration::from_mins(10),
            memory_bytes: 2 << 30,
            keepalive: Duration::from_secs(5),
        }
    }
}

/// What came of a connection.
#[derive(Debug)]
pub enum Received<W> {
    /// The client wants nothing: its `git push` says `Everything up-to-date`, and reads nothing more here. What was given by
    /// `git push -o`.
    Nothing(W, Vec<String>),
    /// Every command was one that nobody may give; that has been answered.
    Refused,
    /// Commands to decide, and who waits for the decision.
    Push(Box<ReceivedPush>, Reporter<W>),
}

/// A push whose objects are complete and in a quarantine.
#[derive(Debug)]
pub struct ReceivedPush {
    /// What is to be decided; not empty.
    pub commands: Vec<Command>,
    /// What was given by `git push -o`.
    pub options: Vec<String>,
    /// Whether all refs move or none (`--atomic`). The [`Reporter`] sees to the report, the caller to the refs.
    pub atomic: bool,
    /// Whether the person asked for silence (`--quiet`).
    pub quiet: bool,
    /// The program and its version.
    pub client: Option<String>,
    /// The objects.
    pub quarantine: Quarantine,
}

/// A ref that is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Which.
    pub name: RefName,
    /// What it names now; `None` if there is none.
    pub old: Option<CommitId>,
    /// What it is to name; `None` to delete it.
    pub new: Option<CommitId>,
    /// The commit that `new` is, or that its tag names in the end.
    pub commit: Option<CommitId>,
}

/// Refuses a client before it is shown a ref. It prints `fatal: remote error:` and the message.
pub async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, message: &str) -> io::Result<()> {
    let mut output = Vec::new();
    write_line(&mut output, format!("ERR {message}").as_bytes());
    writer.write_all(&output).await?;
    writer.flush().await
}

/// Shows the refs to a client, and takes what it pushes up to where somebody must decide.
///
/// `reader` is left where the pack ends. The caller may drop the future at any time: the child and the quarantine
/// go with it.
///
/// # Errors
/// The client has been told whatever it could be told.
pub async fn receive_pack<R, W>(
    repository: &Repository,
    refs: &Refs,
    limits: &Limits,
    reader: &mut R,
    mut writer: W,
) -> Result<Received<W>, ReceiveError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let shallow = repository.shallow().map_err(ReceiveError::Storage)?;
    let advertised = async {
        writer.write_all(&advertisement(refs, &shallow, repository)).await?;
        writer.flush().await
    };
    advertised.await.map_err(|error| ReceiveError::ClientGone(Some(error)))?;
    let mut request = Request::default();
    let read = read_request(reader, limits, &mut request).await;
    if matches!(read, Ok(false)) {
        return Ok(Received::Nothing(writer, request.options));
    }
    let names = request.commands.iter().map(|command| command.name.clone()).collect();
    let mut reporter = Reporter::new(writer, &request.capabilities, names);
    let taken = match read.and_then(|_| request.require_sha1()) {
        Ok(()) => take(repository, refs, limits, &request, reader, &mut reporter).await,
        Err(error) => Err(error),
    };
    match taken {
        Ok((commands, quarantine)) if !reporter.all_refused() => {
            let Request { options, capabilities, .. } = request;
            let (atomic, quiet, client) = (capabilities.atomic, capabilities.quiet, capabilities.agent);
            let push = ReceivedPush { commands, options, atomic, quiet, client, quarantine };
            Ok(Received::Push(Box::new(push), reporter))
        }
        Ok(_) => {
            reporter.finish([]).await.map_err(|error| ReceiveError::ClientGone(Some(error)))?;
            Ok(Received::Refused)
        }
        Err(error) => {
            if let Some(told) = error.for_the_client() {
                // It may be gone, or still busy sending; the error that is returned is the one that matters.
                let _unheard = tokio::time::timeout(limits.stall, reporter.fail(&told)).await;
            }
            Err(error)
        }
    }
}

/// Takes the objects, and says of each command whether anybody may give it.
async fn take<R, W>(
    repository: &Repository,
    refs: &Refs,
    limits: &Limits,
    request: &Request,
    reader: &mut R,
    reporter: &mut Reporter<W>,
) -> Result<(Vec<Command>, Quarantine), ReceiveError>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let mut commands =
        screen::screen(&request.commands, refs, limits, |name, reason| reporter.refuse(name, reason));
    let shallow = repository.shallow().map_err(ReceiveError::Storage)?;
    let owned = repository.clone();
    let mut quarantine = blocking(move || Quarantine::create(&owned)).await.map_err(ReceiveError::Storage)?;
    let mut objects = 0;
    let begun = Instant::now();
    if request.commands.iter().any(|command| command.new.is_some()) {
        let either = shallow.union(&request.shallow).copied().collect();
        quarantine.write_shallow(&either).map_err(ReceiveError::Storage)?;
        let header = PackHeader::read(reader, limits).await?;
        objects = header.objects;
        ingest::ingest(header, &quarantine, limits, reader, reporter).await?;
        if repository.distant().is_some() {
            quarantine = links::check(quarantine, limits, reporter).await?;
        }
    }
    let indexed = begun.elapsed();
    let tips: Vec<_> = commands.iter().filter_map(|command| command.new).map(oid).collect();
    let cut_off: Vec<_> = shallow.union(&request.shallow).copied().collect();
    let brought = async {
        repository.bring(&cut_off).await?;
        quarantine.bring_peeled(tips.clone()).await
    };
    brought.await.map_err(ReceiveError::Storage)?;
    let scope = check::Scope { tips, offered: request.shallow.clone(), shallow, objects };
    let quarantine = check::complete(quarantine, scope, refs).await.map_err(ReceiveError::Objects)?;
    let store = quarantine.objects().map_err(ReceiveError::Storage)?;
    for command in &mut commands {
        if let Err(reason) = check::peel(&store, command).map_err(ReceiveError::Objects)? {
            reporter.refuse(command.name.as_str(), reason);
        }
    }
    tracing::debug!(objects, ?indexed, checked = ?begun.elapsed().saturating_sub(indexed), "pack received");
    commands.retain(|command| !reporter.is_refused(command.name.as_str()));
    Ok((commands, quarantine))
}

/// The refs, what we can do, and the commits whose parents we lack.
fn advertisement(refs: &Refs, shallow: &BTreeSet<CommitId>, repository: &Repository) -> Vec<u8> {
    // A client with SHA-256 ends before it has said anything, unless it is offered that too: then it can be
    // refused in words of ours. It stumbles over `capabilities^{}`, so without refs we tell of an object we have.
    let version = env!("CARGO_PKG_VERSION");
    // Nor does it send differences from objects that are not here.
    let thin = if repository.distant().is_some() { "no-thin " } else { "" };
    let capabilities = format!(
        "report-status report-status-v2 delete-refs side-band-64k quiet atomic ofs-delta {thin}push-options \
         object-format=sha1 object-format=sha256 agent=hephy/{version}"
    );
    let mut lines = refs.iter().map(|(name, id)| format!("{id} {name}"));
    let first = lines.next().unwrap_or_else(|| format!("{EMPTY_TREE} .have"));
    let mut output = Vec::new();
    write_line(&mut output, format!("{first}\0{capabilities}\n").as_bytes());
    for line in lines.chain(shallow.iter().map(|id| format!("shallow {id}"))) {
        write_line(&mut output, format!("{line}\n").as_bytes());
    }
    output.extend_from_slice(FLUSH);
    output
}

/// Runs what waits for the disk where it may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| GitError::Stopped)?
}
