//! Bundles that a step makes while it runs: `update-ca-certificates` renames a new one into place.

use std::ffi::CStr;
use std::io::{self, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::inotify;

use super::{Added, Laid, MAX_BUNDLE_BYTES, find, writable};
use crate::layers::Root;

/// Looks for bundles that a step makes.
pub(in crate::build) struct Watch {
    thread: Option<JoinHandle<()>>,
    /// Closed to end it.
    end: Option<io::PipeWriter>,
}

impl Watch {
    pub(super) fn start(laid: &Laid, root: &Root) -> io::Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let mut watched = Vec::new();
        for file in &laid.files {
            let Ok((parent, name)) = root.resolve_parent(&file.path) else { continue };
            let directory = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
            let flags = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE;
            inotify::add_watch(&events, &directory, flags)?;
            watched.push((name, file.path.clone()));
        }
        let (ended, end) = io::pipe()?;
        let (root, added) = (root.try_clone().map_err(io::Error::other)?, laid.added.clone());
        let body = move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&events, &mut buffer);
            loop {
                let mut fds = [&events.as_fd(), &ended.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
                let polled = nix::poll::poll(&mut fds, PollTimeout::NONE);
                let is_over = fds[1].revents().is_none_or(|events| !events.is_empty());
                if is_over || !matches!(polled, Ok(_) | Err(nix::errno::Errno::EINTR)) {
                    return;
                }
                while let Ok(event) = reader.next() {
                    let name = event.file_name().map(CStr::to_bytes);
                    for (_, path) in watched.iter().filter(|(watched, _)| name == Some(watched.as_bytes())) {
                        // What cannot be added to stays as the step made it.
                        drop(append(&root, path, &added));
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("trust".to_owned()).spawn(body)?;
        Ok(Self { thread: Some(thread), end: Some(end) })
    }
}

/// Waits for the thread: a worker with two may not start another step.
impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It has no way to panic.
            drop(thread.join());
        }
    }
}

fn append(root: &Root, path: &Path, added: &Added) -> io::Result<()> {
    let content = root.read(path, MAX_BUNDLE_BYTES).map_err(io::Error::other)?.unwrap_or_default();
    if content.is_empty() || find(&content, &added.0).is_some() {
        return Ok(());
    }
    let mut file = writable(root, path)?;
    file.seek(io::SeekFrom::End(0))?;
    file.write_all(&added.0)
}
