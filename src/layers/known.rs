//! What is known of the content of files that were read before, as git's index knows it: what the system says of a file,
//! and the digest of what was in it.
//!
//! A file is taken to hold what it held if it is the same inode of the same device with the same size, time of change and
//! time of status change, to the nanosecond; the last is set by the kernel alone. A file that changed shortly before it was
//! read is not remembered: it may change once more without another time. Nor is anything of a file system that is not known
//! to keep such times. What is remembered may be lost at any time, and then files are read again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Stat;

/// What a file of records begins with, for this form of them.
const MAGIC: &[u8; 16] = b"hephy contents 1";

/// Before the records: the magic, and a checksum of the records.
const HEAD_BYTES: usize = MAGIC.len() + 4;

/// Device, inode, size, two times of seconds and nanoseconds.
const STAMP_BYTES: usize = 8 * 3 + 12 * 2;
/// Of these, device and inode.
const FILE_BYTES: usize = 16;

/// The digest of a file's content.
pub(super) type ContentDigest = [u8; 32];

const RECORD_BYTES: usize = STAMP_BYTES + size_of::<ContentDigest>();

/// The largest file of records that is read: of a million files.
const MAX_BYTES: u64 = (RECORD_BYTES as u64) << 20;

/// How long a file has not changed before what is in it is remembered: longer than the step of any clock that file times are
/// taken from, which is a second where a file system has no more room.
const SETTLED: Duration = Duration::from_secs(2);

/// How many records that nobody asked for are kept beside those that somebody did.
const MAX_UNUSED: usize = 100_000;

/// The file systems that are known to give a file that is written a new time of status change: ext, XFS, Btrfs, overlay,
/// F2FS, ZFS, bcachefs (`statfs(2)`). Not tmpfs: what is written through a mapping there gives none, ever.
const FILE_SYSTEMS: [u64; 7] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630, 0xf2f5_2010, 0x2fc1_2fc1, 0xca45_1a4e];

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp([u8; STAMP_BYTES]);

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        let mut stamp = [0; STAMP_BYTES];
        let fields = [
            stat.st_dev.to_be_bytes(),
            stat.st_ino.to_be_bytes(),
            stat.st_size.to_be_bytes(),
            stat.st_mtime.to_be_bytes(),
            stat.st_ctime.to_be_bytes(),
        ];
        for (place, field) in stamp.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field);
        }
        for (place, nanoseconds) in stamp[40..]
            .chunks_exact_mut(4)
            .zip([nanoseconds(stat.st_mtime_nsec), nanoseconds(stat.st_ctime_nsec)])
        {
            place.copy_from_slice(&nanoseconds.to_be_bytes());
        }
        Self(stamp)
    }

    /// The device and the inode.
    fn file(&self) -> &[u8] {
        &self.0[..FILE_BYTES]
    }

    fn device(&self) -> &[u8] {
        &self.0[..8]
    }

    /// The later of the two times.
    fn last_change(&self) -> Option<SystemTime> {
        let seconds = |at: usize| Some(i64::from_be_bytes(self.0.get(at..at + 8)?.try_into().ok()?));
        let part = |at: usize| Some(u32::from_be_bytes(self.0.get(at..at + 4)?.try_into().ok()?));
        let time = (seconds(24)?, part(40)?).max((seconds(32)?, part(44)?));
        UNIX_EPOCH.checked_add(Duration::new(u64::try_from(time.0).ok()?, time.1))
    }
}

// `st_mtime_nsec` is unsigned on x86-64 and signed elsewhere.
fn nanoseconds(count: impl TryInto<u32>) -> u32 {
    count.try_into().unwrap_or_default()
}

/// What is known of the files in one directory.
#[derive(Debug, Default)]
pub struct KnownContents {
    /// Where it is kept; nowhere if the system does not say which directory this is.
    place: Option<PathBuf>,
    /// Records, sorted by their stamps.
    records: Vec<u8>,
    /// Which of them were asked for.
    used: Vec<AtomicBool>,
    learned: Mutex<BTreeMap<Stamp, ContentDigest>>,
    /// The device whose files can be known; none if it cannot be told when they change.
    device: Option<[u8; 8]>,
}

impl KnownContents {
    /// What is known of the files in `directory`, as far as a file in `records` says so. One that is damaged says nothing.
    ///
    /// It has the name of the directory's inode: what is said of files that are gone is replaced when their directory is.
    pub(super) fn of(directory: BorrowedFd<'_>, records: &Path) -> Self {
        let Ok(stat) = rustix::fs::fstat(directory) else { return Self::default() };
        let place = records.join(format!("{:x}-{:x}", stat.st_dev, stat.st_ino));
        let device = keeps_times(directory).then(|| stat.st_dev.to_be_bytes());
        let records = device.and_then(|_| read(&place)).unwrap_or_default();
        Self::new(place, records, device)
    }

    fn new(place: PathBuf, records: Vec<u8>, device: Option<[u8; 8]>) -> Self {
        let used = records.chunks_exact(RECORD_BYTES).map(|_| AtomicBool::new(false)).collect();
        Self { place: Some(place), records, used, learned: Mutex::default(), device }
    }

    /// The digest of a file's content, if it is known.
    pub(super) fn get(&self, stamp: &Stamp) -> Option<ContentDigest> {
        self.device.filter(|device| device == stamp.device())?;
        let (mut low, mut high) = (0, self.used.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let (found, digest) = self.record(middle)?.split_at(STAMP_BYTES);
            match found.cmp(&stamp.0) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => {
                    self.used.get(middle)?.store(true, Ordering::Relaxed);
                    return digest.try_into().ok();
                }
            }
        }
        self.learned().get(stamp).copied()
    }

    /// Remembers what was read of a file whose stamp was the same before and after that. `since` is when the reading began.
    pub(super) fn learn(&self, stamp: Stamp, digest: ContentDigest, since: SystemTime) {
        let is_settled = stamp
            .last_change()
            .is_some_and(|changed| since.duration_since(changed).is_ok_and(|age| age > SETTLED));
        if is_settled && self.device.is_some_and(|device| device == stamp.device()) {
            self.learned().insert(stamp, digest);
        }
    }

    /// Writes what is known to where it is kept, if something was learned.
    pub fn keep(&self) -> io::Result<()> {
        let learned = self.learned();
        let place = self.place.as_ref().filter(|_| !learned.is_empty());
        let Some((place, directory)) = place.and_then(|place| Some((place, place.parent()?))) else {
            return Ok(());
        };
        let content = self.with(&learned);
        drop(learned);
        let mut crc = flate2::Crc::new();
        crc.update(&content);
        // For this user alone: a digest tells of a file that nobody else may read.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&[&MAGIC[..], &crc.sum().to_be_bytes()].concat())?;
        file.write_all(&content)?;
        file.persist(place).map_err(|error| error.error)?;
        Ok(())
    }

    /// The records with what was learned: none twice of one file, and not too many that nobody asked for.
    fn with(&self, learned: &BTreeMap<Stamp, ContentDigest>) -> Vec<u8> {
        let is_used = |index: usize| self.used.get(index).is_some_and(|used| used.load(Ordering::Relaxed));
        let unused = (0..self.used.len()).filter(|index| !is_used(*index)).count();
        let mut all = Vec::with_capacity(self.records.len() + learned.len() * RECORD_BYTES);
        let mut learned = learned.iter().peekable();
        for (index, record) in self.records.chunks_exact(RECORD_BYTES).enumerate() {
            let file = &record[..FILE_BYTES];
            while let Some((stamp, digest)) = learned.next_if(|(stamp, _)| stamp.file() < file) {
                all.extend_from_slice(&stamp.0);
                all.extend_from_slice(digest);
            }
            let is_replaced = learned.peek().is_some_and(|(stamp, _)| stamp.file() == file);
            if !is_replaced && (is_used(index) || unused <= MAX_UNUSED) {
                all.extend_from_slice(record);
            }
        }
        for (stamp, digest) in learned {
            all.extend_from_slice(&stamp.0);
            all.extend_from_slice(digest);
        }
        all
    }

    fn record(&self, index: usize) -> Option<&[u8]> {
        self.records.get(index * RECORD_BYTES..(index + 1) * RECORD_BYTES)
    }

    fn learned(&self) -> std::sync::MutexGuard<'_, BTreeMap<Stamp, ContentDigest>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keeps_times(directory: BorrowedFd<'_>) -> bool {
    #[expect(clippy::cast_sign_loss, reason = "a number that names a file system, in four bytes")]
    let kind = rustix::fs::fstatfs(directory).map(|system| (system.f_type as u64) & 0xffff_ffff);
    kind.is_ok_and(|kind| FILE_SYSTEMS.contains(&kind))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let mut head = [0; HEAD_BYTES];
    (&file).read_exact(&mut head).ok()?;
    let records_bytes = size.checked_sub(HEAD_BYTES as u64).filter(|bytes| *bytes <= MAX_BYTES)?;
    let mut records = Vec::with_capacity(usize::try_from(records_bytes).ok()?);
    file.take(records_bytes).read_to_end(&mut records).ok()?;
    let mut crc = flate2::Crc::new();
    crc.update(&records);
    let is_whole = head[..MAGIC.len()] == MAGIC[..]
        && head[MAGIC.len()..] == crc.sum().to_be_bytes()
        && records.len().is_multiple_of(RECORD_BYTES);
    is_whole.then_some(records)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    struct Place {
        files: tempfile::TempDir,
        records: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Self { files: tempfile::tempdir().unwrap(), records: tempfile::tempdir().unwrap() }
        }

        /// Whatever file system the tests are on.
        fn known(&self) -> KnownContents {
            let directory = File::open(self.files.path()).unwrap();
            let known = KnownContents::of(directory.as_fd(), self.records.path());
            let device = Some(rustix::fs::fstat(&directory).unwrap().st_dev.to_be_bytes());
            let place = known.place.unwrap();
            let records = read(&place).unwrap_or_default();
            KnownContents::new(place, records, device)
        }

        fn stamp(&self, name: &str) -> Stamp {
            Stamp::of(&rustix::fs::stat(self.files.path().join(name)).unwrap())
        }

        fn file(&self, name: &str) -> Stamp {
            fs::write(self.files.path().join(name), name).unwrap();
            self.stamp(name)
        }
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_mins(1)
    }

    #[test]
    fn what_was_learned_is_known_afterwards_and_by_the_next_build() {
        let place = Place::new();
        let stamps: Vec<Stamp> = (0..40).map(|number| place.file(&format!("f{number}"))).collect();
        let known = place.known();
        for (number, stamp) in stamps.iter().enumerate() {
            known.learn(*stamp, [u8::try_from(number).unwrap(); 32], later());
        }
        known.keep().unwrap();
        let unknown = place.file("other");
        for known in [known, place.known()] {
            for (number, stamp) in stamps.iter().enumerate() {
                assert_eq!(known.get(stamp), Some([u8::try_from(number).unwrap(); 32]));
            }
            assert_eq!(known.get(&unknown), None);
        }
    }

    #[test]
    fn a_file_is_not_known_once_anything_of_it_changed_that_a_write_changes() {
        let place = Place::new();
        let stamp = place.file("f");
        let path = place.files.path().join("f");
        let known = place.known();
        known.learn(stamp, [1; 32], later());
        // The same size, and the time of change put back: the time of status change tells.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        while place.stamp("f") == stamp {
            fs::write(&path, "g").unwrap();
            File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), modified);
        assert_eq!((known.get(&stamp), known.get(&place.stamp("f"))), (Some([1; 32]), None));
        known.keep().unwrap();
        // What is learned of a file takes the place of what was known of it.
        let known = place.known();
        known.learn(place.stamp("f"), [2; 32], later());
        known.keep().unwrap();
        let known = place.known();
        assert_eq!((known.get(&place.stamp("f")), known.get(&stamp)), (Some([2; 32]), None));
        // Another file of the same name.
        fs::remove_file(&path).unwrap();
        fs::write(place.files.path().join("between"), "").unwrap();
        assert_eq!(known.get(&place.file("f")), None);
    }

    #[test]
    fn a_file_that_changed_just_before_it_was_read_is_not_remembered() {
        let place = Place::new();
        let stamp = place.file("f");
        let changed = stamp.last_change().unwrap();
        let known = place.known();
        for since in [changed - Duration::from_secs(9), changed, changed + SETTLED] {
            known.learn(stamp, [1; 32], since);
            assert_eq!(known.get(&stamp), None);
        }
        known.learn(stamp, [1; 32], changed + SETTLED + Duration::from_nanos(1));
        assert_eq!(known.get(&stamp), Some([1; 32]));
    }

    #[test]
    fn a_device_whose_times_are_not_known_has_no_known_files() {
        let place = Place::new();
        let stamp = place.file("f");
        let mut known = place.known();
        known.learn(stamp, [1; 32], later());
        for device in [None, Some([0xff; 8])] {
            known.device = device;
            assert_eq!(known.get(&stamp), None);
            known.learn(stamp, [2; 32], later());
        }
        known.device = Some(stamp.device().try_into().unwrap());
        assert_eq!(known.get(&stamp), Some([1; 32]));
        assert!(!keeps_times(File::open("/proc").unwrap().as_fd()));
    }

    #[test]
    fn records_that_are_damaged_say_nothing() {
        let place = Place::new();
        let stamp = place.file("f");
        let known = place.known();
        known.learn(stamp, [1; 32], later());
        known.keep().unwrap();
        let path = known.place.unwrap();
        let whole = fs::read(&path).unwrap();
        let changes: [fn(&mut Vec<u8>); 5] = [
            |bytes| bytes.truncate(30),
            |bytes| bytes.truncate(HEAD_BYTES - 1),
            |bytes| bytes.push(0),
            |bytes| *bytes.last_mut().unwrap() ^= 1,
            |bytes| bytes[0] ^= 1,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut damaged = whole.clone();
            change(&mut damaged);
            fs::write(&path, damaged).unwrap();
            assert_eq!(place.known().get(&stamp), None, "{number}");
        }
        fs::write(&path, &whole).unwrap();
        assert_eq!(place.known().get(&stamp), Some([1; 32]));
    }

    #[test]
    fn of_records_that_nobody_asks_for_a_number_stays() {
        let place = Place::new();
        let (one, two) = (place.file("one"), place.file("two"));
        let mut record = [&one.0[..], &[1; 32]].concat();
        for number in 0..=MAX_UNUSED as u64 {
            let mut other = one;
            other.0[..8].copy_from_slice(&u64::MAX.to_be_bytes());
            other.0[8..16].copy_from_slice(&number.to_be_bytes());
            record.extend([&other.0[..], &[0; 32]].concat());
        }
        let empty = place.known();
        let known = KnownContents::new(empty.place.unwrap(), record, empty.device);
        assert_eq!(known.get(&one), Some([1; 32]));
        known.learn(two, [2; 32], later());
        known.keep().unwrap();
        let kept = fs::metadata(known.place.as_ref().unwrap()).unwrap();
        assert_eq!((kept.len(), kept.mode() & 0o777), ((HEAD_BYTES + 2 * RECORD_BYTES) as u64, 0o600));
        let known = place.known();
        assert_eq!((known.get(&one), known.get(&two)), (Some([1; 32]), Some([2; 32])));
    }
}
