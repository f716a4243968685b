//! The SSH server: accepts, limits, watches and drains connections.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::{Algorithm, EcdsaCurve, HashAlg};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, cipher, compression, kex, mac};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, Place};
use super::connection::{Connection, State};
use super::wire::Wire;
use super::{Directory, Gone, Handler, HostKey};

/// What one server does for how many.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address, or one IPv6 network of 64 bits.
    pub per_address: usize,
    /// Connections that are logging in at one time. More of them wait their turn.
    pub unauthenticated: usize,
    /// How long a connection may take to log in, and a stranger's may last.
    pub login_timeout: Duration,
    /// A client that has been silent this long is asked for a sign of life.
    pub keepalive_interval: Duration,
    /// A client that gives none this many times is given up.
    pub keepalive_max: usize,
    /// Commands at one time on one connection.
    pub channels_per_connection: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            per_address: 128,
            unauthenticated: 64,
            login_timeout: Duration::from_secs(20),
            keepalive_interval: Duration::from_secs(15),
            keepalive_max: 6,
            channels_per_connection: 10,
        }
    }
}

/// The longest that a closing client is waited for.
const FAREWELL: Duration = Duration::from_secs(4);

/// What all connections share.
pub(super) struct Shared {
    pub(super) directory: Arc<dyn Directory>,
    pub(super) handler: Arc<dyn Handler>,
    pub(super) limits: Limits,
    /// Every connection and every session.
    pub(super) tasks: TaskTracker,
    /// Fires when what still runs is to be dropped.
    pub(super) kill: CancellationToken,
    config: Arc<russh::server::Config>,
    stop: CancellationToken,
    logging_in: Arc<Semaphore>,
}

/// The SSH server.
pub struct Server {
    shared: Arc<Shared>,
    admission: Arc<Admission>,
}

impl Server {
    /// A server that answers with this key, knows these users and does this for them.
    #[must_use]
    pub fn new(
        host_key: &HostKey,
        directory: Arc<dyn Directory>,
        handler: Arc<dyn Handler>,
        limits: Limits,
    ) -> Self {
        let config = Arc::new(config(host_key, &limits));
        let admission = Admission::new(limits.connections, limits.per_address);
        let logging_in = Arc::new(Semaphore::new(limits.unauthenticated));
        let (tasks, kill, stop) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let shared = Arc::new(Shared { directory, handler, limits, tasks, kill, config, stop, logging_in });
        Self { shared, admission }
    }

    /// Serves until `stop` fires. Then takes no new connection and no new command, tells the running sessions
    /// ([`Gone::Shutdown`]), waits for them for at most `grace`, and closes what is left.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken, grace: Duration) {
        let Self { shared, admission } = self;
        tokio::select! {
            () = accept(&shared, &admission, &listener) => {}
            () = stop.cancelled() => {}
        }
        drop(listener);
        shared.stop.cancel();
        shared.tasks.close();
        if tokio::time::timeout(grace, shared.tasks.wait()).await.is_err() {
            tracing::warn!(sessions = shared.tasks.len(), "sessions did not end in time and are dropped");
        }
        shared.kill.cancel();
        if tokio::time::timeout(FAREWELL, shared.tasks.wait()).await.is_err() {
            tracing::warn!("connections did not close in time");
        }
    }
}

async fn accept(shared: &Arc<Shared>, admission: &Arc<Admission>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let Some(place) = admission.admit(remote) else {
                    tracing::warn!(%remote, "connection refused: there are too many");
                    continue;
                };
                let shared = Arc::clone(shared);
                shared.clone().tasks.spawn(async move {
                    if let Err(error) = connection(shared, stream, remote, place).await {
                        tracing::debug!(%error, %remote, "connection failed");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, or the client left the queue: neither is helped by trying at once.
                tracing::warn!(%error, "connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One connection, from its first byte to its last.
async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    remote: SocketAddr,
    _place: Place,
) -> Result<(), russh::Error> {
    let wire = Wire::new(stream, stall(&shared.limits))?;
    let login_deadline = Instant::now() + shared.limits.login_timeout;
    let state = Arc::new(State::new(wire.gate()));
    let callbacks = Connection::new(Arc::clone(&shared), Arc::clone(&state), remote);
    let login = async {
        let turn =
            Arc::clone(&shared.logging_in).acquire_owned().await.map_err(|_| russh::Error::Disconnect)?;
        let session = russh::server::run_stream(Arc::clone(&shared.config), wire.clone(), callbacks).await?;
        Ok::<_, russh::Error>((turn, session))
    };
    let (turn, session) = tokio::select! {
        begun = tokio::time::timeout_at(login_deadline, login) => begun.map_err(|_| russh::Error::ConnectionTimeout)??,
        () = shared.stop.cancelled() => return Ok(()),
    };
    let handle = session.handle();
    tokio::pin!(session);
    let watch = watch(&shared, &state, &wire, login_deadline, turn, &handle);
    let result = tokio::select! {
        result = &mut session => result,
        () = watch => {
            wire.shut();
            session.await
        }
    };
    state.gone(how_it_went(&result));
    state.ended.cancel();
    result
}

/// Watches a connection from beside it; returns when it is to be closed.
async fn watch(
    shared: &Shared,
    state: &State,
    wire: &Wire,
    login_deadline: Instant,
    turn: OwnedSemaphorePermit,
    handle: &russh::server::Handle,
) {
    let login = async {
        let mut authenticated = state.authenticated.subscribe();
        let logged_in =
            tokio::time::timeout_at(login_deadline, authenticated.wait_for(|yes| *yes)).await.is_ok();
        drop(turn);
        if logged_in {
            std::future::pending::<()>().await;
        }
    };
    let hangup = async {
        wire.closed_by_client().await;
        state.gone(Gone::Hangup);
        std::future::pending::<()>().await;
    };
    let drain = async {
        shared.stop.cancelled().await;
        state.gone(Gone::Shutdown);
        state.running.close();
        state.running.wait().await;
        if state.has_served() {
            // A client whose command is done closes by itself. OpenSSH's drops what it has not passed on yet, git's
            // report for one, when it is told to disconnect.
            tokio::time::sleep(FAREWELL / 2).await;
        }
        let goodbye =
            handle.disconnect(Disconnect::ByApplication, "the server is being stopped".into(), String::new());
        if !matches!(tokio::time::timeout(FAREWELL / 8, goodbye).await, Ok(Ok(()))) {
            tracing::debug!("client was not told about the stop");
        }
        tokio::time::sleep(FAREWELL / 8).await;
    };
    tokio::select! {
        () = login => {}
        () = hangup => {}
        () = drain => {}
    }
}

/// Whether the end of a connection was the client's wish.
fn how_it_went(result: &Result<(), russh::Error>) -> Gone {
    match result {
        Err(russh::Error::KeepaliveTimeout | russh::Error::InactivityTimeout) => Gone::Silent,
        Err(russh::Error::IO(error)) => match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Gone::Silent
            }
            _ => Gone::Hangup,
        },
        Ok(()) | Err(_) => Gone::Hangup,
    }
}

/// How long nothing may move at all.
fn stall(limits: &Limits) -> Duration {
    limits.keepalive_interval * u32::try_from(limits.keepalive_max + 2).unwrap_or(u32::MAX)
}

fn config(host_key: &HostKey, limits: &Limits) -> russh::server::Config {
    russh::server::Config {
        server_id: russh::SshId::Standard(Cow::Borrowed("SSH-2.0-hephy")),
        methods: MethodSet::from(&[MethodKind::PublicKey, MethodKind::KeyboardInteractive][..]),
        // Public keys cannot be guessed, and a client with ten keys need not wait ten times.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        max_auth_attempts: 40,
        keys: vec![host_key.private.clone()],
        // What is not read yet is bounded by the gate, not by the window: a wide one costs nothing, and lets a far
        // client send at full speed.
        window_size: 4 << 20,
        maximum_packet_size: 32 << 10,
        channel_buffer_size: 16,
        inactivity_timeout: Some(stall(limits)),
        keepalive_interval: Some(limits.keepalive_interval),
        keepalive_max: limits.keepalive_max,
        nodelay: true,
        preferred: preferred(),
        ..russh::server::Config::default()
    }
}

/// Strong algorithms, and the fastest of them: the client's order decides, so a slow one is left out.
fn preferred() -> Preferred {
    const KEX: &[kex::Name] = &[
        kex::MLKEM768X25519_SHA256,
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::DH_G18_SHA512,
        kex::DH_G16_SHA512,
        kex::DH_G14_SHA256,
        kex::EXTENSION_SUPPORT_AS_SERVER,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
    ];
    const CIPHERS: &[cipher::Name] = &[cipher::AES_256_GCM, cipher::AES_256_CTR, cipher::AES_128_CTR];
    const MACS: &[mac::Name] =
        &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA512_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512];
    // Also what clients are told that they may sign with.
    const KEYS: &[Algorithm] = &[
        Algorithm::Ed25519,
        Algorithm::SkEd25519,
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
        Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
        Algorithm::SkEcdsaSha2NistP256,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    Preferred {
        kex: Cow::Borrowed(KEX),
        key: Cow::Borrowed(KEYS),
        cipher: Cow::Borrowed(CIPHERS),
        mac: Cow::Borrowed(MACS),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}
