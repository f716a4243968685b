//! What a client asks for: commands, capabilities, push options (gitprotocol-pack, "Reference Update Request").

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::io::AsyncRead;

use super::Limits;
use crate::git::ReceiveError;
use crate::git::pkt_line::{Packet, PacketError, read_packet};
use crate::model::CommitId;

/// Shallow commits that a client may name.
const MAX_SHALLOW: usize = 10_000;
/// How long a client that wants nothing may take to give options, or to go.
const AFTERTHOUGHT: Duration = Duration::from_secs(2);
/// Push options that a client may give, and their bytes together.
const MAX_OPTIONS: usize = 100;
const MAX_OPTION_BYTES: usize = 16 << 10;

/// The request before the pack.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) commands: Vec<RawCommand>,
    pub(super) shallow: BTreeSet<CommitId>,
    pub(super) options: Vec<String>,
    pub(super) capabilities: Capabilities,
}

/// A command as it came: the name may be none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawCommand {
    pub(super) name: String,
    pub(super) old: Option<CommitId>,
    pub(super) new: Option<CommitId>,
}

/// What the client chose of what we offered.
#[derive(Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the protocol that is said or not")]
pub(super) struct Capabilities {
    pub(super) report_status: bool,
    pub(super) sideband: bool,
    pub(super) quiet: bool,
    pub(super) atomic: bool,
    pub(super) push_options: bool,
    pub(super) object_format: Option<String>,
    pub(super) agent: Option<String>,
}

impl Capabilities {
    fn parse(text: &str) -> Self {
        let mut chosen = Self::default();
        for capability in text.split_ascii_whitespace() {
            match capability.split_once('=').unwrap_or((capability, "")) {
                ("report-status" | "report-status-v2", _) => chosen.report_status = true,
                ("side-band-64k", _) => chosen.sideband = true,
                ("quiet", _) => chosen.quiet = true,
                ("atomic", _) => chosen.atomic = true,
                ("push-options", _) => chosen.push_options = true,
                ("object-format", format) => chosen.object_format = Some(format.to_owned()),
                ("agent", agent) => chosen.agent = Some(agent.chars().take(100).collect()),
                // Chosen without an offer, or of no consequence.
                _ => {}
            }
        }
        chosen
    }

    /// SHA-1 unless the client says otherwise.
    pub(super) fn is_sha1(&self) -> bool {
        self.object_format.as_deref().is_none_or(|format| format == "sha1")
    }
}

impl Request {
    pub(super) fn require_sha1(&self) -> Result<(), ReceiveError> {
        if self.capabilities.is_sha1() { Ok(()) } else { Err(ReceiveError::Sha256) }
    }
}

/// Reads up to the pack into `request`, as far as it goes. `false`: the client wants nothing.
pub(super) async fn read_request<R: AsyncRead + Unpin>(
    reader: &mut R,
    limits: &Limits,
    request: &mut Request,
) -> Result<bool, ReceiveError> {
    let mut patience = limits.first_command;
    loop {
        let Packet::Line(line) = next(reader, patience).await? else { break };
        patience = limits.stall;
        if let Some(id) = line.strip_prefix(b"shallow ") {
            request.shallow.insert(parse_id(id)?);
        } else {
            let line = if request.commands.is_empty() { with_capabilities(&line, request)? } else { &line };
            let command = if request.capabilities.is_sha1() {
                parse_command(line)
            } else {
                parse_foreign_command(line)
            };
            request.commands.push(command?);
        }
        if request.commands.len() > limits.max_commands {
            return Err(ReceiveError::Limit(format!(
                "more than {} refs in one push; push them in smaller groups",
                limits.max_commands
            )));
        }
        if request.shallow.len() > MAX_SHALLOW {
            return Err(ReceiveError::Limit(format!(
                "more than {MAX_SHALLOW} shallow commits; run `git fetch --unshallow`"
            )));
        }
    }
    if request.commands.is_empty() {
        // Git sends its options all the same, though it has no command to say that on.
        let read = tokio::time::timeout(AFTERTHOUGHT, read_options(reader, limits)).await;
        request.options = read.ok().and_then(Result::ok).unwrap_or_default();
        return Ok(false);
    }
    if request.capabilities.push_options {
        request.options = read_options(reader, limits).await?;
    }
    Ok(true)
}

async fn read_options<R: AsyncRead + Unpin>(
    reader: &mut R,
    limits: &Limits,
) -> Result<Vec<String>, ReceiveError> {
    let mut options = Vec::new();
    let mut bytes = 0;
    loop {
        let Packet::Line(line) = next(reader, limits.stall).await? else { return Ok(options) };
        bytes += line.len();
        if options.len() >= MAX_OPTIONS || bytes > MAX_OPTION_BYTES {
            return Err(ReceiveError::Limit(format!(
                "more than {MAX_OPTIONS} push options or {MAX_OPTION_BYTES} bytes of them"
            )));
        }
        options.push(text(&line)?.to_owned());
    }
}

/// The next packet, within a time; packets of protocol v2 have no place here.
async fn next<R: AsyncRead + Unpin>(reader: &mut R, patience: Duration) -> Result<Packet, ReceiveError> {
    let read = tokio::time::timeout(patience, read_packet(reader));
    match read.await.map_err(|_| ReceiveError::Stalled(patience))? {
        Ok(Packet::Other) => Err(ReceiveError::Protocol("a packet of protocol v2 in a push".to_owned())),
        Ok(packet) => Ok(packet),
        Err(PacketError::Closed) => Err(ReceiveError::ClientGone(None)),
        Err(PacketError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(ReceiveError::Protocol(error.to_string()))
        }
        Err(PacketError::Io(error)) => Err(ReceiveError::ClientGone(Some(error))),
        Err(error @ PacketError::Length(_)) => Err(ReceiveError::Protocol(error.to_string())),
    }
}

/// The first command carries what the client chose, after a NUL.
fn with_capabilities<'a>(line: &'a [u8], request: &mut Request) -> Result<&'a [u8], ReceiveError> {
    let Some(at) = line.iter().position(|b| *b == 0) else { return Ok(line) };
    let (command, chosen) = line.split_at(at);
    request.capabilities = Capabilities::parse(text(chosen.get(1..).unwrap_or_default())?);
    if command == b"push-cert" {
        return Err(ReceiveError::Protocol(
            "signed pushes are not supported; push without `--signed`".to_owned(),
        ));
    }
    Ok(command)
}

/// `<old> <new> <name>`.
fn parse_command(line: &[u8]) -> Result<RawCommand, ReceiveError> {
    let line = text(line)?;
    let printable = Some(line).filter(|line| !line.contains(|c: char| c.is_control()));
    let parts = printable
        .and_then(|line| line.split_once(' '))
        .and_then(|(old, rest)| Some((old, rest.split_once(' ')?)));
    let Some((old, (new, name))) = parts else {
        let shown: String = line.chars().take(80).flat_map(char::escape_default).collect();
        return Err(ReceiveError::Protocol(format!("`{shown}` is not a command")));
    };
    let id = |hex: &str| match parse_id(hex.as_bytes())? {
        id if is_zero(id) => Ok(None),
        id => Ok::<_, ReceiveError>(Some(id)),
    };
    Ok(RawCommand { name: name.to_owned(), old: id(old)?, new: id(new)? })
}

/// A command whose ids are not SHA-1: to be refused by its name.
fn parse_foreign_command(line: &[u8]) -> Result<RawCommand, ReceiveError> {
    let name = text(line)?.split(' ').nth(2).unwrap_or_default().to_owned();
    Ok(RawCommand { name, old: None, new: None })
}

fn is_zero(id: CommitId) -> bool {
    id.to_string().bytes().all(|b| b == b'0')
}

fn parse_id(hex: &[u8]) -> Result<CommitId, ReceiveError> {
    let shown = || hex.iter().take(64).copied().collect::<Vec<_>>().escape_ascii().to_string();
    let id = std::str::from_utf8(hex).ok().and_then(|hex| hex.parse().ok());
    id.ok_or_else(|| ReceiveError::Protocol(format!("`{}` is not an object id", shown())))
}

fn text(line: &[u8]) -> Result<&str, ReceiveError> {
    std::str::from_utf8(line).map_err(|_| ReceiveError::Protocol("a line that is not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::pkt_line::{FLUSH, write_line};

    const ID: &str = "6c8a51efd4f2f0b2a90ad8ba8aae2e8a3a7e2a51";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    /// `None`: the client wants nothing.
    async fn read(lines: &[&str]) -> Result<Option<Request>, ReceiveError> {
        let mut input = Vec::new();
        for line in lines {
            if line.is_empty() {
                input.extend_from_slice(FLUSH);
            } else {
                write_line(&mut input, line.as_bytes());
            }
        }
        let limits = Limits { max_commands: 2, ..Limits::default() };
        let mut request = Request::default();
        Ok(read_request(&mut input.as_slice(), &limits, &mut request).await?.then_some(request))
    }

    #[tokio::test]
    async fn commands_options_and_capabilities_are_read() {
        let first = format!(
            "{ZERO} {ID} refs/heads/main\0 report-status side-band-64k push-options agent=git/2.39\n"
        );
        let request = read(&[&format!("shallow {ID}\n"), &first, "", "detach", ""]).await.unwrap().unwrap();
        assert_eq!(request.shallow.len(), 1);
        assert_eq!(request.options, ["detach"]);
        assert!(request.capabilities.sideband && !request.capabilities.atomic);
        let [command] = request.commands.as_slice() else { panic!("{request:?}") };
        assert_eq!((command.old, command.new.unwrap().to_string()), (None, ID.to_owned()));
    }

    #[tokio::test]
    async fn a_flush_alone_wants_nothing() {
        assert_eq!(read(&[""]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn options_are_read_though_there_is_nothing_to_send() {
        let mut input = FLUSH.to_vec();
        write_line(&mut input, b"supercede");
        input.extend_from_slice(FLUSH);
        let mut request = Request::default();
        assert!(!read_request(&mut input.as_slice(), &Limits::default(), &mut request).await.unwrap());
        assert_eq!(request.options, ["supercede"]);
    }

    #[tokio::test]
    async fn sha256_is_seen_although_its_ids_are_longer() {
        let long = "a".repeat(64);
        let first = format!("{ZERO} {long} refs/heads/main\0object-format=sha256");
        let request = read(&[&first, &format!("{long} {long} refs/heads/x"), ""]).await.unwrap().unwrap();
        assert_eq!(request.commands[1].name, "refs/heads/x");
        assert!(request.require_sha1().is_err());
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let command = format!("{ZERO} {ID} refs/heads/main");
        for lines in [
            vec!["GET / HTTP/1.1"],
            vec!["push-cert\0report-status"],
            vec!["shallow x"],
            vec!["x y refs/heads/main"],
            vec![&command, &command, &command, ""],
            vec![&command],
        ] {
            assert!(read(&lines).await.is_err(), "{lines:?}");
        }
    }
}
