//! Whose a file is that belongs to an id which this process's user namespace does not have.
//!
//! A layer may say any id, and a user namespace has as many as it was given. Such a file belongs to the last of the usual
//! ids, and an attribute says whose it is: its own, or, since symlinks and pipes can have none, one of the directory that
//! it is in. Overlay copies both up. Whoever is given the file afterwards has it, whatever the attribute says.
//!
//! The attributes of a directory share one block on ext4, with room for some forty. So one says whose its symlinks and pipes
//! are, and only those of somebody else have another. An overlay shows the attributes of the topmost directory alone: it is
//! made with those of the one below.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Uid, XattrFlags};
use rustix::io::Errno;

use super::node::{Kind, Owner, open_dir, open_read, xattr, xattr_names};
use crate::oci::Digest;

/// Who has a file that belongs to nobody here.
const STAND_IN: u32 = 65_535;
/// What says whose a file or directory is; with the sum of a name after it, what is called so in a directory.
const NOTE: &str = "user.hephy.owner";
/// What says whose the symlinks and pipes in a directory are that have no note of their own.
const NOTE_OF_LINKS: &CStr = c"user.hephy.owner.links";
/// With fewer notes than this, a directory has no room because the disk has none.
const FEW_NOTES: usize = 16;

/// A directory has no room to say whose one more symlink is.
#[derive(Debug, thiserror::Error)]
#[error(
    "owner {}:{} is no id of this sandbox, and no more symlinks and pipes of such owners can be in this directory: give them one owner",
    .0.uid,
    .0.gid
)]
pub struct TooManyOwners(Owner);

impl TooManyOwners {
    /// Whether this is what is wrong.
    #[must_use]
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().and_then(|error| error.downcast_ref::<Self>()).is_some()
    }
}

/// Whether an attribute is one of these notes, and so in no layer.
pub(super) fn is_note(name: &[u8]) -> bool {
    name.starts_with(NOTE.as_bytes())
}

/// Gives an open file or directory to `owner`.
pub(super) fn give(fd: BorrowedFd<'_>, owner: Owner) -> io::Result<()> {
    let given = change(owner, |uid, gid| rustix::fs::fchown(fd, uid, gid))?;
    match (has_stand_in(given), owner == given) {
        (false, _) => Ok(()),
        (true, false) => set(fd, &of_file(), owner),
        // It is his indeed.
        (true, true) => remove(fd, &of_file()),
    }
}

/// Gives a symlink or a special file to `owner`.
pub(super) fn give_named(dir: BorrowedFd<'_>, name: &OsStr, owner: Owner) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let given = change(owner, |uid, gid| rustix::fs::chownat(dir, name, uid, gid, flags))?;
    if has_stand_in(given) { note_link(open_dir(dir, ".")?.as_fd(), name, owner, given) } else { Ok(()) }
}

/// Gives a directory that was just made what is noted, in the directory of the layer `below` it, of symlinks and pipes.
pub(super) fn inherit(made: BorrowedFd<'_>, below: BorrowedFd<'_>) -> io::Result<()> {
    for name in xattr_names(below)? {
        let bytes = name.to_bytes();
        if is_note(bytes)
            && bytes != NOTE.as_bytes()
            && let Some(text) = xattr(below, &name)?
        {
            rustix::fs::fsetxattr(made, &name, &text, XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// Whose an open file or directory is that seems to be `owner`'s.
pub(super) fn of_open(fd: BorrowedFd<'_>, owner: Owner) -> Owner {
    let noted = if has_stand_in(owner) { noted(fd, &of_file()) } else { None };
    noted.map_or(owner, |noted| stood_in(owner, noted))
}

/// Whose the file at `path` below `dir` is that seems to be `owner`'s.
///
/// One that cannot be opened is whose it seems to be.
pub(super) fn of_named(dir: BorrowedFd<'_>, path: &Path, kind: Kind, owner: Owner) -> Owner {
    if !has_stand_in(owner) {
        return owner;
    }
    if matches!(kind, Kind::File | Kind::Directory) {
        return open_read(dir, path).map_or(owner, |fd| of_open(fd.as_fd(), owner));
    }
    let Some(name) = path.file_name() else { return owner };
    let parent = open_dir(dir, path.parent().unwrap_or(Path::new("")));
    parent.map_or(owner, |parent| of_link(parent.as_fd(), name, owner))
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

/// Writes whose a symlink or pipe is that was `given` to somebody, perhaps to its owner.
fn note_link(dir: BorrowedFd<'_>, name: &OsStr, owner: Owner, given: Owner) -> io::Result<()> {
    // The first in a directory speaks for those after it.
    if xattr(dir, NOTE_OF_LINKS)?.is_none() {
        match set(dir, NOTE_OF_LINKS, owner) {
            Err(_) if owner == given => {}
            set => set?,
        }
    }
    if noted(dir, NOTE_OF_LINKS).map_or(given, |noted| stood_in(given, noted)) == owner {
        remove(dir, &of_name(name))
    } else {
        set(dir, &of_name(name), owner)
    }
}

fn set(fd: BorrowedFd<'_>, attribute: &CStr, owner: Owner) -> io::Result<()> {
    let text = format!("{}:{}", owner.uid, owner.gid);
    match rustix::fs::fsetxattr(fd, attribute, text.as_bytes(), XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::NOTSUP) => {
            Err(wrong(owner, "is no id of this sandbox, and its file system keeps no attributes"))
        }
        Err(errno) => {
            let notes = xattr_names(fd)?.iter().filter(|name| is_note(name.to_bytes())).count();
            Err(no_room(errno, notes, owner))
        }
    }
}

/// Why there is no room for a note beside so many others: a full directory and a full disk are one error to the system.
fn no_room(errno: Errno, notes: usize, owner: Owner) -> io::Error {
    match errno {
        Errno::NOSPC | Errno::DQUOT if notes >= FEW_NOTES => io::Error::other(TooManyOwners(owner)),
        errno => errno.into(),
    }
}

fn remove(fd: BorrowedFd<'_>, attribute: &CStr) -> io::Result<()> {
    match rustix::fs::fremovexattr(fd, attribute) {
        Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whose a symlink or pipe is that seems to be `owner`'s.
fn of_link(dir: BorrowedFd<'_>, name: &OsStr, owner: Owner) -> Owner {
    let noted = noted(dir, &of_name(name)).or_else(|| noted(dir, NOTE_OF_LINKS));
    noted.map_or(owner, |noted| stood_in(owner, noted))
}

fn noted(fd: BorrowedFd<'_>, attribute: &CStr) -> Option<Owner> {
    let text = xattr(fd, attribute).ok().flatten()?;
    let (uid, gid) = std::str::from_utf8(&text).ok()?.split_once(':')?;
    Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

/// Whose a file is that `found` has, of which somebody is `noted`: each id counts where the last one stands in.
fn stood_in(found: Owner, noted: Owner) -> Owner {
    let one = |noted: u32, found: u32| if found == STAND_IN && noted != u32::MAX { noted } else { found };
    Owner { uid: one(noted.uid, found.uid), gid: one(noted.gid, found.gid) }
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
    use super::super::place::{Owners, match_root};
    use super::super::root::Root;
    use super::super::testing::RawTar;
    use super::super::unpack::{UnpackOptions, unpack_layer};
    use super::*;

    const NOTED: Owner = Owner { uid: 100_000, gid: 200_000 };
    const SOMEBODY: Owner = Owner { uid: 5, gid: STAND_IN };
    const NOBODY: Owner = Owner { uid: STAND_IN, gid: STAND_IN };

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
        let stand_in = NOBODY;
        set(file.as_fd(), &of_file(), NOTED).unwrap();
        set(dir.as_fd(), &of_name(OsStr::new("link")), NOTED).unwrap();
        assert_eq!(of_open(file.as_fd(), stand_in), NOTED);
        assert_eq!(of_open(file.as_fd(), SOMEBODY), Owner { uid: 5, gid: 200_000 });
        assert_eq!(of_open(file.as_fd(), Owner::ROOT), Owner::ROOT);
        let named = |name: &str, kind| of_named(dir.as_fd(), Path::new(name), kind, stand_in);
        assert_eq!((named("f", Kind::File), named("link", Kind::Symlink)), (NOTED, NOTED));
        assert_eq!((named("other", Kind::File), named("f", Kind::Fifo)), (stand_in, stand_in));
        assert!(super::super::node::xattrs(&file).unwrap().is_empty());
        // It is given to the last id indeed.
        remove(file.as_fd(), &of_file()).unwrap();
        assert_eq!(of_open(file.as_fd(), stand_in), stand_in);
        assert_eq!(Node::of(&file).unwrap().owner, Node::at(dir.as_fd(), "f").unwrap().unwrap().owner);
    }

    /// Whose symlinks of a directory are that seem to be of the last id.
    fn links<const N: usize>(dir: BorrowedFd<'_>, names: [&str; N]) -> [Owner; N] {
        names.map(|name| of_named(dir, Path::new(name), Kind::Symlink, NOBODY))
    }

    fn note_links(dir: BorrowedFd<'_>, links: &[(&str, Owner)]) {
        for (name, owner) in links {
            note_link(dir, OsStr::new(name), *owner, NOBODY).unwrap();
        }
    }

    #[test]
    fn a_directory_says_once_whose_its_symlinks_are_and_of_those_of_others_each() {
        let directory = tempfile::tempdir().unwrap();
        let dir = std::fs::File::open(directory.path()).unwrap();
        let dir = dir.as_fd();
        for number in 0..1000 {
            note_links(dir, &[(&format!("link-{number}"), NOTED)]);
        }
        assert_eq!(xattr_names(dir).unwrap().len(), 1);
        let other = Owner { uid: 100_000, gid: 300_000 };
        note_links(dir, &[("other", other), ("nobodys", NOBODY), ("link-1", other)]);
        assert_eq!(links(dir, ["link-0", "other", "nobodys", "link-1"]), [NOTED, other, NOBODY, other]);
        note_links(dir, &[("link-1", NOTED), ("other", NOTED)]);
        assert_eq!(links(dir, ["other", "link-1"]), [NOTED, NOTED]);
        assert_eq!(xattr_names(dir).unwrap().len(), 2);
    }

    #[test]
    fn a_directory_that_is_full_of_notes_is_told_from_a_disk_that_is_full() {
        let said = |errno, notes| no_room(errno, notes, NOTED);
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            assert!(TooManyOwners::is_in(&said(errno, FEW_NOTES)));
        }
        assert_eq!(said(Errno::NOSPC, 1).kind(), io::ErrorKind::StorageFull);
        assert_eq!(said(Errno::PERM, 40).kind(), io::ErrorKind::PermissionDenied);
        let text = said(Errno::NOSPC, 40).to_string();
        assert!(text.starts_with("owner 100000:200000 is no id of this sandbox, and no more"), "{text}");
    }

    #[test]
    fn what_a_directory_notes_is_noted_by_those_that_layers_above_have_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let root = |name: &str| {
            std::fs::create_dir(directory.path().join(name)).unwrap();
            Root::open(&directory.path().join(name)).unwrap()
        };
        let (lower, layer, upper) = (root("lower"), root("layer"), root("upper"));
        std::fs::create_dir_all(directory.path().join("lower/d/e")).unwrap();
        for path in ["", "d", "d/e"] {
            let dir = open_dir(lower.as_fd(), Path::new("./").join(path)).unwrap();
            note_links(dir.as_fd(), &[("link", NOTED), ("nobodys", NOBODY)]);
            set(dir.as_fd(), &of_file(), SOMEBODY).unwrap();
        }
        let tar = RawTar::default().dir("d/").file("d/e/file", "").file("other/file", "").end();
        let options = UnpackOptions { owners: Owners::Ignore, lowers: &[lower], ..UnpackOptions::default() };
        unpack_layer(&tar[..], &layer, None, &options).unwrap();
        let lowers = [layer];
        match_root(&upper, &lowers, Owners::Ignore).unwrap();
        for (tree, path) in [(&lowers[0], "."), (&lowers[0], "d"), (&lowers[0], "d/e"), (&upper, ".")] {
            let dir = open_dir(tree.as_fd(), path).unwrap();
            assert_eq!(links(dir.as_fd(), ["link", "nobodys"]), [NOTED, NOBODY], "{path}");
            assert_eq!(noted(dir.as_fd(), &of_file()), None, "{path}");
        }
        let other = open_dir(lowers[0].as_fd(), "other").unwrap();
        assert!(xattr_names(other.as_fd()).unwrap().is_empty());
    }
}
