//! The runtime of processes passes what every runtime does: real instances in namespaces, over a tree with busybox.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use hephy::layers::{LayerStore, Owner};
use hephy::model::{BuildNumber, PublishedIndex, Release, ReleaseNumber, ReleaseState};
use hephy::oci::{Digest, ImageConfig};
use hephy::rollout::{Runtime, Version};
use hephy::router::{RouteTable, RouterConfig, serve};
use hephy::runtime::processes::{Images, LocalImage, Policy, Processes, ProcessesConfig};
use hephy::sandbox::{IdMap, UserIds};
use hyper::StatusCode;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::runtime_conformance::{self as conformance, Place};

struct Machine {
    data: TempDir,
    runtime: Arc<dyn Runtime>,
    address: std::net::SocketAddr,
    /// Ends the router.
    router: Option<DropGuard>,
}

impl Place for Machine {
    async fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (runtime, address, router) = server(data.path()).await;
        let ids = IdMap::choose(&data.path().join("idmap.json")).unwrap();
        tree(&data.path().join("layers/trees/test/app"), ids.host_root());
        Self { data, runtime, address, router }
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::clone(&self.runtime)
    }

    async fn restart(&mut self) {
        let (runtime, address, router) = server(self.data.path()).await;
        (self.runtime, self.address, self.router) = (runtime, address, router);
    }

    fn version(&self, number: u64, processes: &[(&str, &str, u32)]) -> Version {
        let release = Release {
            format: 1,
            app: "hello".parse().unwrap(),
            number: ReleaseNumber(number),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            by: "ada".parse().unwrap(),
            summary: "ada deployed 3f2a1c9".to_owned(),
            build: BuildNumber(number),
            commit: "3f2a1c9000000000000000000000000000000000".parse().unwrap(),
            index: PublishedIndex {
                digest: Digest::of(b""),
                repository: "hello".to_owned(),
                images: Vec::new(),
            },
            processes: processes
                .iter()
                .map(|(t, line, _)| (t.parse().unwrap(), Some((*line).to_owned())))
                .collect(),
            ready_timeout_seconds: None,
            state: ReleaseState::Pending,
        };
        let scale = processes.iter().map(|(name, _, count)| (name.parse().unwrap(), *count)).collect();
        Version { release, variables: BTreeMap::new(), scale, ready_timeout: None }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        conformance::ask(self.address, path).await
    }
}

impl Drop for Machine {
    /// Instances outlive their server, and must not outlive their test.
    fn drop(&mut self) {
        self.router.take();
        let runtime = Arc::clone(&self.runtime);
        let stop = async move { runtime.stop(&"hello".parse().unwrap()).await };
        let stopped = std::thread::spawn(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(stop)
        });
        drop(stopped.join());
    }
}

/// A runtime and a router in front of it, over `data`.
async fn server(data: &Path) -> (Arc<dyn Runtime>, std::net::SocketAddr, Option<DropGuard>) {
    let table = RouteTable::new();
    let policy = Policy {
        ready_timeout: Duration::from_secs(30),
        minimum_ready: Duration::from_millis(200),
        drain: Duration::from_secs(10),
        stop_grace: Duration::from_secs(5),
    };
    let ids = IdMap::choose(&data.join("idmap.json")).unwrap();
    let (uid, gid) = ids.host_root();
    let layers = data.join("layers");
    let config = ProcessesConfig {
        directory: data.join("runtime"),
        store: LayerStore::open(&layers, "test", Some(Owner { uid, gid })).unwrap(),
        layers,
        executable: crate::ordinary_user::executable(),
        ids,
        limits: None,
        policy,
    };
    let images: Images = Arc::new(|_| async { Ok(image()) }.boxed());
    let runtime: Arc<dyn Runtime> = Arc::new(Processes::new(config, table.clone(), images));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(listener, table, RouterConfig::new("localhost"), shutdown.clone()));
    (runtime, address, Some(shutdown.drop_guard()))
}

fn image() -> LocalImage {
    LocalImage {
        config: ImageConfig::default(),
        trees: vec!["trees/test/app".into()],
        user: UserIds::default(),
        home: "/root".to_owned(),
        lease: None,
    }
}

/// A root with a shell and `httpd`, and what it serves.
fn tree(root: &Path, (uid, gid): (u32, u32)) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or("needs a static busybox: apt-get install busybox-static").unwrap();
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "www/cgi-bin"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for applet in ["sh", "httpd", "sleep", "env", "echo", "killall"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for (name, script) in [("release", "echo $HEPHY_RELEASE"), ("env", "env"), ("end", "killall -9 httpd")] {
        let path = root.join("www/cgi-bin").join(name);
        let head = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'";
        // Ends without an answer: the head would be one.
        let script =
            if name == "end" { format!("#!/bin/sh\n{script}\n") } else { format!("{head}\n{script}\n") };
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    // As a worker would have made it: its root owns everything.
    for entry in walkdir::WalkDir::new(root) {
        lchown(entry.unwrap().path(), Some(uid), Some(gid)).unwrap();
    }
}

macro_rules! conforms {
    ($($name:ident)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            conformance::$name(Machine::new().await).await;
        }
    )* };
}

conforms! {
    a_version_serves_once_it_is_switched_to_and_not_before
    a_version_that_ends_is_never_switched_to_and_its_last_lines_are_told
    an_app_that_listens_elsewhere_is_told_where
    a_release_that_is_not_newer_is_refused
    continuous_load_across_rollouts_sees_no_failed_request
    the_old_version_is_asked_to_stop_after_the_switch
    a_switch_can_be_undone
    scaling_starts_and_stops_instances_of_the_current_release
    an_instance_that_crashes_is_started_again
    an_instance_sees_its_variables_and_the_config_wins
    lines_are_kept_and_followed_across_releases
    a_command_runs_once_to_its_end
    a_start_that_is_given_up_leaves_nothing
    an_app_that_is_stopped_is_gone
    a_new_server_takes_over_what_runs
    a_new_server_finds_what_is_missing_and_scaling_brings_it_back
}
