//! One connection: who it is and what its channels ask for. Callbacks only translate; the work is in
//! [`Opened::run`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use russh::keys::ssh_key;
use russh::server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Response, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::{Fingerprint, PublicKey};

use super::channel::{Opened, Who, Work};
use super::gate::Gate;
use super::nobody::{Offered, Standing};
use super::server::Shared;
use super::{Closed, Command, CommandError, Gone, KnownKey, Terminal};

/// What the connection's owner and its callbacks both know.
pub(super) struct State {
    gate: Arc<Gate>,
    sessions: Mutex<Sessions>,
    /// The sessions that run.
    pub(super) running: TaskTracker,
    /// Whether a user is logged in.
    pub(super) authenticated: watch::Sender<bool>,
    /// Fires when the connection is over.
    pub(super) ended: CancellationToken,
}

#[derive(Default)]
struct Sessions {
    closed: HashMap<ChannelId, Closed>,
    gone: Option<Gone>,
    served: bool,
}

impl State {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            sessions: Mutex::default(),
            running: TaskTracker::new(),
            authenticated: watch::Sender::new(false),
            ended: CancellationToken::new(),
        }
    }

    /// Tells every session of the connection, and those to come.
    pub(super) fn gone(&self, how: Gone) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.gone.get_or_insert(how);
        for closed in sessions.closed.values() {
            closed.set(how);
        }
    }

    fn is_gone(&self) -> bool {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).gone.is_some()
    }

    fn opened(&self, id: ChannelId, closed: Closed) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.closed.insert(id, closed);
        sessions.served = true;
    }

    /// Whether a channel was ever opened: its client may not have read everything yet.
    pub(super) fn has_served(&self) -> bool {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).served
    }

    fn forget(&self, id: ChannelId) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).closed.remove(&id);
    }

    fn open_channels(&self) -> usize {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).closed.len()
    }
}

/// Who is at the other end.
enum Identity {
    /// Not known yet.
    Pending,
    /// Somebody who has proved to hold a key.
    User(KnownKey, Fingerprint),
    /// Somebody without a known key.
    Nobody,
}

/// The callbacks of a connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    state: Arc<State>,
    remote: SocketAddr,
    login: String,
    identity: Identity,
    offered: Offered,
    channels: HashMap<ChannelId, Opened>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, state: Arc<State>, remote: SocketAddr) -> Self {
        Self {
            shared,
            state,
            remote,
            login: String::new(),
            identity: Identity::Pending,
            offered: Offered::default(),
            channels: HashMap::new(),
        }
    }

    /// Looks a key up, and remembers it if it lets nobody in.
    async fn user_of(
        &mut self,
        key: &ssh_key::PublicKey,
        algorithm: &ssh_key::Algorithm,
    ) -> Option<(KnownKey, Fingerprint)> {
        let blob = key.to_bytes().ok()?;
        let fingerprint = Fingerprint::of_blob(&blob);
        let key = match PublicKey::from_blob(&blob) {
            Ok(_) if matches!(algorithm, ssh_key::Algorithm::Rsa { hash: None }) => {
                self.offered.remember(fingerprint, Standing::Sha1);
                return None;
            }
            Ok(key) => key,
            Err(error) => {
                self.offered.remember(fingerprint, Standing::Refused(error));
                return None;
            }
        };
        match self.shared.directory.user_of(&key).await {
            Ok(Some(known)) => {
                self.offered.remember(fingerprint.clone(), Standing::Unproven(key));
                return Some((known, fingerprint));
            }
            Ok(None) => self.offered.remember(fingerprint, Standing::Unknown(key)),
            Err(error) => {
                tracing::error!(error = %error.0, remote = %self.remote, "key was not looked up");
                self.offered.directory_failed = true;
            }
        }
        None
    }

    /// Gives a channel its work.
    fn start(&mut self, id: ChannelId, command: Result<Command, CommandError>) -> bool {
        if self.state.is_gone() {
            return false;
        }
        let Some(opened) = self.channels.remove(&id) else { return false };
        let work = match (&self.identity, command) {
            (Identity::Pending, _) => return false,
            (Identity::Nobody, command) => {
                let for_git = !matches!(
                    command,
                    Ok(Command::Verb(_) | Command::Greeting)
                        | Err(CommandError::Text | CommandError::Words(_))
                );
                let status = if self.offered.directory_failed { 75 } else { 1 };
                Work::Refusal { message: self.offered.explain(&*self.shared.directory), for_git, status }
            }
            (Identity::User(..), Err(error)) => Work::refuse_command(&error),
            (Identity::User(known, fingerprint), Ok(command)) => {
                let KnownKey { user, key_name } = known.clone();
                let who = Who {
                    user,
                    key_name,
                    fingerprint: fingerprint.clone(),
                    remote: self.remote,
                    login: self.login.clone(),
                };
                Work::Command { handler: Arc::clone(&self.shared.handler), command, who }
            }
        };
        let (state, kill) = (Arc::clone(&self.state), self.shared.kill.clone());
        let running = self.state.running.token();
        self.shared.tasks.spawn(async move {
            let _running = running;
            opened.run(work, state.ended.clone(), kill).await;
            state.forget(id);
        });
        true
    }

    fn answer(id: ChannelId, done: bool, session: &mut russh::server::Session) -> Result<(), russh::Error> {
        if done { session.channel_success(id) } else { session.channel_failure(id) }
    }
}

impl russh::server::Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        _: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        let known = self.user_of(offer.public_key, offer.algorithm).await;
        Ok(if known.is_some() { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        login: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        let Some((known, fingerprint)) = self.user_of(key.public_key, key.algorithm).await else {
            return Ok(Auth::reject());
        };
        tracing::info!(user = %known.user, %fingerprint, remote = %self.remote, "user is logged in");
        login.clone_into(&mut self.login);
        self.identity = Identity::User(known, fingerprint);
        self.state.authenticated.send_replace(true);
        Ok(Auth::Accept)
    }

    /// Clients try this when they have no more keys. It lets them in as nobody, to be told why.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        login: &str,
        _: &str,
        _: Option<Response<'a>>,
    ) -> Result<Auth, russh::Error> {
        login.clone_into(&mut self.login);
        self.identity = Identity::Nobody;
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        if self.state.is_gone() || self.state.open_channels() >= self.shared.limits.channels_per_connection {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let opened = Opened::new(channel, Arc::clone(&self.state.gate));
        self.state.opened(id, opened.closed.clone());
        self.channels.insert(id, opened);
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        id: ChannelId,
        _: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        if self.channels.remove(&id).is_some() {
            self.state.forget(id);
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let taken = self.channels.get_mut(&id).is_some_and(|opened| opened.environment.set(name, value));
        Self::answer(id, taken, session)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let kind =
            term.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.+".contains(*c)).take(64).collect();
        let size = |cells| u16::try_from(cells).unwrap_or(0);
        let terminal = Terminal { kind, columns: size(columns), rows: size(rows) };
        let taken = self.channels.get_mut(&id).map(|opened| opened.terminal = Some(terminal)).is_some();
        Self::answer(id, taken, session)
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let started = self.start(id, Command::parse(line));
        Self::answer(id, started, session)
    }

    async fn shell_request(
        &mut self,
        id: ChannelId,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let started = self.start(id, Ok(Command::Greeting));
        Self::answer(id, started, session)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        _: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(id)
    }
}
