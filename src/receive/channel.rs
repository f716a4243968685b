//! One channel: its input, its output, its command and its end.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, Held};
use super::streams::{Chunk, Stream};
use super::{Closed, Command, CommandError, Environment, Gone, Handler, Output, Session, Stdin, Terminal};

/// How long the rest of a refused pack is taken from a client and thrown away, so that it reads the refusal.
const DRAIN: Duration = Duration::from_mins(1);
const CTRL_C: u8 = 3;
/// `ssh`'s extended data that is standard error.
const STDERR: u32 = 1;

/// A channel that is open and has not been asked to do anything yet.
pub(super) struct Opened {
    write: ChannelWriteHalf<Msg>,
    gate: Arc<Gate>,
    stdin: Stdin,
    input: Input,
    pub(super) closed: Closed,
    pub(super) environment: Environment,
    pub(super) terminal: Option<Terminal>,
}

/// The task that takes what the client sends, and what it and the channel tell each other.
struct Input {
    task: tokio::task::JoinHandle<()>,
    /// Fires when the client has sent its last.
    ended: CancellationToken,
    /// Fire it to throw away what still comes.
    discard: CancellationToken,
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Opened {
    pub(super) fn new(channel: Channel<Msg>, gate: Arc<Gate>) -> Self {
        let (read, write) = channel.split();
        let (sender, stdin) = Stdin::new();
        let closed = Closed::new();
        let (ended, discard) = (CancellationToken::new(), CancellationToken::new());
        let task = tokio::spawn(pump(
            read,
            Pump {
                stdin: sender,
                gate: Arc::clone(&gate),
                closed: closed.clone(),
                ended: ended.clone(),
                discard: discard.clone(),
            },
        ));
        let input = Input { task, ended, discard };
        Self { write, gate, stdin, input, closed, environment: Environment::default(), terminal: None }
    }

    /// Does what was asked for, delivers what it printed, and closes the channel. `connection` fires when the
    /// connection is over, `kill` when the server can wait no longer.
    pub(super) async fn run(self, work: Work, connection: CancellationToken, kill: CancellationToken) {
        let Self { write, gate, stdin, input, closed, environment, terminal } = self;
        let (stdout, stderr, chunks) = Output::pair(terminal.is_some());
        let drains = matches!(work, Work::Command { command: Command::ReceivePack(_), .. });
        let mut last_words = stderr.clone();
        let work =
            work.start(Streams { environment, terminal, stdin, stdout, stderr, closed: closed.clone() });
        let finished = CancellationToken::new();
        let lost = async {
            tokio::select! {
                () = connection.cancelled() => {}
                () = closed.hangup().cancelled() => {}
            }
        };
        let delivery = deliver((&write, &gate), chunks, &finished, lost);
        let status = async {
            let status = finish(work, kill, &mut last_words).await;
            finished.cancel();
            input.discard.cancel();
            status
        };
        let (status, ()) = tokio::join!(status, delivery);
        let goodbye = async {
            write.exit_status(u32::from(status)).await?;
            write.eof().await?;
            if drains {
                let drained = tokio::time::timeout(DRAIN, input.ended.cancelled()).await;
                tracing::debug!(whole = drained.is_ok(), "rest of the input was dropped");
            }
            write.close().await
        };
        tokio::select! {
            said = goodbye => if said.is_err() { tracing::debug!("client was gone before the exit status") },
            () = connection.cancelled() => {}
        }
    }
}

/// What a session has besides its command.
pub(super) struct Streams {
    environment: Environment,
    terminal: Option<Terminal>,
    stdin: Stdin,
    stdout: Output,
    stderr: Output,
    closed: Closed,
}

/// What a channel was asked to do, by whom.
pub(super) enum Work {
    /// A known user's command.
    Command { handler: Arc<dyn Handler>, command: Command, who: Who },
    /// A command that is none, or a stranger's: told why not.
    Refusal { message: String, for_git: bool, status: u8 },
}

/// The part of a [`Session`] that is the connection's.
#[derive(Clone)]
pub(super) struct Who {
    pub(super) user: crate::model::UserName,
    pub(super) key_name: String,
    pub(super) fingerprint: crate::model::Fingerprint,
    pub(super) remote: std::net::SocketAddr,
    pub(super) login: String,
}

impl Work {
    /// Refuses a command line that is not understood.
    pub(super) fn refuse_command(error: &CommandError) -> Self {
        let for_git =
            matches!(error, CommandError::Path(_) | CommandError::Arguments(_) | CommandError::Service(_));
        Self::Refusal { message: format!(" !     {error}\n"), for_git, status: 1 }
    }

    fn start(self, streams: Streams) -> tokio::task::JoinHandle<u8> {
        match self {
            Self::Command { handler, command, who } => {
                let Who { user, key_name, fingerprint, remote, login } = who;
                let Streams { environment, terminal, stdin, stdout, stderr, closed } = streams;
                let session = Session {
                    user,
                    key_name,
                    fingerprint,
                    remote,
                    login,
                    command,
                    environment,
                    terminal,
                    stdin,
                    stdout,
                    stderr,
                    closed,
                };
                tokio::spawn(async move { handler.run(session).await })
            }
            Self::Refusal { message, for_git, status } => tokio::spawn(async move {
                let Streams { mut stdout, mut stderr, .. } = streams;
                let said = async {
                    stderr.write_all(message.as_bytes()).await?;
                    if for_git {
                        // git prints this instead of guessing at access rights and missing repositories.
                        let text = "ERR hephy refused this; the reason is above\n";
                        stdout.write_all(format!("{:04x}{text}", text.len() + 4).as_bytes()).await?;
                    }
                    Ok::<(), std::io::Error>(())
                };
                if said.await.is_err() {
                    tracing::debug!("client was gone before it was refused");
                }
                status
            }),
        }
    }
}

/// Waits for the work; a panic is an internal error and says so to the client too.
async fn finish(mut work: tokio::task::JoinHandle<u8>, kill: CancellationToken, stderr: &mut Output) -> u8 {
    let joined = tokio::select! {
        joined = &mut work => joined,
        () = kill.cancelled() => {
            work.abort();
            work.await
        }
    };
    let (message, status) = match joined {
        Ok(status) => return status,
        Err(error) if error.is_cancelled() => (" !     The server was stopped before this was done.\n", 75),
        Err(error) => {
            tracing::error!(%error, "session failed");
            (" !     Something broke inside the server; its log says what.\n", 70)
        }
    };
    if stderr.write_all(message.as_bytes()).await.is_err() {
        tracing::debug!("client was gone before it was told");
    }
    status
}

/// Where the client's input goes.
struct Pump {
    stdin: mpsc::UnboundedSender<Held>,
    gate: Arc<Gate>,
    closed: Closed,
    ended: CancellationToken,
    discard: CancellationToken,
}

/// Takes what the client sends until the channel is over. Never waits for the reader: that would stop russh.
async fn pump(mut read: ChannelReadHalf, pump: Pump) {
    let Pump { stdin, gate, closed, ended, discard } = pump;
    let _ended = ended.clone().drop_guard();
    let mut stdin = Some(stdin);
    let mut terminal = false;
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::RequestPty { .. } => terminal = true,
            ChannelMsg::Data { data } => {
                if terminal && data.contains(&CTRL_C) {
                    closed.set(Gone::Hangup);
                }
                let wanted = !discard.is_cancelled() && !closed.hangup().is_cancelled();
                stdin = stdin.filter(|stdin| wanted && stdin.send(gate.hold(data)).is_ok());
            }
            ChannelMsg::Signal { signal: Sig::INT | Sig::TERM | Sig::HUP | Sig::QUIT | Sig::KILL } => {
                closed.set(Gone::Hangup);
            }
            ChannelMsg::Eof => {
                stdin = None;
                ended.cancel();
            }
            ChannelMsg::Close => {
                closed.set(Gone::Hangup);
                return;
            }
            _ => {}
        }
    }
}

/// Sends output in the order it was written, as far as the client's window allows, until `finished` and all is sent.
async fn deliver(
    write: (&ChannelWriteHalf<Msg>, &Arc<Gate>),
    mut chunks: mpsc::Receiver<Chunk>,
    finished: &CancellationToken,
    lost: impl Future<Output = ()>,
) {
    let sending = async {
        loop {
            let chunk = tokio::select! {
                biased;
                chunk = chunks.recv() => chunk,
                () = finished.cancelled() => {
                    // Clones of the output may be anywhere; nothing written from now on counts.
                    chunks.close();
                    while let Ok(chunk) = chunks.try_recv() {
                        send(write, chunk).await?;
                    }
                    return Ok(());
                }
            };
            match chunk {
                Some(chunk) => send(write, chunk).await?,
                None => return Ok::<(), russh::Error>(()),
            }
        }
    };
    tokio::select! {
        sent = sending => if sent.is_err() { tracing::debug!("client was gone before all output was sent") },
        () = lost => {}
    }
}

async fn send(
    (write, gate): (&ChannelWriteHalf<Msg>, &Arc<Gate>),
    Chunk { stream, bytes }: Chunk,
) -> Result<(), russh::Error> {
    let sending = async {
        match stream {
            Stream::Stdout => write.data_bytes(bytes).await,
            Stream::Stderr => write.extended_data_bytes(STDERR, bytes).await,
        }
    };
    tokio::pin!(sending);
    match futures::poll!(&mut sending) {
        Poll::Ready(sent) => sent,
        Poll::Pending => {
            let _blocked = gate.writer();
            sending.await
        }
    }
}
