//! What several builds, crashes and a full disk may not do to the store.

use std::time::Duration;

use super::super::compress::Compression;
use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    store: LayerStore,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(&dir.path().join("layers"), "0-1-1", None).unwrap();
    Fixture { dir, store }
}

impl Fixture {
    /// The same store, opened by another process.
    fn again(&self, boot: &str) -> LayerStore {
        LayerStore::open_in_boot(&self.dir.path().join("layers"), "0-1-1", None, boot).unwrap()
    }

    fn commit(&self, name: &str) -> Digest {
        let staged = self.store.stage().unwrap();
        std::fs::write(staged.tree().join("file"), name).unwrap();
        let diff_id = Digest::of(name);
        self.store.commit_tree(staged, &diff_id, TreeInfo { entries: 1, bytes: 1000 }).unwrap();
        diff_id
    }

    fn age(&self, diff_id: &Digest, seconds: u64) {
        let path = trees::record_of(&self.store.inner.trees.join(diff_id.hex()));
        let then = std::time::SystemTime::now() - Duration::from_secs(seconds);
        File::options().append(true).open(path).unwrap().set_modified(then).unwrap();
    }

    fn has(&self, diff_id: &Digest) -> bool {
        self.store.inner.trees.join(diff_id.hex()).exists()
    }

    fn staged(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("layers/tmp")).unwrap().count()
    }
}

const EVERYTHING: PrunePolicy = PrunePolicy { max_bytes: Some(0), max_age: None, mounts: false };

#[test]
fn a_tree_is_there_once_it_is_committed_and_not_before() {
    let fixture = fixture();
    let staged = fixture.store.stage().unwrap();
    std::fs::write(staged.tree().join("file"), "one").unwrap();
    let diff_id = Digest::of("one");
    assert_eq!(fixture.store.tree(&diff_id).unwrap(), None);
    let path = fixture.store.commit_tree(staged, &diff_id, TreeInfo::default()).unwrap();
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "one");
    assert_eq!(fixture.store.tree(&diff_id).unwrap(), Some(path));
    assert_eq!(fixture.staged(), 0);
}

#[test]
fn the_second_of_two_equal_trees_gives_way() {
    let fixture = fixture();
    let first = fixture.commit("one");
    let inode = |path: &Path| super::super::node::Node::of(File::open(path).unwrap()).unwrap().inode;
    let before = inode(&fixture.store.tree(&first).unwrap().unwrap());
    fixture.commit("one");
    assert_eq!(inode(&fixture.store.tree(&first).unwrap().unwrap()), before);
    assert_eq!(fixture.staged(), 0);
}

#[test]
fn a_tree_without_its_record_is_none_and_is_replaced() {
    let fixture = fixture();
    let diff_id = fixture.commit("one");
    let path = fixture.store.tree(&diff_id).unwrap().unwrap();
    std::fs::write(path.join("file"), "cut off by a crash").unwrap();
    std::fs::remove_file(trees::record_of(&path)).unwrap();
    assert_eq!(fixture.store.tree(&diff_id).unwrap(), None);
    fixture.commit("one");
    assert_eq!(std::fs::read_to_string(path.join("file")).unwrap(), "one");
    std::fs::write(trees::record_of(&path), "{\"info\":").unwrap();
    assert_eq!(fixture.store.tree(&diff_id).unwrap(), None);
}

#[test]
fn after_another_boot_only_settled_trees_are_trusted() {
    let fixture = fixture();
    let settled = fixture.commit("settled");
    fixture.store.settle().unwrap();
    let fresh = fixture.commit("fresh");
    let later = fixture.again("another boot");
    assert!(later.tree(&settled).unwrap().is_some());
    assert_eq!(later.tree(&fresh).unwrap(), None);
    assert!(fixture.again(&fixture.store.inner.boot).tree(&fresh).unwrap().is_some());
    later.prune(&PrunePolicy::default()).unwrap();
    assert!(fixture.has(&settled) && !fixture.has(&fresh));
}

#[test]
fn trees_of_another_id_map_are_not_seen() {
    let fixture = fixture();
    let diff_id = fixture.commit("one");
    let other = LayerStore::open(&fixture.dir.path().join("layers"), "0-2-2", None).unwrap();
    assert_eq!(other.tree(&diff_id).unwrap(), None);
}

#[test]
fn a_lease_keeps_layers_until_its_build_ends() {
    let fixture = fixture();
    let diff_id = fixture.commit("one");
    let lease = fixture.again("").lease().unwrap();
    lease.hold(&diff_id).unwrap();
    assert_eq!(fixture.store.prune(&EVERYTHING).unwrap(), Pruned::default());
    drop(lease);
    assert_eq!(fixture.store.prune(&EVERYTHING).unwrap().trees, 1);
    assert!(!fixture.has(&diff_id));
}

#[test]
fn a_tree_that_was_looked_up_by_a_lease_stays() {
    let fixture = fixture();
    let (one, two) = (fixture.commit("one"), fixture.commit("two"));
    let lease = fixture.store.lease().unwrap();
    assert!(lease.tree(&one).unwrap().is_some());
    assert!(lease.tree(&Digest::of("none")).unwrap().is_none());
    fixture.store.prune(&EVERYTHING).unwrap();
    assert!(fixture.has(&one) && !fixture.has(&two));
}

#[test]
fn the_lease_of_a_killed_build_holds_nothing() {
    let fixture = fixture();
    let diff_id = fixture.commit("one");
    std::fs::write(fixture.dir.path().join("layers/leases/lease-dead"), format!("{}\n", diff_id.hex()))
        .unwrap();
    assert_eq!(fixture.store.prune(&EVERYTHING).unwrap().trees, 1);
    assert_eq!(std::fs::read_dir(fixture.dir.path().join("layers/leases")).unwrap().count(), 0);
}

#[test]
fn a_running_app_keeps_its_layers_until_it_is_unpinned() {
    let fixture = fixture();
    let diff_id = fixture.commit("one");
    fixture.store.pin("hello--v1--web--1", &[diff_id]).unwrap();
    fixture.store.prune(&EVERYTHING).unwrap();
    assert!(fixture.has(&diff_id));
    fixture.store.unpin("hello--v1--web--1").unwrap();
    fixture.store.unpin("hello--v1--web--1").unwrap();
    fixture.store.prune(&EVERYTHING).unwrap();
    assert!(!fixture.has(&diff_id));
    assert!(matches!(fixture.store.pin("../x", &[]), Err(StoreError::Name(_))));
}

#[test]
fn the_longest_unused_go_first() {
    let fixture = fixture();
    let names = ["old", "older", "new"];
    let ids = names.map(|name| fixture.commit(name));
    for (id, age) in ids.iter().zip([50, 90, 10]) {
        fixture.age(id, age);
    }
    let one = 1000 + 4096;
    let policy = PrunePolicy { max_bytes: Some(2 * one), ..PrunePolicy::default() };
    assert_eq!(fixture.store.prune(&policy).unwrap(), Pruned { trees: 1, bytes: one, ..Pruned::default() });
    assert_eq!(ids.map(|id| fixture.has(&id)), [true, false, true]);
    let policy = PrunePolicy { max_age: Some(Duration::from_secs(30)), ..PrunePolicy::default() };
    fixture.store.prune(&policy).unwrap();
    assert_eq!(ids.map(|id| fixture.has(&id)), [false, false, true]);
}

#[test]
fn a_layer_remembers_its_blob_as_long_as_that_exists() {
    let fixture = fixture();
    let mut writer = fixture.store.blob_writer().unwrap();
    let compressed = super::super::compress_layer(&b"tar"[..], &mut writer, Compression::default()).unwrap();
    assert_eq!(fixture.store.compressed(&compressed.diff_id, Compression::default()), None);
    let path = fixture.store.commit_blob(writer, &compressed).unwrap();
    assert_eq!(Digest::of(std::fs::read(&path).unwrap()), compressed.digest);
    assert_eq!(
        fixture.store.compressed(&compressed.diff_id, Compression::default()),
        Some(compressed.clone())
    );
    assert_eq!(fixture.store.compressed(&compressed.diff_id, Compression::Gzip { level: 9 }), None);
    assert_eq!(fixture.store.blob(&compressed.digest), Some(path.clone()));
    std::fs::write(path, "cut").unwrap();
    assert_eq!(fixture.store.compressed(&compressed.diff_id, Compression::default()), None);
    assert_eq!(fixture.store.prune(&EVERYTHING).unwrap().blobs, 1);
    assert_eq!(fixture.store.blob(&compressed.digest), None);
}

#[test]
fn steps_are_kept_by_key_and_by_age() {
    let fixture = fixture();
    let key = Digest::of("key");
    assert_eq!(fixture.store.step(&key).unwrap(), None);
    fixture.store.put_step(&key, b"one").unwrap();
    fixture.store.put_step(&key, b"two").unwrap();
    assert_eq!(fixture.store.step(&key).unwrap().as_deref(), Some(&b"two"[..]));
    assert!(matches!(fixture.store.put_step(&key, &vec![0; 2 << 20]), Err(StoreError::RecordSize(_))));
    let policy = PrunePolicy { max_age: Some(Duration::ZERO), ..PrunePolicy::default() };
    assert_eq!(fixture.store.prune(&policy).unwrap().records, 1);
    assert_eq!(fixture.store.step(&key).unwrap(), None);
}

#[test]
fn what_a_killed_build_left_is_removed_and_what_a_living_one_makes_is_not() {
    let fixture = fixture();
    let living = fixture.store.stage().unwrap();
    let dead = fixture.dir.path().join("layers/tmp/stage-dead");
    std::fs::create_dir_all(dead.join("tree")).unwrap();
    std::fs::write(dead.join("lock"), "").unwrap();
    std::os::unix::fs::symlink(fixture.dir.path(), dead.join("tree/outside")).unwrap();
    fixture.store.prune(&PrunePolicy::default()).unwrap();
    assert!(!dead.exists() && living.tree().exists());
    drop(living);
    assert_eq!(fixture.staged(), 0);
}

#[test]
fn two_builds_do_not_make_one_layer_at_once() {
    let fixture = fixture();
    let diff_id = Digest::of("one");
    let lock = fixture.store.lock_layer(&diff_id).unwrap();
    let (store, again) = (fixture.store.clone(), fixture.store.clone());
    let second = std::thread::spawn(move || {
        let _lock = store.lock_layer(&diff_id).unwrap();
        store.tree(&diff_id).unwrap().is_some()
    });
    let staged = again.stage().unwrap();
    again.commit_tree(staged, &diff_id, TreeInfo::default()).unwrap();
    drop(lock);
    assert!(second.join().unwrap(), "the second finds what the first made");
}

#[test]
fn the_store_works_from_a_directory_that_cannot_be_reached_by_name() {
    let fixture = fixture();
    let diff_id = fixture.commit("one");
    let dir = File::open(fixture.dir.path().join("layers")).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir)));
    let store = LayerStore::open(&path, "0-1-1", None).unwrap();
    assert!(store.tree(&diff_id).unwrap().is_some());
    store.commit_tree(store.stage().unwrap(), &Digest::of("two"), TreeInfo::default()).unwrap();
    assert!(fixture.has(&Digest::of("two")));
}

#[test]
fn directories_belong_to_who_writes_the_trees() {
    if !super::super::testing::is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let writer = Owner { uid: 231_072, gid: 231_072 };
    LayerStore::open(dir.path(), "0-231072-65536", Some(writer)).unwrap();
    for name in ["trees/0-231072-65536", "tmp", "leases", "locks", "records"] {
        let found = super::super::node::Node::of(File::open(dir.path().join(name)).unwrap()).unwrap();
        assert_eq!((found.owner, found.mode), (writer, 0o755), "{name}");
    }
}
