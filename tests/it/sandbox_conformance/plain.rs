//! What the sandbox without namespaces does besides, and what a hostile step gets of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use hephy::sandbox::steps::Request;
use hephy::sandbox::{Access, Changes, Mount, MountSource, Outcome, Step, StepNetwork, UserIds};

use super::Case;
use super::bench::Bench;

pub(super) const ALL: &[Case] = &[
    ("what was laid into the root is gone when changes are looked for", nothing_left),
    ("changes are in the root, younger than its opening", scan),
    ("a step finds devices, names and facts", surroundings),
    ("a mount that can be written keeps what is written, and one that cannot does not", mounts),
    ("a step without a network is refused", no_network),
    ("a step leaves its root by nothing", root_is_closed),
    ("no process that has a container's rights is open to a step", processes_are_closed),
    ("an image whose /proc is a link", linked_proc),
    ("an image whose resolv.conf points at a host's file", linked_resolv_conf),
    ("what was left running is ended also where nothing else is in the way", daemons),
];

/// All that is in a tree, and its times.
fn listing(root: &Path) -> String {
    let output = Command::new("find").arg(root).args(["-printf", "%P %y %m %U %T@\\n"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn nothing_left(bench: &mut Bench) {
    let before = listing(&bench.root());
    bench.shell(
        "ls /dev/null /etc/hosts /proc/meminfo; echo x > /etc/hosts; echo x > /dev/x; echo x > /proc/x",
    );
    bench.changes();
    assert_eq!(listing(&bench.root()), before);
}

fn scan(bench: &mut Bench) {
    bench.shell("echo new > /etc/new; rm /etc/base; touch -d @1000 /etc/new");
    let Changes::Scan { since } = bench.changes() else { panic!("there is no overlay") };
    let changed = |name: &str| {
        let metadata = fs::metadata(bench.root().join(name)).unwrap();
        (metadata.ctime(), metadata.ctime_nsec()) >= since
    };
    assert!(changed("etc/new") && changed("etc") && !changed("bin/busybox"));
}

fn surroundings(bench: &mut Bench) {
    let (_, output) = bench.shell(
        "echo x > /dev/null; head -c 2 /dev/zero | wc -c; grep -c localhost /etc/hosts; cat /etc/hostname; \
         grep -c MemTotal /proc/meminfo; ls /sys | wc -l; stat -c %a /dev/shm",
    );
    assert_eq!(output, "2\n2\nhephy\n1\n0\n1777\n");
}

fn mounts(bench: &mut Bench) {
    let source = |name: &str| {
        fs::create_dir(bench.layers.join(name)).unwrap();
        fs::write(bench.layers.join(name).join("was"), "there").unwrap();
        MountSource::Bind { source: PathBuf::from(name) }
    };
    let mut step = bench.step("cat /cache/was /home/was && echo x > /cache/kept && echo x > /home/lost");
    step.mounts.push(Mount { target: "/cache".into(), source: source("cache"), access: Access::ReadWrite });
    step.mounts.push(Mount { target: "/home".into(), source: source("copy"), access: Access::ReadOnly });
    assert_eq!(bench.run(&step, None).unwrap(), (Outcome::Exited(0), "therethere".to_owned()));
    bench.changes();
    assert!(bench.layers.join("cache/kept").exists() && !bench.layers.join("copy/lost").exists());
    assert_eq!(bench.shell("ls -A /home; ls -d /cache 2>/dev/null").1, "");
}

fn no_network(bench: &mut Bench) {
    let step = Step { network: StepNetwork::None, ..bench.step("true") };
    assert!(bench.run(&step, None).unwrap_err().contains("network"));
}

fn root_is_closed(bench: &mut Bench) {
    fs::write(bench.directory.path().join("secret"), "hunter2").unwrap();
    let secret = bench.directory.path().join("secret");
    for script in [
        format!("cat {}", secret.display()),
        format!("cd /; cat ../../../../..{}", secret.display()),
        "chroot / true".to_owned(),
        "mkdir -p /x && chroot /x /bin/sh".to_owned(),
        "mknod /disk b 254 0".to_owned(),
        "mknod /memory c 1 1".to_owned(),
        "mkdir -p /p && mount -t proc proc /p".to_owned(),
        "mount -t tmpfs none /tmp".to_owned(),
    ] {
        let (outcome, output) = bench.shell(&script);
        assert_ne!(outcome, Outcome::Exited(0), "{script}: {output}");
    }
}

/// The processes of this machine, where a step can see them: what an image's `/proc` never shows.
struct OuterProc(PathBuf);

impl OuterProc {
    fn new(bench: &Bench) -> Self {
        let place = bench.root().join("outer");
        fs::create_dir(&place).unwrap();
        assert!(Command::new("mount").args(["--bind", "/proc"]).arg(&place).status().unwrap().success());
        Self(place)
    }
}

impl Drop for OuterProc {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg("-l").arg(&self.0).status().unwrap().success());
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn processes_are_closed(bench: &mut Bench) {
    let outer = OuterProc::new(bench);
    // As a container's root is: what would be closed to a step by its capabilities alone is not this.
    let all = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,\
               +net_raw,+sys_chroot,+mknod,+audit_write,+setfcap";
    let mut contained = Command::new("setpriv");
    contained.args(["--bounding-set", all, "sleep", "300"]).env("SECRET", "hunter2");
    let contained = Killed(contained.spawn().unwrap());
    let name = || fs::read_to_string(format!("/proc/{}/comm", contained.0.id())).unwrap();
    while name() != "sleep\n" {
        std::thread::yield_now();
    }
    let worker = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let is_ours =
            fs::read(entry.path().join("cmdline")).ok()?.windows(9).any(|part| part == b"__sandbox");
        let here = fs::read_link(entry.path().join("cwd")).ok()? == fs::canonicalize(&bench.layers).ok()?;
        (parent == std::process::id() && is_ours && here).then(|| entry.file_name().into_string().unwrap())
    });
    for process in [worker.unwrap(), contained.0.id().to_string()] {
        for script in [
            "cat /outer/P/environ",
            "head -c 1 /outer/P/mem",
            "ls /outer/P/root/",
            "readlink /outer/P/fd/0",
            "cat /outer/P/fd/0",
        ] {
            let script = script.replace('P', &process);
            let (outcome, output) = bench.shell(&script);
            assert_ne!(outcome, Outcome::Exited(0), "{script}: {output}");
        }
    }
    // The same is open where it should be: the step's own processes.
    assert_eq!(bench.shell("cat /outer/self/environ | tr '\\0' '\\n' | grep -c PATH").1, "1\n");
    let user = UserIds { uid: 1000, gid: 1000, groups: Vec::new() };
    let step = Step { user, ..bench.step(&format!("kill -9 {}", contained.0.id())) };
    assert_ne!(bench.run(&step, None).unwrap().0, Outcome::Exited(0));
    drop(outer);
}

fn linked_proc(bench: &mut Bench) {
    let evil = bench.directory.path().join("evil");
    fs::create_dir_all(&evil).unwrap();
    symlink("etc", evil.join("proc")).unwrap();
    let base = bench.directory.path().join("base");
    bench.ask(&Request::Close);
    bench.open(&[base, evil]);
    let error = bench.run(&bench.step("true"), None).unwrap_err();
    assert!(error.contains("/proc"), "{error}");
}

fn linked_resolv_conf(bench: &mut Bench) {
    let secret = bench.directory.path().join("precious");
    fs::write(&secret, "precious").unwrap();
    let evil = bench.directory.path().join("evil");
    fs::create_dir_all(evil.join("etc")).unwrap();
    symlink(&secret, evil.join("etc/resolv.conf")).unwrap();
    let base = bench.directory.path().join("base");
    bench.ask(&Request::Close);
    bench.open(&[base, evil]);
    let ours = fs::read_to_string("/etc/resolv.conf").unwrap();
    assert_eq!(bench.shell("cat /etc/resolv.conf; echo x > /etc/resolv.conf").1, ours);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "precious");
}

/// In a session of its own, without a parent, deaf to what asks it to end.
fn daemons(bench: &mut Bench) {
    let word = "1414213562";
    let script = format!(
        "(setsid sh -c \"trap '' TERM HUP INT; sleep {word}; true\" >/dev/null 2>&1 </dev/null &) ; true"
    );
    assert_eq!(bench.shell(&script).0, Outcome::Exited(0));
    assert!(!crate::build::runs(word));
}
