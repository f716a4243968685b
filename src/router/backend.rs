//! What the router asks of an instance of an app: a byte stream.

use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to an instance.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// One instance of an app.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What tells this instance from every other, now and later: `hello--v4--web--1`.
    fn id(&self) -> &str;

    /// A fresh connection to the instance.
    ///
    /// An error means that nothing was sent: the router sets the instance aside for a moment and tries another.
    async fn connect(&self) -> io::Result<Box<dyn Connection>>;
}
