//! Servers with empty disks: what a push makes them fetch from the registry, and what a clone does.
//!
//! The stock `git` client pushes to and clones from servers that share a registry, each with a disk of its own. What comes
//! from the registry to each is counted.

mod registry;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hephy::git::{self, Limits, Received, Refs, Verdict};
use hephy::model::{App, AppName, CommitId, ObjectName, RefName, Store, store};
use hephy::push::{Extent, Sources};
use hephy::store::DirectoryStore;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use self::registry::{Counted, Registry};
use crate::git::server::{Client, git_request};

/// A store, a registry, and an app without a commit.
struct Platform {
    directory: TempDir,
    store: Arc<dyn Store>,
    registry: Registry,
    app: AppName,
}

/// A server with a disk of its own.
struct Receiver {
    url: String,
    sources: Arc<Sources>,
    registry: Counted,
}

impl Platform {
    async fn new(registry: Registry) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(DirectoryStore::open(&directory.path().join("state")).unwrap());
        let app: AppName = "hello".parse().unwrap();
        let object = App::new(app.clone(), "ada".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH);
        store::create(&*store, object).await.unwrap();
        Self { directory, store, registry, app }
    }

    /// A server whose disk is empty, and which fetches packs whole that have no more than so many bytes.
    async fn receiver(&self, name: &str, near_bytes: u64) -> Receiver {
        let registry = Counted::start(self.registry.address).await;
        let place = self.registry.place(registry.address);
        let client = place.client(Duration::from_hours(1)).unwrap();
        let sources = Sources::shared(self.directory.path().join(name), client, place).near(near_bytes);
        let sources = sources.young(Duration::ZERO);
        let sources = Arc::new(sources);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("git://{}/hello", listener.local_addr().unwrap());
        let (store, app, shared) = (Arc::clone(&self.store), self.app.clone(), Arc::clone(&sources));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (store, app, sources) = (Arc::clone(&store), app.clone(), Arc::clone(&shared));
                tokio::spawn(async move { serve(stream, &sources, &*store, &app).await });
            }
        });
        Receiver { url, sources, registry }
    }

    async fn object(&self) -> App {
        store::require::<App>(&*self.store, &ObjectName::of(&self.app)).await.unwrap().object
    }

    async fn branch(&self, name: &str) -> Option<CommitId> {
        self.object().await.refs.get(&RefName::branch(name).unwrap()).copied()
    }

    /// The files of a commit as a build gets them.
    async fn source(&self, receiver: &Receiver, commit: CommitId) -> Files {
        let repository = receiver.sources.open_in_part(&*self.store, &self.app).await.unwrap();
        repository.bring_files(commit).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files = directory.path().join("files");
        let read = files.clone();
        tokio::task::spawn_blocking(move || {
            let commit = repository.commit(commit).unwrap();
            commit.survey().unwrap();
            commit.export(&read).unwrap();
        })
        .await
        .unwrap();
        files_of(&files)
    }

    async fn extent(&self, receiver: &Receiver) -> Extent {
        receiver.sources.extent(&*self.store, &self.app).await.unwrap()
    }
}

/// As a server has it, with every ref accepted.
async fn serve(mut stream: TcpStream, sources: &Sources, store: &dyn Store, app: &AppName) {
    let request = git_request(&mut stream).await;
    let name = ObjectName::of(app);
    let refs: Refs = store::require::<App>(store, &name).await.unwrap().object.refs;
    let (mut reader, writer) = stream.split();
    if request.starts_with("git-upload-pack ") {
        let (protocol, head) = (Some("version=2"), RefName::branch("main").unwrap());
        let shown = git::Shown { refs: &refs, head: &head, protocol, idle: Duration::from_mins(1) };
        let repository = sources.open(store, app).await.unwrap();
        git::upload_pack(&repository, shown, reader, writer).await.unwrap();
        return;
    }
    let repository = sources.open_in_part(store, app).await.unwrap();
    let received = git::receive_pack(&repository, &refs, &Limits::default(), &mut reader, writer).await;
    let Ok(Received::Push(push, reporter)) = received else {
        sources.open(store, app).await.unwrap();
        return;
    };
    for command in &push.commands {
        let commit = push.quarantine.commit(command.commit.unwrap()).unwrap();
        assert_eq!(Some(commit.id()), command.commit);
    }
    sources.keep(store, app, &push.quarantine.packs().unwrap()).await.unwrap();
    let tips: Vec<_> = push.commands.iter().filter_map(|command| command.new).collect();
    let shallow = push.quarantine.migrate(&tips).unwrap();
    let moved = store::modify(store, &name, |app: &mut App| {
        app.shallow.clone_from(&shallow);
        for command in &push.commands {
            app.refs.insert(command.name.clone(), command.new.unwrap());
        }
        Ok::<_, store::StoreError>(())
    });
    moved.await.unwrap();
    reporter
        .finish(push.commands.into_iter().map(|command| (command.name, Verdict::Accepted)))
        .await
        .unwrap();
}

/// Paths, whether the owner may run it, and content.
type Files = BTreeMap<PathBuf, (bool, Vec<u8>)>;

fn files_of(directory: &Path) -> Files {
    use std::os::unix::fs::PermissionsExt as _;
    let entries =
        walkdir::WalkDir::new(directory).into_iter().filter_entry(|entry| entry.file_name() != ".git");
    let files = entries.map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    files
        .map(|entry| {
            let runs = entry.metadata().unwrap().permissions().mode() & 0o100 != 0;
            let path = entry.path().strip_prefix(directory).unwrap().to_owned();
            (path, (runs, std::fs::read(entry.path()).unwrap()))
        })
        .collect()
}

/// What nothing can compress, another for each seed.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = vec![0; bytes];
    for eight in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        eight.copy_from_slice(&state.to_le_bytes());
    }
    noise
}

/// Lines of which each `version` has a few of its own.
fn text(lines: u64, version: u64) -> String {
    let number = |line: u64| if line % 61 == version % 61 { version } else { line * 7919 % 9973 };
    (0..lines).map(|line| format!("line {line}, {}\n", number(line))).collect()
}

/// A working copy with a long history of large files that are gone, and several hundred small ones.
fn working_copy(url: &str, large_files: u64, large_bytes: usize) -> Client {
    let client = Client::of(url);
    // The test is not one of how fast git compresses.
    client.git(&["config", "core.compression", "0"]);
    std::fs::write(client.path.join(".git/info/attributes"), "*.bin -delta\n").unwrap();
    for file in 0..300 {
        client.write(&format!("src/{}/file-{file}.txt", file % 17), text(40, file));
    }
    client.write("run.sh", "#!/bin/sh\n");
    std::os::unix::fs::symlink("run.sh", client.path.join("link")).unwrap();
    client.git(&["add", "-A"]);
    client.git(&["update-index", "--chmod=+x", "run.sh"]);
    for version in 0..large_files {
        client.write("src/often.txt", text(2000, version));
        client.commit(&format!("media/{}.bin", version % 3), noise(version, large_bytes));
    }
    client.git(&["rm", "-rq", "media"]);
    client.commit("src/often.txt", text(2000, large_files));
    client
}

const MB: u64 = 1_000_000;

/// A push of a line to a server with an empty disk, of a repository of 25 × `large_bytes`: the bytes that it fetches.
#[expect(clippy::print_stderr, reason = "what was measured is of interest")]
async fn one_line_push(registry: Registry, large_bytes: usize) {
    let platform = Platform::new(registry).await;
    let first = platform.receiver("first", 16 * MB).await;
    let client = working_copy(&first.url, 25, large_bytes);
    client.git_async(&["push", "-q", "deis", "main"]).await;
    let repository_bytes = 25 * large_bytes as u64;

    let second = platform.receiver("second", 16 * MB).await;
    client.git(&["remote", "set-url", "deis", &second.url]);
    client.write("src/often.txt", text(2001, 25));
    let commit = client.commit("src/3/file-3.txt", text(41, 3));
    let before = Instant::now();
    client.git_async(&["push", "-q", "deis", "main"]).await;
    let pushed = (second.registry.bytes(), before.elapsed());
    assert_eq!(platform.branch("main").await, Some(commit));
    let source = platform.source(&second, commit).await;
    let built = (second.registry.bytes(), before.elapsed());
    assert_eq!(source, files_of(&client.path));
    assert!(matches!(platform.extent(&second).await, Extent::Part { packs: 2 }));
    assert!(
        built.0 < repository_bytes / 20,
        "{} of {repository_bytes} bytes were fetched, {} of them for the push",
        built.0,
        pushed.0
    );
    eprintln!("of {repository_bytes} bytes: push {pushed:?}, source {built:?}");

    // From this server a clone gets everything, and the other one has the push.
    for receiver in [&second, &first] {
        let before = (receiver.registry.bytes(), Instant::now());
        let clone = Client::clone_from(&receiver.url, &[]).await;
        eprintln!("clone: {} bytes, {:?}", receiver.registry.bytes() - before.0, before.1.elapsed());
        assert_eq!(clone.id("HEAD"), commit);
        assert_eq!(files_of(&clone.path), source);
        clone.git(&["fsck", "--full", "--strict"]);
        assert_eq!(clone.git(&["rev-list", "--objects", "--all", "--count"]), {
            client.git(&["rev-list", "--objects", "HEAD", "--count"])
        });
        assert_eq!(platform.extent(receiver).await, Extent::Whole);
    }
    assert!(second.registry.bytes() > repository_bytes, "the clone needed all of it");
    let left = std::fs::read_dir(platform.directory.path().join("second/hello.git")).unwrap().flatten();
    let brought = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("brought-"));
    assert_eq!(brought.count(), 0, "what was brought is of no use any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_a_line_to_an_empty_disk_fetches_little_of_a_large_repository() {
    one_line_push(Registry::ours().await, 8_500_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_of_a_line_fetches_little_from_the_reference_registry() {
    if let Some(registry) = Registry::reference() {
        one_line_push(registry, 3_000_000).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures with a gigabyte"]
async fn a_push_of_a_line_to_a_repository_of_a_gigabyte() {
    one_line_push(Registry::ours().await, 40_000_000).await;
}

/// The pack of a file in 120 versions, each a difference from the one before, and of noise that no commit of late has.
///
/// Bases are named by where they are, or by their ids.
fn chain(client: &Client, by_offset: bool) -> git::Pack {
    client.commit("noise", noise(1, 3_000_000));
    client.git(&["rm", "-q", "noise"]);
    for version in 0..120 {
        client.commit("file.txt", text(600, version));
    }
    let exported = client.path.join("exported");
    let output = client.command(&["fast-export", "main"]).output().unwrap();
    std::fs::write(&exported, output.stdout).unwrap();
    // It makes each version a difference from the one before, where a push would have made a tree of them.
    let deep = client.path.join("../deep.git");
    let git_dir = format!("--git-dir={}", deep.display());
    client.git(&[&git_dir, "init", "-q", "--bare"]);
    let mut import = client.command(&[&git_dir, "fast-import", "--quiet", "--depth=4000"]);
    assert!(import.stdin(std::fs::File::open(&exported).unwrap()).status().unwrap().success());
    std::fs::remove_file(exported).unwrap();
    let bases = format!("repack.useDeltaBaseOffset={by_offset}");
    client.git(&[&git_dir, "-c", &bases, "repack", "-adq", "--depth=4000"]);
    let packs = std::fs::read_dir(deep.join("objects/pack")).unwrap().map(|entry| entry.unwrap().path());
    let pack = packs.into_iter().find(|file| file.extension().is_some_and(|e| e == "pack")).unwrap();
    let index = pack.with_extension("idx");
    let listed = client.git(&["verify-pack", "-v", index.to_str().unwrap()]);
    assert!(listed.contains("chain length = 119"), "{listed}");
    git::Pack { name: pack.file_stem().unwrap().to_str().unwrap().to_owned(), index, pack }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_at_the_end_of_long_chains_of_differences_are_brought() {
    for by_offset in [true, false] {
        let platform = Platform::new(Registry::ours().await).await;
        let first = platform.receiver("first", 0).await;
        let client = Client::of(&first.url);
        let pack = chain(&client, by_offset);
        first.sources.keep(&*platform.store, &platform.app, &[pack]).await.unwrap();
        let before = first.registry.bytes();
        for commit in ["main~60", "main~119", "main~1", "main"] {
            let commit = client.id(commit);
            client.git(&["checkout", "-q", &commit.to_string()]);
            assert_eq!(platform.source(&first, commit).await, files_of(&client.path));
        }
        let fetched = first.registry.bytes() - before;
        assert!(fetched < 1_000_000, "{fetched} bytes were fetched");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_push_names_of_the_rest_is_looked_at_as_strictly_as_ever() {
    let platform = Platform::new(Registry::ours().await).await;
    let first = platform.receiver("first", 16 * MB).await;
    let client = working_copy(&first.url, 4, 600_000);
    let bad = "[submodule \"a\"]\n\tpath = a\n\turl = -u./payload\n";
    client.commit("harmless.txt", bad);
    client.git_async(&["push", "-q", "deis", "main"]).await;
    let second = platform.receiver("second", 100_000).await;
    client.git(&["remote", "set-url", "deis", &second.url]);
    // What was a harmless file takes a name that makes it harmful; its content is not sent.
    client.git(&["mv", "harmless.txt", ".gitmodules"]);
    client.git(&["commit", "-qm", "Rename"]);
    let said = client.git_fails(&["push", "deis", "main"]).await;
    assert!(said.contains("gitmodulesUrl"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_every_kind_reach_a_server_that_has_the_repository_in_part() {
    let platform = Platform::new(Registry::ours().await).await;
    let first = platform.receiver("first", 16 * MB).await;
    let client = working_copy(&first.url, 16, 300_000);
    client.git_async(&["push", "-q", "deis", "main"]).await;
    let second = platform.receiver("second", 100_000).await;
    client.git(&["remote", "set-url", "deis", &second.url]);
    let push = async |what: &[&str]| client.git_async(&[&["push", "-q", "deis"], what].concat()).await;

    // An old commit, of which everything is elsewhere, as a branch and as a tag of a tag.
    push(&["HEAD~3:refs/heads/old"]).await;
    assert_eq!(platform.branch("old").await, Some(client.id("HEAD~3")));
    client.git(&["tag", "-am", "one", "one", "HEAD~2"]);
    client.git(&["tag", "-am", "two", "two", "one"]);
    push(&["two"]).await;
    // Back in history and on another way: what it builds on is no tip of a ref.
    client.git(&["checkout", "-q", "HEAD~4"]);
    let other = client.commit("src/5/file-5.txt", text(3, 3));
    push(&["-f", "HEAD:main"]).await;
    assert_eq!(platform.branch("main").await, Some(other));
    assert_eq!(platform.source(&second, other).await, files_of(&client.path));
    // What was there before and is not any more: its objects are sent once more.
    client.git(&["checkout", "-q", "main"]);
    client.git(&["revert", "--no-edit", "HEAD"]);
    push(&["-f", "HEAD:main"]).await;
    let reverted = client.id("HEAD");
    assert_eq!(platform.source(&second, reverted).await, files_of(&client.path));
    // A merge of both.
    client.git(&["merge", "-q", "--no-edit", "-s", "ours", &other.to_string()]);
    push(&["HEAD:main"]).await;
    assert!(matches!(platform.extent(&second).await, Extent::Part { .. }));
    let clone = Client::clone_from(&second.url, &[]).await;
    assert_eq!(clone.id("HEAD"), client.id("HEAD"));
    clone.git(&["fsck", "--full", "--strict"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_goes_on_while_a_clone_has_all_of_it_come() {
    let platform = Platform::new(Registry::ours().await).await;
    let first = platform.receiver("first", 16 * MB).await;
    let client = working_copy(&first.url, 8, 600_000);
    client.git_async(&["push", "-q", "deis", "main"]).await;
    let second = platform.receiver("second", 100_000).await;
    client.git(&["remote", "set-url", "deis", &second.url]);
    let (one, other) = (client.commit("one.txt", "one"), client.id("HEAD~2"));
    client.git(&["branch", "other", &other.to_string()]);
    let pushes = async { client.git_async(&["push", "-q", "deis", "main", "other"]).await };
    let clones = (0..3).map(|_| Client::clone_from(&second.url, &[]));
    let sources = (0..3).map(|_| platform.source(&second, other));
    let (_, clones, sources) =
        futures::join!(pushes, futures::future::join_all(clones), futures::future::join_all(sources));
    assert_eq!(platform.branch("main").await, Some(one));
    for clone in clones {
        clone.git(&["fsck", "--full", "--strict"]);
    }
    assert!(sources.windows(2).all(|two| two[0] == two[1]));
    assert_eq!(platform.source(&second, one).await, files_of(&client.path));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_builds_on_what_is_not_here_is_told_to_push_again_and_can() {
    let platform = Platform::new(Registry::ours().await).await;
    let first = platform.receiver("first", 16 * MB).await;
    let client = working_copy(&first.url, 4, 600_000);
    client.git_async(&["push", "-q", "deis", "main"]).await;
    let old = client.id("HEAD");
    let second = platform.receiver("second", 100_000).await;
    let new = client.commit("src/often.txt", text(2001, 4));
    // What a client sends that knows no `no-thin`.
    let mut thin = client.command(&["pack-objects", "--stdout", "--thin", "--revs", "-q"]);
    let revisions = client.path.join("revisions");
    std::fs::write(&revisions, format!("{new}\n^{old}\n")).unwrap();
    let pack = thin.stdin(std::fs::File::open(&revisions).unwrap()).output().unwrap().stdout;
    std::fs::remove_file(revisions).unwrap();
    let push = async || {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let address = second.url.strip_prefix("git://").unwrap().strip_suffix("/hello").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
        let command = format!("{old} {new} refs/heads/main\0report-status ofs-delta");
        let begin = [line("git-receive-pack /hello\0"), line(&command), "0000".to_owned()].concat();
        stream.write_all(begin.as_bytes()).await.unwrap();
        stream.write_all(&pack).await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        String::from_utf8_lossy(&said).into_owned()
    };
    let said = push().await;
    assert!(said.contains("no-thin") && said.contains("push again in a minute"), "{said}");
    assert_eq!(platform.branch("main").await, Some(old));
    let said = push().await;
    assert!(said.contains("ok refs/heads/main") && !said.contains("no-thin"), "{said}");
    assert_eq!(platform.branch("main").await, Some(new));
}
