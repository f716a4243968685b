//! What one server received another has: pushed objects by the registry and the App, logs of builds by the registry.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hephy::git::{CROWDED_PACKS, Pack, Repository};
use hephy::kubernetes::Leases;
use hephy::model::{
    App, AppName, Build, CommitId, ObjectName, Outcome, PushEvent, RefName, ReleaseNumber, Store, store,
};
use hephy::oci::{Descriptor, Digest, Target};
use hephy::push::log::Logs;
use hephy::push::{Archive, Extent, Sources};
use hephy::serve::upkeep::Upkeep;
use hephy::store::DirectoryStore;
use tempfile::TempDir;

use crate::crds;
use crate::keeping::idle;
use crate::registry::Registry;
use crate::store_conformance::api_server::ApiServer;

fn git(directory: &Path, words: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("HOME", directory);
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "Ada").env(format!("GIT_{role}_EMAIL"), "ada@example.com");
    }
    let ran = command.args(words).output().unwrap();
    assert!(ran.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap().trim().to_owned()
}

/// A commit, and its objects in one pack, as a push of it is.
pub(crate) fn push_of(directory: &Path, text: &str) -> (CommitId, Vec<Pack>) {
    let repository = directory.join(text);
    std::fs::create_dir_all(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    std::fs::write(repository.join("file"), text).unwrap();
    std::fs::write(repository.join("Dockerfile"), "FROM scratch\nCOPY file /\n").unwrap();
    git(&repository, &["add", "."]);
    git(&repository, &["commit", "-qm", text]);
    git(&repository, &["repack", "-adq"]);
    let packs = repository.join(".git/objects/pack");
    let pack = std::fs::read_dir(packs).unwrap().map(|entry| entry.unwrap().path());
    let pack = pack.into_iter().find(|path| path.extension().is_some_and(|e| e == "pack")).unwrap();
    let name = pack.file_stem().unwrap().to_str().unwrap().to_owned();
    let commit = git(&repository, &["rev-parse", "HEAD"]).parse().unwrap();
    (commit, vec![Pack { name, index: pack.with_extension("idx"), pack }])
}

/// Collects. It gives way to whoever has the lock, as a process that another test is just about to start has for a moment.
async fn collect(repository: &Repository) {
    let collected = async {
        while !repository.collect().await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), collected).await.unwrap();
}

/// A store, a registry, and an app without a commit.
struct Fixture {
    directory: TempDir,
    store: Arc<dyn Store>,
    registry: Registry,
    app: AppName,
}

impl Fixture {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(DirectoryStore::open(&directory.path().join("state")).unwrap());
        let app: AppName = "hello".parse().unwrap();
        let object = App::new(app.clone(), "ada".parse().unwrap(), jiff::Timestamp::UNIX_EPOCH);
        store::create(&*store, object).await.unwrap();
        Self { directory, store, registry: Registry::start().await, app }
    }

    /// A server with a disk of its own.
    fn server(&self, name: &str) -> Sources {
        let place = self.registry.place();
        let client = place.client(Duration::from_hours(1)).unwrap();
        Sources::shared(self.directory.path().join(name), client, place)
    }

    fn logs(&self, name: &str) -> Logs {
        let place = self.registry.place();
        let client = place.client(Duration::from_hours(1)).unwrap();
        let often = Duration::from_millis(1);
        let archive = Archive::new(client, place).every(often, often);
        Logs::new(self.directory.path().join(name)).archived(archive)
    }

    /// The digest and the layers of a log, if the registry has it.
    async fn listed(&self) -> Option<(Digest, Vec<Descriptor>)> {
        let (repository, target) = (self.registry.repository("hello"), Target::Tag("log-7".parse().unwrap()));
        let list = self.registry.client().find_manifest(&repository, &target).await.unwrap()?;
        Some((list.digest(), list.as_image().unwrap().layers.clone()))
    }

    async fn keep(&self, server: &Sources, packs: &[Pack]) {
        server.keep(&*self.store, &self.app, packs).await.unwrap();
    }

    async fn has(&self, server: &Sources, commit: CommitId) -> bool {
        server.open(&*self.store, &self.app).await.unwrap().contains(commit).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_saw_a_push_has_its_objects() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server("one"), fixture.server("other"));
    let (first, packs) = push_of(fixture.directory.path(), "first");
    assert!(!fixture.has(&other, first).await);
    fixture.keep(&one, &packs).await;
    assert!(fixture.has(&other, first).await);
    let (second, packs) = push_of(fixture.directory.path(), "second");
    fixture.keep(&other, &packs).await;
    let repository = one.open(&*fixture.store, &fixture.app).await.unwrap();
    repository.commit(first).unwrap();
    assert_eq!(repository.commit(second).unwrap().read("file", 100).unwrap().unwrap(), b"second");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pushes_at_once_both_are_kept() {
    let fixture = Fixture::new().await;
    let pushes: Vec<_> = ["a", "b", "c", "d"].map(|text| push_of(fixture.directory.path(), text)).into();
    let servers = [fixture.server("one"), fixture.server("two")];
    let kept = pushes.iter().enumerate().map(|(at, (_, packs))| fixture.keep(&servers[at % 2], packs));
    futures::future::join_all(kept).await;
    let other = fixture.server("other");
    for (commit, _) in pushes {
        assert!(fixture.has(&other, commit).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_the_disk_needs_no_registry() {
    let mut fixture = Fixture::new().await;
    let (one, other) = (fixture.server("one"), fixture.server("other"));
    let (commit, packs) = push_of(fixture.directory.path(), "first");
    fixture.keep(&one, &packs).await;
    assert!(fixture.has(&other, commit).await);
    let gone = std::mem::replace(&mut fixture.registry, Registry::start().await);
    drop(gone.stop().await);
    assert!(fixture.has(&other, commit).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_were_dropped_and_pushed_again_are_fetched_again() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server("one"), fixture.server("other"));
    let (commit, packs) = push_of(fixture.directory.path(), "first");
    fixture.keep(&one, &packs).await;
    let repository = other.open(&*fixture.store, &fixture.app).await.unwrap();
    // No ref names it: a collection drops it.
    collect(&repository).await;
    assert!(!fixture.has(&other, commit).await);
    fixture.keep(&one, &packs).await;
    assert!(fixture.has(&other, commit).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_app_names_the_packs_and_the_registry_has_them_under_a_tag() {
    let fixture = Fixture::new().await;
    let (_, packs) = push_of(fixture.directory.path(), "first");
    fixture.keep(&fixture.server("one"), &packs).await;
    let name = ObjectName::of(&fixture.app);
    let app = store::require::<App>(&*fixture.store, &name).await.unwrap().object;
    let repository = fixture.registry.repository("hello");
    let (client, tag) = (fixture.registry.client(), Target::Tag("git".parse().unwrap()));
    let tagged = client.manifest(&repository, &tag);
    assert_eq!(Some(tagged.await.unwrap().digest()), app.packs);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_packs_become_one_and_a_new_server_fetches_that() {
    let fixture = Fixture::new().await;
    let [one, late] = ["one", "late"].map(|name| fixture.server(name).young(Duration::ZERO));
    let pushes = ["a", "b", "c"].map(|text| push_of(fixture.directory.path(), text));
    for (_, packs) in &pushes {
        fixture.keep(&one, packs).await;
    }
    let repository = one.open(&*fixture.store, &fixture.app).await.unwrap();
    repository.keep(&pushes.each_ref().map(|(commit, _)| *commit), Duration::ZERO).unwrap();
    collect(&repository).await;
    let name = ObjectName::of(&fixture.app);
    let named = async || store::require::<App>(&*fixture.store, &name).await.unwrap().object.packs;
    let before = named().await;
    // One that has not seen the last push may not speak for all.
    late.consolidate(&*fixture.store, &fixture.app, true).await.unwrap();
    assert_eq!(named().await, before);
    one.consolidate(&*fixture.store, &fixture.app, true).await.unwrap();
    assert_ne!(named().await, before);
    let new = fixture.server("new");
    for (commit, _) in pushes {
        assert!(fixture.has(&new, commit).await);
    }
    let repository = new.open(&*fixture.store, &fixture.app).await.unwrap();
    assert_eq!(repository.pack_names().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_late_and_is_named_by_nothing_stays_when_few_packs_are_made_of_the_rest() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server("one"), fixture.server("other"));
    let [a, b, late] = ["a", "b", "late"].map(|text| push_of(fixture.directory.path(), text));
    for (_, packs) in [&a, &b, &late] {
        fixture.keep(&other, packs).await;
    }
    let collected = async || {
        let repository = one.open(&*fixture.store, &fixture.app).await.unwrap();
        repository.keep(&[a.0, b.0], Duration::ZERO).unwrap();
        collect(&repository).await;
        assert!(!repository.contains(late.0).unwrap());
    };
    let name = ObjectName::of(&fixture.app);
    let named = async || store::require::<App>(&*fixture.store, &name).await.unwrap().object.packs;
    let has_all = async |server: &Sources| {
        for commit in [a.0, b.0, late.0] {
            assert!(fixture.has(server, commit).await, "{commit:?}");
        }
    };
    collected().await;
    let before = named().await;
    one.consolidate(&*fixture.store, &fixture.app, true).await.unwrap();
    assert_ne!(named().await, before);
    has_all(&fixture.server("new")).await;
    has_all(&one).await;
    // Also where another pushed meanwhile, and nothing is made of it.
    collected().await;
    let (_, packs) = push_of(fixture.directory.path(), "meanwhile");
    fixture.keep(&other, &packs).await;
    let before = named().await;
    one.consolidate(&*fixture.store, &fixture.app, true).await.unwrap();
    assert_eq!(named().await, before);
    has_all(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_servers_that_have_many_packs_in_part_one_makes_few_of_them() {
    let fixture = Fixture::new().await;
    let first = fixture.server("first");
    let name = ObjectName::of(&fixture.app);
    let named = async || store::require::<App>(&*fixture.store, &name).await.unwrap().object.packs;
    let mut pushed = Vec::new();
    let mut push = async |number: usize| {
        let (commit, packs) = push_of(fixture.directory.path(), &number.to_string());
        fixture.keep(&first, &packs).await;
        let branch = RefName::branch(&format!("b{number}")).unwrap();
        let moved = store::modify(&*fixture.store, &name, |app: &mut App| {
            app.refs.insert(branch.clone(), commit);
            Ok::<_, store::StoreError>(())
        });
        moved.await.unwrap();
        pushed.push(commit);
    };
    for number in 0..CROWDED_PACKS {
        push(number).await;
    }
    let cluster = ApiServer::start().await;
    let leases = |server: &str| Leases::new(cluster.client(), "hephy", server);
    let second = fixture.directory.path().join("second");
    let stages = idle(
        &second,
        Arc::clone(&fixture.store),
        leases("second"),
        fixture.server("second").near(0).young(Duration::ZERO),
    );
    let upkeep = Upkeep { registry: None, stages: Arc::new(stages), layers: None };
    let sources = &upkeep.stages.sources;
    sources.open_in_part(&*fixture.store, &fixture.app).await.unwrap();
    let extent = async || sources.extent(&*fixture.store, &fixture.app).await.unwrap();
    assert_eq!(extent().await, Extent::Part { packs: CROWDED_PACKS });
    // So many are not too many.
    let before = named().await;
    upkeep.tidy_repositories().await.unwrap();
    assert_eq!((named().await, extent().await), (before, Extent::Part { packs: CROWDED_PACKS }));
    push(CROWDED_PACKS).await;
    sources.open_in_part(&*fixture.store, &fixture.app).await.unwrap();
    // Another server is at it.
    let other = leases("other").hold("packs-hello").await.unwrap().unwrap();
    let before = named().await;
    upkeep.tidy_repositories().await.unwrap();
    assert_eq!(named().await, before);
    other.release().await;
    upkeep.tidy_repositories().await.unwrap();
    assert_ne!(named().await, before);
    assert_eq!(extent().await, Extent::Whole);
    assert!(leases("other").names("packs-").await.unwrap().is_empty());
    let third = fixture.server("third");
    for commit in pushed {
        assert!(fixture.has(&third, commit).await);
    }
    let repository = third.open(&*fixture.store, &fixture.app).await.unwrap();
    assert_eq!(repository.pack_names().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_of_the_same_name_finds_nothing_of_the_one_before() {
    let fixture = Fixture::new().await;
    let (one, other) = (fixture.server("one"), fixture.server("other"));
    let (commit, packs) = push_of(fixture.directory.path(), "first");
    fixture.keep(&one, &packs).await;
    assert!(fixture.has(&other, commit).await);
    let name = ObjectName::of(&fixture.app);
    let gone = store::require::<App>(&*fixture.store, &name).await.unwrap();
    store::delete(&*fixture.store, &gone).await.unwrap();
    let object = App::new(fixture.app.clone(), "eve".parse().unwrap(), jiff::Timestamp::now());
    store::create(&*fixture.store, object).await.unwrap();
    let repository = other.open(&*fixture.store, &fixture.app).await.unwrap();
    assert!(!repository.contains(commit).unwrap());
}

fn ended() -> Build {
    let outcome = Outcome::Succeeded { at: jiff::Timestamp::UNIX_EPOCH, release: ReleaseNumber(1) };
    Build { outcome: Some(outcome), ..crds::build(crds::build_state()) }
}

async fn lines(logs: &Logs, build: &Build) -> Option<Vec<PushEvent>> {
    logs.fetch(build).await.unwrap();
    let mut reader = logs.read(build, 0).await.unwrap()?;
    let mut events = Vec::new();
    while let Some(line) = reader.next().await.unwrap() {
        events.push(line.event);
    }
    Some(events)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_a_build_that_has_ended_is_read_where_it_was_not_written() {
    let fixture = Fixture::new().await;
    let (one, other, build) = (fixture.logs("one"), fixture.logs("other"), ended());
    assert_eq!(lines(&other, &build).await, None);
    let said = ["first", "second"].map(|text| PushEvent::Line(text.to_owned()));
    let mut writer = one.write(&build).await.unwrap();
    for event in said.clone() {
        writer.write(event).await.unwrap();
    }
    one.keep(&build, &mut writer).await;
    drop(writer);
    // A server that began the build and lost it has its beginning alone.
    let began = fixture.logs("began");
    began.write(&build).await.unwrap().write(said[0].clone()).await.unwrap();
    assert_eq!(lines(&began, &build).await.as_deref(), Some(said.as_slice()));
    let later = Build { created_at: jiff::Timestamp::UNIX_EPOCH, ..build.clone() };
    assert_eq!(lines(&other, &later).await, None, "the build of another app of this name");
    assert_eq!(lines(&other, &build).await.as_deref(), Some(said.as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pieces_of_a_running_log_become_one_and_what_was_before_is_removed() {
    let fixture = Fixture::new().await;
    let (one, other, build) =
        (fixture.logs("one"), fixture.logs("other"), Build { outcome: None, ..ended() });
    let mut writer = one.write(&build).await.unwrap();
    let (mut said, mut lists) = (Vec::new(), Vec::<(Digest, Vec<Descriptor>)>::new());
    for number in 0..80 {
        let event = PushEvent::Line(format!("line {number}"));
        said.push(event.clone());
        writer.write(event).await.unwrap();
        let is_new = async {
            loop {
                let list = fixture.listed().await;
                if let Some(list) = list.filter(|list| Some(list) != lists.last()) {
                    break list;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        lists.push(tokio::time::timeout(Duration::from_secs(60), is_new).await.unwrap());
    }
    let counts: Vec<usize> = lists.iter().map(|(_, layers)| layers.len()).collect();
    let expected: Vec<usize> = (1..=64).chain(1..=16).collect();
    assert_eq!(counts, expected);
    assert!(lists[5].1.starts_with(&lists[4].1), "what is there is not sent again");
    // Whoever goes on with it has all of it.
    other.take_up(&build).await;
    let mut reader = other.read(&build, 0).await.unwrap().unwrap();
    let mut taken = Vec::new();
    while let Some(line) = reader.next().await.unwrap() {
        taken.push(line.event);
    }
    assert_eq!(taken, said);
    one.keep(&build, &mut writer).await;
    drop(writer);
    let (last, layers) = fixture.listed().await.unwrap();
    assert_eq!(layers.len(), 1);
    let late = fixture.logs("late");
    assert_eq!(lines(&late, &ended()).await, Some(said));
    let manifests = fixture.registry.files("repositories/hello/_manifests");
    assert_eq!(manifests.into_iter().collect::<Vec<_>>(), [last.hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_from_the_registry_is_kept_and_what_does_not_is_replaced() {
    let fixture = Fixture::new().await;
    let (one, build) = (fixture.logs("one"), Build { outcome: None, ..ended() });
    let said = ["first", "second"].map(|text| PushEvent::Line(text.to_owned()));
    let mut writer = one.write(&build).await.unwrap();
    writer.write(said[0].clone()).await.unwrap();
    let listed = async {
        while fixture.listed().await.is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), listed).await.unwrap();
    drop(writer);
    let log = one.build_directory(&build).join("log");
    let first = std::fs::read(&log).unwrap();
    // A server that was started again has more than it had sent.
    let second = String::from_utf8(first.clone()).unwrap().replace("first", "second");
    let more = [first.clone(), second.replace("\"number\":1", "\"number\":2").into_bytes()].concat();
    std::fs::write(&log, &more).unwrap();
    one.take_up(&build).await;
    assert_eq!(std::fs::read(&log).unwrap(), more);
    // One that another server went on without has what nobody else knows.
    std::fs::write(&log, second).unwrap();
    one.take_up(&build).await;
    assert_eq!(std::fs::read(&log).unwrap(), first);
}
