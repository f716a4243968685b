//! The busybox base: one static program, a symlink for each of its names, and the few files that programs expect.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::BaseError;

/// Directories, with their modes.
const DIRECTORIES: [(&str, u32); 14] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

const FILES: [(&str, &str); 3] = [
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\nmail:x:8:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    ),
    ("etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"),
];

/// Much more than busybox has.
const MAX_PROGRAM_BYTES: u64 = 32 << 20;

/// Takes the program out of the tar of the package and writes the tar of the base beside it.
pub(super) fn rewrite(package: &Path, epoch: i64) -> Result<PathBuf, BaseError> {
    let program = program(package)?;
    let applets = applets(&program).ok_or(BaseError::Busybox("list of its names"))?;
    let path = package.with_extension("base.tar");
    let file = File::create(&path).map_err(BaseError::file("create", &path))?;
    write(BufWriter::new(file), &program, &applets, epoch).map_err(BaseError::file("write", &path))?;
    Ok(path)
}

fn program(package: &Path) -> Result<Vec<u8>, BaseError> {
    let file = File::open(package).map_err(BaseError::file("open", package))?;
    let read = || -> io::Result<Option<Vec<u8>>> {
        let mut archive = tar::Archive::new(BufReader::new(file));
        for entry in archive.entries()? {
            let entry = entry?;
            let path = entry.path()?;
            let path = path.strip_prefix(".").unwrap_or(&path);
            if path == Path::new("bin/busybox") || path == Path::new("usr/bin/busybox") {
                let mut program = Vec::new();
                entry.take(MAX_PROGRAM_BYTES).read_to_end(&mut program)?;
                return Ok(Some(program));
            }
        }
        Ok(None)
    };
    read().map_err(BaseError::file("read", package))?.ok_or(BaseError::Busybox("program"))
}

/// The names that the program goes by: its own table, sorted, each ended by a zero byte, beginning with `[` and `[[`. The
/// program itself may be another architecture's, and cannot be asked.
fn applets(program: &[u8]) -> Option<Vec<String>> {
    let start = b"\0[\0[[\0";
    let at = program.windows(start.len()).position(|window| window == start)?;
    let mut applets = Vec::new();
    for name in program[at + 1..].split(|&byte| byte == 0) {
        let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"[_-.".contains(byte);
        if name.is_empty() || name.len() > 40 || !name.iter().all(good) {
            break;
        }
        applets.push(String::from_utf8_lossy(name).into_owned());
    }
    let complete = ["cat", "ls", "mount", "sh"].iter().all(|known| applets.iter().any(|name| name == known));
    complete.then_some(applets)
}

fn write(out: impl Write, program: &[u8], applets: &[String], epoch: i64) -> io::Result<()> {
    let header = |kind, mode, size| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(u64::try_from(epoch).unwrap_or_default());
        header
    };
    let mut tar = Builder::new(out);
    for (path, mode) in DIRECTORIES {
        tar.append_data(&mut header(EntryType::Directory, mode, 0), format!("{path}/"), io::empty())?;
    }
    for (path, content) in FILES {
        tar.append_data(
            &mut header(EntryType::Regular, 0o644, content.len() as u64),
            path,
            content.as_bytes(),
        )?;
    }
    tar.append_data(&mut header(EntryType::Regular, 0o755, program.len() as u64), "bin/busybox", program)?;
    for name in applets.iter().filter(|name| *name != "busybox") {
        tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), format!("bin/{name}"), "busybox")?;
    }
    // What the first line of a script names.
    tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), "usr/bin/env", "../../bin/busybox")?;
    tar.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_read_from_the_program() {
        let program = b"\x7fELF text\0[ not\0\0[\0[[\0acpid\0cat\0ls\0mount\0sh\0zcat\0\0more".to_vec();
        let names = ["[", "[[", "acpid", "cat", "ls", "mount", "sh", "zcat"];
        assert_eq!(applets(&program).unwrap(), names);
        assert_eq!(applets(b"\0[\0[[\0cat\0\0"), None, "a table that is cut is none");
        assert_eq!(applets(b"no table"), None);
    }

    #[test]
    fn the_same_program_gives_the_same_tar() {
        let applets = ["cat".to_owned(), "sh".to_owned()];
        let tar = |epoch| {
            let mut out = Vec::new();
            write(&mut out, b"program", &applets, epoch).unwrap();
            out
        };
        assert_eq!(tar(5), tar(5));
        let bytes = tar(5);
        let mut archive = tar::Archive::new(&bytes[..]);
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().unwrap() == Path::new("bin/sh"))
            .map(|entry| (entry.link_name().unwrap().unwrap().into_owned(), entry.header().mtime().unwrap()))
            .collect();
        assert_eq!(found, [(PathBuf::from("busybox"), 5)]);
    }
}
