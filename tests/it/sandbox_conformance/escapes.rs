//! What a hostile step tries.

use std::net::TcpListener;

use hephy::sandbox::{Outcome, Step, UserIds};

use super::Case;
use super::bench::{Bench, give_to_sandbox};

pub(super) const ALL: &[Case] = &[
    ("the host's loopback", loopback),
    ("the host's settings", settings),
    ("the data directory", data_directory),
    ("the root of the first process", first_process),
    ("a device of its own", device),
    ("a mount of its own", mount),
    ("a user namespace of its own", nested_namespace),
    ("a process outside", ptrace),
    ("the host's processes", processes),
    ("a kernel's memory and keys", kernel_files),
    ("its network's addresses and routes", network),
    ("the host name of the host", host_name),
    ("an image whose /proc is a link", linked_proc),
    ("an image whose resolv.conf points at a host's file", linked_resolv_conf),
    ("a descriptor that was left open", descriptors),
];

/// The step must fail, whatever it says.
fn refused(bench: &mut Bench, script: &str) -> String {
    let (outcome, output) = bench.shell(script);
    assert_ne!(outcome, Outcome::Exited(0), "{script}: {output}");
    output
}

fn loopback(bench: &mut Bench) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for address in ["127.0.0.1", "10.0.2.2", "169.254.169.254", "localhost"] {
        let script = format!("exec 3<>/dev/tcp/{address}/{port}");
        let step = Step {
            argv: ["/usr/bin/timeout", "5", "/bin/bash", "-c", &script].map(ToOwned::to_owned).to_vec(),
            ..bench.step("")
        };
        let (outcome, output) = bench.run(&step, None).unwrap();
        assert_ne!(outcome, Outcome::Exited(0), "{address}: {output}");
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "somebody came through");
}

fn settings(bench: &mut Bench) {
    for file in
        ["kernel/core_pattern", "kernel/modprobe", "vm/drop_caches", "net/ipv4/ip_forward", "kernel/hostname"]
    {
        refused(bench, &format!("echo x > /proc/sys/{file}"));
    }
    refused(bench, "echo b > /proc/sysrq-trigger");
    refused(bench, "echo 1 > /sys/class/net/lo/mtu || echo 0 > /sys/kernel/mm/ksm/run");
}

fn data_directory(bench: &mut Bench) {
    let directory = bench.directory.path().to_owned();
    std::fs::write(directory.join("ssh_host_ed25519_key"), "secret").unwrap();
    refused(bench, &format!("ls {}", directory.display()));
    refused(bench, &format!("cat /proc/1/root{}/ssh_host_ed25519_key", directory.display()));
    refused(bench, &format!("cat /proc/1/cwd{}/ssh_host_ed25519_key", directory.display()));
    refused(bench, &format!("cat /../../..{}/ssh_host_ed25519_key", directory.display()));
}

fn first_process(bench: &mut Bench) {
    refused(bench, "ls /proc/1/root/");
    refused(bench, "ls /proc/1/fd/");
    refused(bench, "cat /proc/1/environ");
    refused(bench, "head -c 1 /proc/1/mem");
}

fn device(bench: &mut Bench) {
    refused(bench, "mknod /tmp/disk b 254 0");
    refused(bench, "mknod /dev/memory c 1 1");
    refused(bench, "mknod /tmp/null c 1 3");
    // Those that are there are what they say, and a step that removes one removes its own.
    assert_eq!(bench.shell("echo x > /dev/null && head -c 2 /dev/zero | od -An -tx1").1, " 00 00\n");
}

fn mount(bench: &mut Bench) {
    refused(bench, "mount -t tmpfs none /tmp");
    refused(bench, "mount --bind /etc /tmp");
    refused(bench, "umount /proc/sys");
    refused(bench, "mount -o remount,rw /proc/sys");
    refused(bench, "umount /proc/keys");
}

fn nested_namespace(bench: &mut Bench) {
    // Where `/proc/sys` cannot be written (in a container) it is possible, and leads nowhere.
    let (outcome, output) =
        bench.shell("unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /tmp'");
    if !std::path::Path::new("/run/.containerenv").exists() && !std::path::Path::new("/.dockerenv").exists() {
        assert_ne!(outcome, Outcome::Exited(0), "{output}");
    }
}

fn ptrace(bench: &mut Bench) {
    refused(bench, "kill -0 2000000 || kill -0 $(cat /proc/sys/kernel/pid_max)");
    let outside = std::process::id();
    refused(bench, &format!("kill -0 {outside}"));
    refused(bench, &format!("head -c 1 /proc/{outside}/mem"));
    // With a tracer where one is; the worker is not dumpable in any case.
    refused(bench, "head -c 1 /proc/1/mem || exit 1");
}

fn processes(bench: &mut Bench) {
    let (_, output) = bench.shell("cat /proc/[0-9]*/comm");
    assert!(!output.contains("slirp4netns"), "{output}");
    let user = UserIds { uid: 1000, gid: 1000, groups: Vec::new() };
    let step = Step { user, ..bench.step("kill -9 1") };
    assert_ne!(bench.run(&step, None).unwrap().0, Outcome::Exited(0));
    // As root the kernel drops a signal that the first process of the namespace gets from inside.
    assert_eq!(bench.shell("kill -9 1; echo alive").1, "alive\n");
}

fn kernel_files(bench: &mut Bench) {
    let (_, output) = bench.shell(
        "cat /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug 2>/dev/null | head -c 1 | wc -c",
    );
    assert_eq!(output.trim(), "0");
    let (_, output) = bench.shell("ls -A /sys/firmware /proc/scsi 2>/dev/null | grep -v : | wc -w");
    assert_eq!(output.trim(), "0");
}

fn network(bench: &mut Bench) {
    let table = "cat /proc/net/route /proc/net/fib_trie 2>/dev/null";
    let (_, before) = bench.shell(table);
    for script in [
        "ip route del unreachable 169.254.0.0/16",
        "ip route add 169.254.169.254 via 10.0.2.2",
        "ip address add 192.168.77.1/24 dev tap0",
        "ip link set tap0 down",
        "nft flush ruleset",
    ] {
        refused(bench, script);
    }
    assert_eq!(bench.shell(table).1, before);
}

fn host_name(bench: &mut Bench) {
    refused(bench, "hostname owned");
    assert_ne!(nix::unistd::gethostname().unwrap(), "owned");
}

fn linked_proc(bench: &mut Bench) {
    assert_eq!(bench.shell("ln -s etc /escape && ls /escape > /dev/null").0, Outcome::Exited(0));
    let step = bench.step("true");
    let evil = bench.directory.path().join("evil");
    std::fs::create_dir_all(&evil).unwrap();
    std::os::unix::fs::symlink("etc", evil.join("proc")).unwrap();
    give_to_sandbox(bench.directory.path(), &evil);
    let base = bench.directory.path().join("base");
    bench.ask(&hephy::sandbox::steps::Request::Close);
    bench.ask(&hephy::sandbox::steps::Request::Remove(vec!["upper".into(), "work".into()]));
    bench.open(&[base, evil]);
    let error = bench.run(&step, None).unwrap_err();
    assert!(error.contains("/proc"), "{error}");
}

fn linked_resolv_conf(bench: &mut Bench) {
    let secret = bench.directory.path().join("precious");
    std::fs::write(&secret, "precious").unwrap();
    let evil = bench.directory.path().join("evil");
    std::fs::create_dir_all(evil.join("etc")).unwrap();
    std::os::unix::fs::symlink(&secret, evil.join("etc/resolv.conf")).unwrap();
    give_to_sandbox(bench.directory.path(), &evil);
    let base = bench.directory.path().join("base");
    bench.ask(&hephy::sandbox::steps::Request::Close);
    bench.ask(&hephy::sandbox::steps::Request::Remove(vec!["upper".into(), "work".into()]));
    bench.open(&[base, evil]);
    assert_eq!(bench.shell("cat /etc/resolv.conf").1, "nameserver 10.0.2.3\n");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "precious");
}

fn descriptors(bench: &mut Bench) {
    let (_, output) = bench.shell("ls /proc/self/fd");
    // The three streams, and the directory that ls reads.
    assert_eq!(output, "0\n1\n2\n3\n");
}
