//! `hephy forward`: an address of a node's loopback leads to a Service, for a kubelet that pulls from our own registry.
//!
//! It carries bytes and knows nothing of them. Only loopback is listened on: whoever reaches the node is not meant.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::ports::{ListenError, listen};
use super::up::{Signals, UpError};
use crate::config::server::HostPort;

/// How many connections are carried at once; more wait.
const CONNECTIONS: usize = 512;
/// How long the other side may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long what is carried may take to end after a signal.
const DRAIN: Duration = Duration::from_secs(20);

/// Why nothing is forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The address is not a loopback's.
    #[error("{0} is not a loopback address: others would reach what is meant for this machine")]
    NotLoopback(SocketAddr),
    /// The address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Signals.
    #[error(transparent)]
    Signals(#[from] UpError),
}

/// Carries connections from `from` to `to` until a signal.
pub async fn forward(from: SocketAddr, to: &HostPort) -> Result<(), ForwardError> {
    if !from.ip().is_loopback() {
        return Err(ForwardError::NotLoopback(from));
    }
    let mut signals = Signals::new().map_err(UpError::Signals)?;
    let listener = listen(from, "--listen").await?;
    tracing::info!(%from, %to, "forwarding");
    let mut carried = JoinSet::new();
    tokio::select! {
        () = carry(&listener, to, &mut carried) => {}
        () = signals.next() => {}
    }
    drop(listener);
    tokio::select! {
        _ = tokio::time::timeout(DRAIN, async { while carried.join_next().await.is_some() {} }) => {}
        () = signals.next() => {}
    }
    Ok(())
}

/// Takes connections for ever.
async fn carry(listener: &TcpListener, to: &HostPort, carried: &mut JoinSet<()>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes it.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        while carried.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let to = to.clone();
                carried.spawn(async move {
                    one(client, &to).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(error = %error, "a connection is not taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn one(mut client: TcpStream, to: &HostPort) {
    let connecting = TcpStream::connect((to.host.as_str(), to.port));
    let mut server = match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => return tracing::warn!(%to, error = %error, "the other side is not reached"),
        Err(_) => return tracing::warn!(%to, "the other side does not answer"),
    };
    // Either side may go at any time.
    if let Err(error) = copy_bidirectional(&mut client, &mut server).await {
        tracing::debug!(error = %error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn both_directions_are_carried_and_an_end_is_passed_on() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let from = listener.local_addr().unwrap();
        let to = HostPort { host: "127.0.0.1".to_owned(), port: server.local_addr().unwrap().port() };
        let mut carried = JoinSet::new();
        let talk = async {
            let mut client = TcpStream::connect(from).await.unwrap();
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut served, _) = server.accept().await.unwrap();
            let mut heard = String::new();
            served.read_to_string(&mut heard).await.unwrap();
            served.write_all(b"answer").await.unwrap();
            drop(served);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            (heard, answer)
        };
        let (heard, answer) = tokio::select! {
            said = talk => said,
            () = carry(&listener, &to, &mut carried) => panic!("it ended"),
        };
        assert_eq!((heard.as_str(), answer.as_str()), ("question", "answer"));
    }

    #[tokio::test]
    async fn what_others_reach_is_not_listened_on() {
        let to = "hephy-registry.hephy.svc:5000".parse().unwrap();
        let refused = forward("0.0.0.0:0".parse().unwrap(), &to).await;
        assert!(matches!(refused, Err(ForwardError::NotLoopback(_))), "{refused:?}");
    }
}
