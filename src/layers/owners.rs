//! Whose a file is that belongs to an id which this process's user namespace does not have.
//!
//! A layer may say any id, and a user namespace has as many as it was given. Such a file belongs to the last of the usual
//! ids, and an attribute says whose it is: its own, or, since symlinks and pipes can have none, one of the directory that
//! it is in. Overlay copies both up. Whoever is given the file afterwards has it, whatever the attribute says.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Uid, XattrFlags};
use rustix::io::Errno;

use super::node::{Kind, Owner, open_dir, open_read, xattr};
use crate::oci::Digest;

/// Who has a file that belongs to nobody here.
const STAND_IN: u32 = 65_535;
/// What says whose a file or directory is; with the sum of a name after it, what is called so in a directory.
const NOTE: &str = "user.hephy.owner";

/// Whether an attribute is one of these notes, and so in no layer.
pub(super) fn is_note(name: &[u8]) -> bool {
    name.starts_with(NOTE.as_bytes())
}

/// Gives an open file or directory to `owner`.
pub(super) fn give(fd: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
    let given = change(owner, |uid, gid| rustix::fs::fchown(fd, uid, gid))?;
    if has_stand_in(given) { note(fd, &of_file(), owner, given) } else { Ok(()) }
}

/// Gives a symlink or a special file to `owner`.
pub(super) fn give_named(dir: BorrowedFd<'_>, name: &OsStr, owner: Owner) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let given = change(owner, |uid, gid| rustix::fs::chownat(dir, name, uid, gid, flags))?;
    if has_stand_in(given) { note(open_dir(dir, ".")?.as_fd(), &of_name(name), owner, given) } else { Ok(()) }
}

/// Whose an open file or directory is that seems to be `owner`'s.
pub(super) fn of_open(fd: BorrowedFd<'_>, owner: Owner) -> Owner {
    if has_stand_in(owner) { noted(fd, &of_file(), owner) } else { owner }
}

/// Whose the file at `path` below `dir` is that seems to be `owner`'s.
///
/// One that cannot be opened is whose it seems to be.
pub(super) fn of_named(dir: BorrowedFd<'_>, path: &Path, kind: Kind, owner: Owner) -> Owner {
    if !has_stand_in(owner) {
        return owner;
    }
    if matches!(kind, Kind::File | Kind::Directory) {
        return open_read(dir, path).map_or(owner, |fd| noted(fd.as_fd(), &of_file(), owner));
    }
    let Some(name) = path.file_name() else { return owner };
    let parent = open_dir(dir, path.parent().unwrap_or(Path::new("")));
    parent.map_or(owner, |parent| noted(parent.as_fd(), &of_name(name), owner))
}

/// Changes the owner as far as there are such ids, and returns whose the file is then.
fn change(owner: Owner, chown: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>) -> io::Result<Owner> {
    let both = |owner: Owner| chown(Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
    match both(owner) {
        Ok(()) => return Ok(owner),
        // From a change of owner that means one thing.
        Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    let uid = possible(owner.uid, chown(Some(Uid::from_raw(owner.uid)), None))?;
    let gid = possible(owner.gid, chown(None, Some(Gid::from_raw(owner.gid))))?;
    let given = Owner { uid, gid };
    match both(given) {
        Ok(()) => Ok(given),
        Err(Errno::INVAL) => Err(wrong(owner, "is outside the range of ids that this user may use")),
        Err(errno) => Err(errno.into()),
    }
}

fn possible(id: u32, changed: Result<(), Errno>) -> io::Result<u32> {
    match changed {
        Ok(()) => Ok(id),
        Err(Errno::INVAL) => Ok(STAND_IN),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes whose a file is that was `given` to somebody else, or takes away what was written of one that is his indeed.
fn note(fd: BorrowedFd<'_>, attribute: &CStr, owner: Owner, given: Owner) -> io::Result<()> {
    let written = if owner == given {
        rustix::fs::fremovexattr(fd, attribute)
    } else {
        let text = format!("{}:{}", owner.uid, owner.gid);
        rustix::fs::fsetxattr(fd, attribute, text.as_bytes(), XattrFlags::empty())
    };
    match written {
        Ok(()) => Ok(()),
        Err(Errno::NODATA | Errno::NOTSUP) if owner == given => Ok(()),
        Err(Errno::NOTSUP) => {
            Err(wrong(owner, "is no id of this sandbox, and its file system keeps no attributes"))
        }
        Err(errno) => Err(errno.into()),
    }
}

fn noted(fd: BorrowedFd<'_>, attribute: &CStr, owner: Owner) -> Owner {
    let text = xattr(fd, attribute).ok().flatten().unwrap_or_default();
    let parsed = std::str::from_utf8(&text).ok().and_then(|text| {
        let (uid, gid) = text.split_once(':')?;
        Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
    });
    let Some(noted) = parsed else { return owner };
    let one = |noted: u32, found: u32| if found == STAND_IN && noted != u32::MAX { noted } else { found };
    Owner { uid: one(noted.uid, owner.uid), gid: one(noted.gid, owner.gid) }
}

const fn has_stand_in(owner: Owner) -> bool {
    owner.uid == STAND_IN || owner.gid == STAND_IN
}

fn of_file() -> CString {
    CString::new(NOTE).unwrap_or_default()
}

/// By the sum of the name, since a name is as long as an attribute's may be.
fn of_name(name: &OsStr) -> CString {
    let sum = Digest::of(name.as_bytes());
    CString::new(format!("{NOTE}.{}", &sum.hex()[..32])).unwrap_or_default()
}

fn wrong(owner: Owner, why: &str) -> io::Error {
    let text = format!("owner {}:{} {why}", owner.uid, owner.gid);
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::super::node::Node;
    use super::*;

    const NOTED: Owner = Owner { uid: 100_000, gid: 200_000 };
    const SOMEBODY: Owner = Owner { uid: 5, gid: STAND_IN };

    /// As in a user namespace that has no others than the usual ids.
    fn few(uid: Option<Uid>, gid: Option<Gid>) -> Result<(), Errno> {
        let is_there = |id: u32| id <= STAND_IN;
        let all =
            uid.is_none_or(|uid| is_there(uid.as_raw())) && gid.is_none_or(|gid| is_there(gid.as_raw()));
        if all { Ok(()) } else { Err(Errno::INVAL) }
    }

    #[test]
    fn of_an_owner_the_ids_that_are_there_are_kept() {
        let changed = |uid, gid| change(Owner { uid, gid }, few).unwrap();
        assert_eq!(changed(1, 2), Owner { uid: 1, gid: 2 });
        assert_eq!(changed(100_000, 2), Owner { uid: STAND_IN, gid: 2 });
        assert_eq!(changed(1, 100_000), Owner { uid: 1, gid: STAND_IN });
        let none = change(NOTED, |_, _| Err(Errno::INVAL)).unwrap_err().to_string();
        assert!(none.starts_with("owner 100000:200000 is outside"), "{none}");
    }

    #[test]
    fn a_note_counts_for_the_id_that_stands_in_and_is_no_attribute_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("f"), "").unwrap();
        let dir = std::fs::File::open(directory.path()).unwrap();
        let file = std::fs::File::open(directory.path().join("f")).unwrap();
        let stand_in = Owner { uid: STAND_IN, gid: STAND_IN };
        note(file.as_fd(), &of_file(), NOTED, stand_in).unwrap();
        note(dir.as_fd(), &of_name(OsStr::new("link")), NOTED, stand_in).unwrap();
        assert_eq!(of_open(file.as_fd(), stand_in), NOTED);
        assert_eq!(of_open(file.as_fd(), SOMEBODY), Owner { uid: 5, gid: 200_000 });
        assert_eq!(of_open(file.as_fd(), Owner::ROOT), Owner::ROOT);
        let named = |name: &str, kind| of_named(dir.as_fd(), Path::new(name), kind, stand_in);
        assert_eq!((named("f", Kind::File), named("link", Kind::Symlink)), (NOTED, NOTED));
        assert_eq!((named("other", Kind::File), named("f", Kind::Fifo)), (stand_in, stand_in));
        assert!(super::super::node::xattrs(&file).unwrap().is_empty());
        // It is given to the last id indeed.
        note(file.as_fd(), &of_file(), stand_in, stand_in).unwrap();
        assert_eq!(of_open(file.as_fd(), stand_in), stand_in);
        assert_eq!(Node::of(&file).unwrap().owner, Node::at(dir.as_fd(), "f").unwrap().unwrap().owner);
    }
}
