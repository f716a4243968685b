//! An upper directory made what its layer says.
//!
//! A step leaves more in it than it changed: directories that it went through, files that it opened to write and did not.
//! They equal what is below, so the layer does not say them; but the tree of a layer is laid over whatever another image has
//! below. So is a directory that was made anew: it hides all that was there, and the layer says what that was by its names.

use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::io::Errno;

use super::diff::Change;
use super::error::{AtPath as _, FileError};
use super::node::{OPAQUE_XATTR, names, open_dir};
use super::root::{Root, remove};
use super::unpack::make_whiteout;

/// Removes from `upper` what is not among its changes, and hides there what they say is gone, and nothing else.
pub fn strip(changes: &[Change], upper: &Root) -> Result<(), FileError> {
    let said: HashSet<&Path> = changes.iter().map(|change| change.path.as_path()).collect();
    strip_directory(upper, Path::new(""), &said)?;
    // What is below a directory comes after it, and some of these are directories.
    for change in changes.iter().filter(|change| change.node.is_some_and(|node| node.is_directory())) {
        if !change.path.as_os_str().is_empty() {
            strip_directory(upper, &change.path, &said)?;
        }
    }
    for deleted in changes.iter().filter(|change| change.node.is_none()) {
        hide(upper, &deleted.path)?;
    }
    Ok(())
}

fn hide(upper: &Root, path: &Path) -> Result<(), FileError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let dir = open_dir(upper.as_fd(), parent).at("open directory", parent)?;
    match make_whiteout(dir.as_fd(), name) {
        // It is hidden already.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).at("hide", path),
    }
}

fn strip_directory(upper: &Root, path: &Path, said: &HashSet<&Path>) -> Result<(), FileError> {
    let dir = open_dir(upper.as_fd(), path).at("open directory", path)?;
    match rustix::fs::fremovexattr(&dir, OPAQUE_XATTR) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno).at("change attributes of", path),
    }
    for name in names(&dir).at("list", path)? {
        let child = path.join(&name);
        if !said.contains(child.as_path()) {
            remove(dir.as_fd(), &name).at("remove", &child)?;
        }
    }
    Ok(())
}
