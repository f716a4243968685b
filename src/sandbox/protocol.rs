//! Typed messages with file descriptors over a socket pair.
//!
//! A frame is a length in four bytes, little-endian, and that many bytes of JSON; its descriptors travel with the
//! length. The other end may be a process that runs somebody else's code, so both ends limit what they take.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message; a build's largest, the environment and arguments of a step, is far below it.
pub const MAX_FRAME_BYTES: usize = 16 << 20;
/// The most descriptors with one message.
pub const MAX_FDS: usize = 16;

/// A message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// The socket failed.
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    /// A message is longer than [`MAX_FRAME_BYTES`].
    #[error("a message of {bytes} bytes is over the limit of {MAX_FRAME_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More descriptors than [`MAX_FDS`].
    #[error("more than {MAX_FDS} file descriptors with one message")]
    TooManyFds,
    /// The bytes are no message of the expected type.
    #[error("a message could not be understood")]
    Malformed(#[from] serde_json::Error),
    /// The stream ended inside a message.
    #[error("the other side hung up inside a message")]
    Truncated,
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
}

/// A message with the descriptors that came with it.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Its descriptors, in the order sent, closed on exec.
    pub fds: Vec<OwnedFd>,
}

impl Channel {
    /// Makes two connected ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self { stream: ours }, Self { stream: theirs }))
    }

    /// Sends one message.
    pub fn send<M: Serialize>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), ProtocolError> {
        let body = serde_json::to_vec(message)?;
        let length = frame_length(body.len())?;
        send_with_fds(self.stream.as_fd(), &length, fds)?;
        self.stream.write_all(&body)?;
        Ok(())
    }

    /// Waits for one message; `None` when the other side has closed.
    pub fn receive<M: DeserializeOwned>(&mut self) -> Result<Option<Received<M>>, ProtocolError> {
        let mut header = [0; 4];
        let (read, fds) = receive_with_fds(self.stream.as_fd(), &mut header)?;
        if read == 0 {
            return Ok(None);
        }
        let rest = header.get_mut(read..).unwrap_or_default();
        self.stream.read_exact(rest).map_err(truncated)?;
        let mut body = vec![0; checked_length(header)?];
        self.stream.read_exact(&mut body).map_err(truncated)?;
        Ok(Some(Received { message: serde_json::from_slice(&body)?, fds }))
    }

    /// The socket, for a process that inherits it.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.stream.into()
    }
}

impl From<UnixStream> for Channel {
    fn from(stream: UnixStream) -> Self {
        Self { stream }
    }
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { stream: UnixStream::from(socket) }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The header of a body of this length.
pub(super) fn frame_length(bytes: usize) -> Result<[u8; 4], ProtocolError> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= MAX_FRAME_BYTES => Ok(length.to_le_bytes()),
        _ => Err(ProtocolError::TooLong { bytes }),
    }
}

/// The length a header announces, if it may be that long.
pub(super) fn checked_length(header: [u8; 4]) -> Result<usize, ProtocolError> {
    let bytes = u32::from_le_bytes(header) as usize;
    if bytes > MAX_FRAME_BYTES { Err(ProtocolError::TooLong { bytes }) } else { Ok(bytes) }
}

/// Sends all of `bytes`, the descriptors with the first of them.
pub(super) fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), ProtocolError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_FDS || (!fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(ProtocolError::TooManyFds);
    }
    let mut sent =
        retry(|| rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL))?;
    while sent < bytes.len() {
        let rest = bytes.get(sent..).unwrap_or_default();
        sent += retry(|| rustix::net::send(socket, rest, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Receives at most `buffer.len()` bytes with their descriptors; zero bytes when the other side has closed.
pub(super) fn receive_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), ProtocolError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ProtocolError::TooManyFds);
    }
    Ok((received.bytes, fds))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn truncated(error: io::Error) -> ProtocolError {
    if error.kind() == io::ErrorKind::UnexpectedEof { ProtocolError::Truncated } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (mut ours, mut theirs) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"through").unwrap();
        ours.send(&("hello", 7), &[file.as_fd()]).unwrap();
        ours.send(&("again", 8), &[]).unwrap();
        let received = theirs.receive::<(String, u32)>().unwrap().unwrap();
        assert_eq!(received.message, ("hello".to_owned(), 7));
        assert_eq!(received.fds.len(), 1);
        let second = theirs.receive::<(String, u32)>().unwrap().unwrap();
        assert_eq!((second.message.1, second.fds.len()), (8, 0));
    }

    #[test]
    fn a_closed_end_is_no_message() {
        let (ours, mut theirs) = Channel::pair().unwrap();
        drop(ours);
        assert!(theirs.receive::<u32>().unwrap().is_none());
    }

    #[test]
    fn a_frame_that_announces_too_much_is_refused_before_it_is_read() {
        let (mut ours, mut theirs) = Channel::pair().unwrap();
        ours.stream.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(theirs.receive::<u32>(), Err(ProtocolError::TooLong { .. })));
    }

    #[test]
    fn a_frame_cut_short_is_said_to_be() {
        let (mut ours, mut theirs) = Channel::pair().unwrap();
        ours.stream.write_all(&9_u32.to_le_bytes()).unwrap();
        ours.stream.write_all(b"123").unwrap();
        drop(ours);
        assert!(matches!(theirs.receive::<u32>(), Err(ProtocolError::Truncated)));
    }

    #[test]
    fn a_message_of_another_type_is_malformed() {
        let (mut ours, mut theirs) = Channel::pair().unwrap();
        ours.send(&"text", &[]).unwrap();
        assert!(matches!(theirs.receive::<u32>(), Err(ProtocolError::Malformed(_))));
    }
}
