//! Which ids of the host a sandbox's users have.
//!
//! The sandbox's root is never the host's root and never anybody's login: as root, a range of 65536 that belongs to
//! nobody is chosen once and kept, because the trees of the layer store are owned by it; an ordinary user is root in
//! the sandbox himself and has his `subuid` range for the others.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Pid, Uid, User};
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::SandboxError;
use super::error::Doing;

/// The number of ids in a sandbox.
const COUNT: u32 = 65_536;
/// Where a range is looked for as root: above what login tools give out, below the sign bit.
const CANDIDATES: Range<u32> = 0x2000_0000..0x6fff_0000;

/// The ids of a sandbox and who may write them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
    writer: MapWriter,
}

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MapWriter {
    /// We hold `CAP_SETUID` and `CAP_SETGID`.
    Ourselves,
    /// `newuidmap` and `newgidmap`.
    Programs,
    /// Nobody: they are in force.
    Nobody,
}

/// What is kept in the data directory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    first: u32,
    count: u32,
}

impl IdMap {
    /// Chooses the ids: as root the range kept in `file`, made if absent; as a user his subordinate ids.
    pub fn choose(file: &Path) -> Result<Self, SandboxError> {
        if !Uid::effective().is_root() {
            return Self::of_user();
        }
        let available = Extents::of_this_namespace()?;
        if available.is_whole() {
            return Ok(Self::from_range(kept_range(file)?));
        }
        // Already in a user namespace: its root is not the host's unless it says so, and its ids are all there are.
        if available.uids.iter().any(|extent| extent.inside == 0 && extent.outside == 0) {
            return Err(SandboxError::Ids {
                why: "this user namespace maps its root to the host's root".to_owned(),
                next: "start hephy outside of it, or in a pod with `hostUsers: false`".to_owned(),
            });
        }
        // What may mount in it needs no other.
        let writer = if super::ladder::may_mount() { MapWriter::Nobody } else { MapWriter::Ourselves };
        Ok(Self { uids: identity(&available.uids), gids: identity(&available.gids), writer })
    }

    /// Whether the ids are those of the namespace that the starter is in, so that no new one is to be made.
    pub(super) fn is_in_force(&self) -> bool {
        self.writer == MapWriter::Nobody
    }

    /// The ids that this process sees, as they are.
    #[must_use]
    pub fn in_force() -> Self {
        let all = vec![Extent { inside: 0, outside: 0, count: COUNT }];
        Self { uids: all.clone(), gids: all, writer: MapWriter::Nobody }
    }

    /// The host's user and group id of the sandbox's root, who owns what the sandbox writes.
    #[must_use]
    pub fn host_root(&self) -> (u32, u32) {
        let first = |extents: &[Extent]| {
            extents.iter().find(|extent| extent.inside == 0).map_or(u32::MAX, |extent| extent.outside)
        };
        (first(&self.uids), first(&self.gids))
    }

    /// The same ids one namespace further in, where they are called what they are called in the first.
    pub(super) fn nested(&self) -> Self {
        Self {
            uids: self.uids.iter().map(Extent::nested).collect(),
            gids: self.gids.iter().map(Extent::nested).collect(),
            writer: MapWriter::Ourselves,
        }
    }

    /// Gives the ids to a process that has just entered a new user namespace.
    pub(super) fn apply(&self, process: Pid) -> Result<(), SandboxError> {
        match self.writer {
            MapWriter::Ourselves => {
                write_map(process, "uid_map", &self.uids)?;
                write_map(process, "gid_map", &self.gids)
            }
            MapWriter::Programs => {
                run_map_program("newuidmap", process, &self.uids)?;
                run_map_program("newgidmap", process, &self.gids)
            }
            MapWriter::Nobody => Ok(()),
        }
    }

    fn from_range(first: u32) -> Self {
        let extents = vec![Extent { inside: 0, outside: first, count: COUNT }];
        Self { uids: extents.clone(), gids: extents, writer: MapWriter::Ourselves }
    }

    fn of_user() -> Result<Self, SandboxError> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let users = subordinate_range("/etc/subuid", name.as_deref(), uid.as_raw())?;
        let groups = subordinate_range("/etc/subgid", name.as_deref(), uid.as_raw())?;
        let extents = |own: u32, (first, count): (u32, u32)| {
            vec![
                Extent { inside: 0, outside: own, count: 1 },
                Extent { inside: 1, outside: first, count: count.min(COUNT - 1) },
            ]
        };
        Ok(Self {
            uids: extents(uid.as_raw(), users),
            gids: extents(gid.as_raw(), groups),
            writer: MapWriter::Programs,
        })
    }
}

impl Extent {
    fn nested(&self) -> Self {
        Self { outside: self.inside, ..*self }
    }

    fn range(&self) -> Range<u64> {
        u64::from(self.outside)..u64::from(self.outside) + u64::from(self.count)
    }
}

/// The largest range that `file` (`/etc/subuid`, `/etc/subgid`) gives a user.
pub(super) fn subordinate_range(
    file: &str,
    name: Option<&str>,
    uid: u32,
) -> Result<(u32, u32), SandboxError> {
    let lines = fs::read_to_string(file).unwrap_or_default();
    let own = subordinate_ranges(&lines)
        .filter(|(owner, _)| Some(*owner) == name || owner.parse() == Ok(uid))
        .map(|(_, extent)| (extent.outside, extent.count))
        .max_by_key(|(_, count)| *count);
    own.ok_or_else(|| {
        let user = name.map_or_else(|| uid.to_string(), ToOwned::to_owned);
        let flag = if file.ends_with("subuid") { "--add-subuids" } else { "--add-subgids" };
        let first = free_range(&lines).unwrap_or(100_000);
        SandboxError::Ids {
            why: format!("`{file}` has no line for `{user}`"),
            next: format!("run `sudo usermod {flag} {first}-{} {user}`", first + COUNT - 1),
        }
    })
}

fn free_range(lines: &str) -> Option<u32> {
    let end = subordinate_ranges(lines).map(|(_, extent)| extent.range().end).max()?;
    u32::try_from(end).ok().filter(|first| first.checked_add(COUNT).is_some())
}

fn subordinate_ranges(lines: &str) -> impl Iterator<Item = (&str, Extent)> {
    lines.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (outside, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((owner, Extent { inside: 0, outside, count }))
    })
}

fn kept_range(file: &Path) -> Result<u32, SandboxError> {
    match fs::read(file) {
        Ok(bytes) => {
            let damaged = |why: String| SandboxError::Damaged { path: file.to_owned(), why };
            let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
            if kept.count != COUNT || !CANDIDATES.contains(&kept.first) {
                return Err(damaged(format!("{} + {} is no range we choose", kept.first, kept.count)));
            }
            Ok(kept.first)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => choose_and_keep(file),
        Err(error) => Err(error).doing(|| format!("read `{}`", file.display())),
    }
}

fn choose_and_keep(file: &Path) -> Result<u32, SandboxError> {
    let taken = taken_ranges();
    let first = free_slot(&taken, rand::rng().random_range(0..slots())).ok_or_else(|| SandboxError::Ids {
        why: "every range of 65536 ids belongs to somebody".to_owned(),
        next: "remove lines from `/etc/subuid` and `/etc/subgid`".to_owned(),
    })?;
    let doing = || format!("write `{}`", file.display());
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(directory).doing(doing)?;
    let mut aside = tempfile::NamedTempFile::new_in(directory).doing(doing)?;
    serde_json::to_writer(&mut aside, &Kept { first, count: COUNT }).map_err(io::Error::from).doing(doing)?;
    aside.as_file_mut().flush().and_then(|()| aside.as_file().sync_all()).doing(doing)?;
    match aside.persist_noclobber(file) {
        Ok(_) => Ok(first),
        // Another process was first; its choice holds for both.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => kept_range(file),
        Err(error) => Err(error.error).doing(doing),
    }
}

fn slots() -> u32 {
    (CANDIDATES.end - CANDIDATES.start) / COUNT
}

fn free_slot(taken: &[Range<u64>], start: u32) -> Option<u32> {
    (0..slots()).map(|offset| CANDIDATES.start + (start + offset) % slots() * COUNT).find(|first| {
        let range = u64::from(*first)..u64::from(*first) + u64::from(COUNT);
        taken.iter().all(|other| other.end <= range.start || range.end <= other.start)
    })
}

fn taken_ranges() -> Vec<Range<u64>> {
    let mut taken = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let lines = fs::read_to_string(file).unwrap_or_default();
        taken.extend(subordinate_ranges(&lines).map(|(_, extent)| extent.range()));
    }
    for file in ["/etc/passwd", "/etc/group"] {
        let lines = fs::read_to_string(file).unwrap_or_default();
        let ids = lines.lines().filter_map(|line| line.split(':').nth(2)?.parse::<u64>().ok());
        taken.extend(ids.map(|id| id..id + 1));
    }
    taken
}

struct Extents {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
}

impl Extents {
    fn of_this_namespace() -> Result<Self, SandboxError> {
        let read = |file: &str| {
            fs::read_to_string(file).map(|text| parse_map(&text)).doing(|| format!("read `{file}`"))
        };
        Ok(Self { uids: read("/proc/self/uid_map")?, gids: read("/proc/self/gid_map")? })
    }

    fn is_whole(&self) -> bool {
        [&self.uids, &self.gids]
            .iter()
            .all(|extents| matches!(extents.as_slice(), [Extent { inside: 0, outside: 0, count: u32::MAX }]))
    }
}

fn parse_map(text: &str) -> Vec<Extent> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse);
            let mut next = || fields.next()?.ok();
            Some(Extent { inside: next()?, outside: next()?, count: next()? })
        })
        .collect()
}

fn identity(available: &[Extent]) -> Vec<Extent> {
    available
        .iter()
        .filter(|extent| extent.inside < COUNT)
        .map(|extent| Extent { count: extent.count.min(COUNT - extent.inside), ..extent.nested() })
        .collect()
}

fn write_map(process: Pid, file: &str, extents: &[Extent]) -> Result<(), SandboxError> {
    let lines: String = extents.iter().map(map_line).collect();
    let path = format!("/proc/{process}/{file}");
    fs::write(&path, lines).doing(|| format!("write `{path}`"))
}

fn map_line(extent: &Extent) -> String {
    format!("{} {} {}\n", extent.inside, extent.outside, extent.count)
}

fn run_map_program(program: &'static str, process: Pid, extents: &[Extent]) -> Result<(), SandboxError> {
    let mut command = Command::new(program);
    command.arg(process.to_string());
    for extent in extents {
        command.args([extent.inside, extent.outside, extent.count].map(|number| number.to_string()));
    }
    let output = command.stdin(Stdio::null()).output().doing(|| format!("run `{program}`"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(SandboxError::Program { program, output: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_range_is_passed_over_and_an_adjacent_one_is_not() {
        let first = u64::from(CANDIDATES.start);
        let taken = |range: Range<u64>| vec![range];
        assert_eq!(free_slot(&taken(first + 9..first + 10), 0), Some(CANDIDATES.start + COUNT));
        assert_eq!(free_slot(&taken(first + 65_536..first + 65_537), 0), Some(CANDIDATES.start));
    }

    #[test]
    fn the_search_goes_round_and_ends() {
        let all = 0..u64::from(u32::MAX);
        assert_eq!(free_slot(&[all], 5), None);
        let tail = u64::from(CANDIDATES.start + COUNT)..u64::from(u32::MAX);
        assert_eq!(free_slot(&[tail], slots() - 1), Some(CANDIDATES.start));
    }

    #[test]
    fn a_kept_range_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("data/idmap.json");
        let chosen = kept_range(&file).unwrap();
        assert_eq!(kept_range(&file).unwrap(), chosen);
        assert!(chosen >= CANDIDATES.start);
    }

    #[test]
    fn a_kept_range_that_would_be_the_hosts_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("idmap.json");
        fs::write(&file, r#"{"first":0,"count":65536}"#).unwrap();
        assert!(matches!(kept_range(&file), Err(SandboxError::Damaged { .. })));
    }

    #[test]
    fn subordinate_lines_are_read_and_rubbish_is_not() {
        let ranges: Vec<_> = subordinate_ranges("ada:100000:65536\nrubbish\n1001:165536:10\n").collect();
        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges.first().map(|(owner, extent)| (*owner, extent.outside)), Some(("ada", 100_000)));
        assert_eq!(free_range("ada:100000:65536\n"), Some(165_536));
    }

    #[test]
    fn a_namespace_with_few_ids_gives_what_it_has() {
        let extents = identity(&parse_map("         0 1965293568      65536\n 70000 5 9\n"));
        assert_eq!(extents, vec![Extent { inside: 0, outside: 0, count: COUNT }]);
    }
}
