//! A worker with an open root made of this machine's own programs.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hephy::sandbox::steps::{Answer, BODY, Request};
use hephy::sandbox::{
    Access, Changes, IdMap, Isolation, Limits, Mount, MountSource, NetworkMode, Outcome, RootSpec, Stdio,
    Step, Worker, WorkerSpec,
};
use tempfile::TempDir;

pub(super) use crate::ordinary_user::executable;

/// A place to try a sandbox in.
pub(super) struct Bench {
    pub(super) worker: Worker,
    pub(super) directory: TempDir,
    /// Where the layers are.
    pub(super) layers: PathBuf,
    isolation: Isolation,
}

impl Bench {
    pub(super) fn isolated() -> Self {
        Self::with(NetworkMode::Isolated, None)
    }

    /// A plain directory, with a busybox of its own: nothing can be mounted.
    pub(super) fn in_place() -> Self {
        let directory = readable_directory();
        let base = directory.path().join("base");
        tar::Archive::new(&crate::build::base::rootfs()[..]).unpack(&base).unwrap();
        fs::write(base.join("etc/base"), "from the base\n").unwrap();
        Self::start(Isolation::InPlace, NetworkMode::Host, None, directory, base)
    }

    pub(super) fn with(network: NetworkMode, limits: Option<Limits>) -> Self {
        let directory = readable_directory();
        let base = base_layer(directory.path());
        Self::start(Isolation::Userns, network, limits, directory, base)
    }

    fn start(
        isolation: Isolation,
        network: NetworkMode,
        limits: Option<Limits>,
        directory: TempDir,
        base: PathBuf,
    ) -> Self {
        let layers = directory.path().join("layers");
        let worker = Worker::start(&WorkerSpec {
            isolation,
            executable: executable(),
            body: BODY.to_owned(),
            ids: match isolation {
                Isolation::Userns => ids(directory.path()),
                Isolation::InPlace => IdMap::in_force(),
            },
            directory: layers.clone(),
            network,
            limits,
            environment: Vec::new(),
        })
        .unwrap();
        let mut bench = Self { worker, directory, layers, isolation };
        bench.open(&[base]);
        bench
    }

    /// Opens a root over these trees.
    pub(super) fn open(&mut self, lowers: &[PathBuf]) {
        if self.isolation == Isolation::InPlace {
            self.lay(lowers);
        }
        let root = RootSpec {
            lowers: lowers.to_vec(),
            upper: "upper".into(),
            work: "work".into(),
            mount_point: "root".into(),
        };
        self.ask(&Request::Open(root));
    }

    /// Lays trees without deletions over one another where the root will be.
    fn lay(&self, lowers: &[PathBuf]) {
        let root = self.root();
        drop(fs::remove_dir_all(&root));
        fs::create_dir_all(&root).unwrap();
        for lower in lowers {
            let status = Command::new("cp")
                .args(["-a", "--remove-destination"])
                .arg(lower.join("."))
                .arg(&root)
                .status();
            assert!(status.unwrap().success());
        }
    }

    /// Where the root of a plain directory is.
    pub(super) fn root(&self) -> PathBuf {
        self.layers.join("root")
    }

    /// How long a step that does nothing may take here. Files that are made and removed wait for a busy disk, mounts do not.
    pub(super) fn patience(&self) -> Duration {
        match self.isolation {
            Isolation::Userns => Duration::from_millis(100),
            Isolation::InPlace => Duration::from_secs(1),
        }
    }

    /// A shell script as a step.
    pub(super) fn step(&self, script: &str) -> Step {
        match self.isolation {
            Isolation::Userns => shell_step(script),
            Isolation::InPlace => Step { mounts: Vec::new(), ..shell_step(script) },
        }
    }

    pub(super) fn ask(&mut self, request: &Request) -> Answer {
        match self.worker.call(request, &[]).unwrap().message {
            Answer::Failed(why) => panic!("{request:?}: {why}"),
            answer => answer,
        }
    }

    /// Runs a shell script; its end and what it wrote.
    pub(super) fn shell(&mut self, script: &str) -> (Outcome, String) {
        self.run(&self.step(script), None).unwrap()
    }

    pub(super) fn run(&mut self, step: &Step, limit: Option<Duration>) -> Result<(Outcome, String), String> {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdio = Stdio::merged(writer.as_fd()).unwrap();
        drop(writer);
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        let request = Request::Run { step: step.clone(), limit };
        let fds = [stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()];
        let answer = self.worker.call(&request, &fds).unwrap().message;
        drop(stdio);
        let output = output.join().unwrap();
        match answer {
            Answer::Ended(outcome) => Ok((outcome, output)),
            Answer::Failed(why) => Err(why),
            other => Err(format!("unexpected: {other:?}")),
        }
    }

    pub(super) fn changes(&mut self) -> Changes {
        match self.ask(&Request::Changes) {
            Answer::Changes(changes) => changes,
            other => panic!("{other:?}"),
        }
    }
}

/// `/bin/sh -c` with this machine's `/usr`, read-only.
pub(super) fn shell_step(script: &str) -> Step {
    let usr = Mount {
        target: "/usr".into(),
        source: MountSource::Bind { source: "/usr".into() },
        access: Access::ReadOnly,
    };
    Step {
        argv: ["/bin/sh", "-c", script].map(ToOwned::to_owned).to_vec(),
        environment: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
        mounts: vec![usr],
        ..Step::default()
    }
}

/// A tree that has what a shell needs but `/usr`; readable by everybody, as the sandbox's root is somebody else.
pub(super) fn base_layer(directory: &Path) -> PathBuf {
    let base = directory.join("base");
    fs::create_dir_all(base.join("etc")).unwrap();
    fs::create_dir_all(base.join("tmp")).unwrap();
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(base.join("etc/base"), "from the base\n").unwrap();
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), base.join(name)).unwrap();
    }
    give_to_sandbox(directory, &base);
    base
}

/// What root makes is nobody's in the sandbox.
pub(super) fn give_to_sandbox(directory: &Path, tree: &Path) {
    if nix::unistd::Uid::effective().is_root() {
        let (uid, gid) = ids(directory).host_root();
        let owner = format!("{uid}:{gid}");
        assert!(
            std::process::Command::new("chown").args(["-Rh", &owner]).arg(tree).status().unwrap().success()
        );
    }
}

pub(super) fn readable_directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

pub(super) fn ids(directory: &Path) -> IdMap {
    IdMap::choose(&directory.join("idmap.json")).unwrap()
}
