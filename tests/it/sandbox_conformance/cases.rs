//! How steps run.

use std::time::{Duration, Instant};

use hephy::sandbox::steps::Request;
use hephy::sandbox::{Access, Changes, Mount, MountSource, Outcome, Step, StepNetwork, UserIds};

use super::Case;
use super::bench::Bench;

/// What every implementation does.
pub(super) const EVERYWHERE: &[Case] = &[
    ("a step reports its exit status", exit_status),
    ("a step that dies by a signal says which", signal),
    ("a program that is not there is 127 and one that cannot run is 126", missing_program),
    ("a step sees its environment and nothing else", environment),
    ("a step runs as its user with its groups", user),
    ("a step is killed with everything it started when its time is over", time_limit),
    ("what a step leaves running ends with it", leftovers),
    ("a later step sees what an earlier one wrote", steps_share_a_root),
    ("a working directory that is missing is an error that names it", missing_directory),
    ("a tmpfs is empty again and leaves no place", tmpfs),
    ("a step does not hold up the worker when its caller goes", hangup),
    ("a step takes milliseconds", fast),
];

/// What namespaces and mounts add.
pub(super) const NAMESPACES: &[Case] = &[
    ("a step opens its streams by name, also as a user", streams_by_name),
    ("a user has no capability and the step's host name", user_in_namespaces),
    ("a step is root with what containers may do", root_capabilities),
    ("nothing else is seen of what a step left running", no_leftovers_seen),
    ("an orphan is reaped while the step runs", orphans),
    ("changes are where they are said to be and mount points are not", changes),
    ("a root without layers can be used", scratch),
    ("a base without mount points has none afterwards", no_mount_points_left),
    ("a read-only mount cannot be written", read_only_mount),
    ("a step without a network has a loopback alone", no_network),
    ("a low port needs no privilege", low_port),
    ("the way out leads to the name server and not to link-local addresses", routes),
];

fn exit_status(bench: &mut Bench) {
    assert_eq!(bench.shell("exit 0").0, Outcome::Exited(0));
    assert_eq!(bench.shell("exit 7").0, Outcome::Exited(7));
}

fn signal(bench: &mut Bench) {
    assert_eq!(bench.shell("kill -TERM $$").0, Outcome::Signalled(15));
}

fn missing_program(bench: &mut Bench) {
    let run = |bench: &mut Bench, name: &str| {
        let step = Step { argv: vec![name.to_owned()], ..bench.step("") };
        bench.run(&step, None).unwrap().0
    };
    assert_eq!(run(bench, "no-such-program"), Outcome::Exited(127));
    assert_eq!(run(bench, "/etc/base"), Outcome::Exited(126));
    assert_eq!(run(bench, "true"), Outcome::Exited(0));
}

fn streams_by_name(bench: &mut Bench) {
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; cat < /dev/stdin";
    assert_eq!(bench.shell(script).1, "out\nerr\n");
    let step = Step { user: UserIds { uid: 1000, gid: 1000, groups: Vec::new() }, ..bench.step(script) };
    assert_eq!(bench.run(&step, None).unwrap().1, "out\nerr\n");
}

fn environment(bench: &mut Bench) {
    let mut step = bench.step("");
    step.argv = vec!["env".to_owned()];
    step.environment.push(("A".to_owned(), "b=c d".to_owned()));
    let (_, output) = bench.run(&step, None).unwrap();
    assert_eq!(output, "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nA=b=c d\n");
}

fn user(bench: &mut Bench) {
    let user = UserIds { uid: 1000, gid: 1001, groups: vec![1002] };
    let step = Step { user, ..bench.step("id -u; id -g; id -G; umask; pwd") };
    let (_, output) = bench.run(&Step { directory: "/tmp".into(), ..step }, None).unwrap();
    assert_eq!(output, "1000\n1001\n1001 1002\n0022\n/tmp\n");
}

fn user_in_namespaces(bench: &mut Bench) {
    let user = UserIds { uid: 1000, gid: 1001, groups: vec![1002] };
    let step =
        Step { user, hostname: "web".to_owned(), ..bench.step("hostname; grep CapEff /proc/self/status") };
    assert_eq!(bench.run(&step, None).unwrap().1, "web\nCapEff:\t0000000000000000\n");
}

fn root_capabilities(bench: &mut Bench) {
    let (_, output) = bench.shell("grep -E 'CapEff|CapBnd|CapInh' /proc/self/status");
    assert_eq!(output, "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n");
}

fn time_limit(bench: &mut Bench) {
    let begun = Instant::now();
    let step = bench.step("setsid sleep 300 & trap '' TERM; sleep 300");
    let (outcome, _) = bench.run(&step, Some(Duration::from_millis(200))).unwrap();
    assert_eq!(outcome, Outcome::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn leftovers(bench: &mut Bench) {
    // The output is read to its end, which is not there before every writer has gone.
    let (outcome, output) = bench.shell("setsid sleep 300 & echo started");
    assert_eq!((outcome, output.as_str()), (Outcome::Exited(0), "started\n"));
}

fn no_leftovers_seen(bench: &mut Bench) {
    bench.shell("setsid sleep 300 & echo started");
    let (_, output) = bench.shell("ls -d /proc/[0-9]* | wc -l");
    // The first process, the shell, ls and wc.
    assert!(output.trim().parse::<u32>().unwrap() <= 4, "{output}");
}

fn orphans(bench: &mut Bench) {
    let script = "(sh -c 'echo $$ > /tmp/pid; exit 0' &) ; while ! test -s /tmp/pid; do :; done; \
                  while test -e /proc/$(cat /tmp/pid); do :; done; echo reaped";
    let (_, output) = bench.run(&bench.step(script), Some(Duration::from_secs(20))).unwrap();
    assert_eq!(output, "reaped\n");
}

fn changes(bench: &mut Bench) {
    bench.shell("echo new > /etc/new; rm /etc/base; cat /etc/resolv.conf > /dev/null");
    let Changes::Upper { directory } = bench.changes() else {
        panic!("an overlay's changes are in its upper");
    };
    let (_, seen) = bench.shell("ls /etc/new /etc/base 2>&1");
    assert!(seen.contains("/etc/new\n") && seen.contains("'/etc/base'"), "{seen}");
    bench.changes();
    let etc =
        std::process::Command::new("ls").arg(bench.layers.join(directory).join("etc")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&etc.stdout), "base\nnew\n");
}

fn steps_share_a_root(bench: &mut Bench) {
    bench.shell("echo kept > /tmp/kept");
    assert_eq!(bench.shell("cat /tmp/kept /etc/base").1, "kept\nfrom the base\n");
}

fn scratch(bench: &mut Bench) {
    bench.ask(&Request::Close);
    bench.ask(&Request::Remove(vec!["upper".into(), "work".into()]));
    bench.open(&[]);
    let mut step = bench.step("");
    step.argv = vec!["/usr/bin/env".to_owned()];
    // Its interpreter is `/lib64/…`, which an empty root has not: 127, as everywhere.
    assert_eq!(bench.run(&step, None).unwrap().0, Outcome::Exited(127));
    let Changes::Upper { directory } = bench.changes() else {
        panic!("an overlay's changes are in its upper");
    };
    assert_eq!(std::fs::read_dir(bench.layers.join(directory)).unwrap().count(), 0);
}

fn no_mount_points_left(bench: &mut Bench) {
    bench.shell("ls -d /proc/1 /sys/class /dev/null /etc/hosts > /dev/null && ls /usr/bin > /dev/null");
    let Changes::Upper { directory } = bench.changes() else {
        panic!("an overlay's changes are in its upper");
    };
    let upper = bench.layers.join(directory);
    let mut names: Vec<_> = std::fs::read_dir(&upper)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["etc"]);
    assert_eq!(std::fs::read_dir(upper.join("etc")).unwrap().count(), 0);
    let modified = |path: &std::path::Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let base = bench.directory.path().join("base");
    assert_eq!(modified(&upper), modified(&base));
    assert_eq!(modified(&upper.join("etc")), modified(&base.join("etc")));
}

fn tmpfs(bench: &mut Bench) {
    let mut step = bench.step("echo a > /a/b/c; ls /a/b; stat -c %a /a/b");
    let source = MountSource::Tmpfs { max_bytes: Some(1 << 20), mode: 0o700 };
    step.mounts.push(Mount { target: "/a/b".into(), source, access: Access::ReadWrite });
    for _ in 0..2 {
        assert_eq!(bench.run(&step, None).unwrap().1, "c\n700\n");
    }
    bench.changes();
    assert_ne!(bench.shell("ls -d /a 2>&1").0, Outcome::Exited(0));
}

fn read_only_mount(bench: &mut Bench) {
    let (_, output) = bench.shell("touch /usr/x 2>&1");
    assert_eq!(output, "touch: cannot touch '/usr/x': Read-only file system\n");
}

fn no_network(bench: &mut Bench) {
    let step = Step {
        network: StepNetwork::None,
        ..bench.step("tail -n +3 /proc/net/dev | cut -d: -f1; wc -c < /etc/resolv.conf")
    };
    let (_, output) = bench.run(&step, None).unwrap();
    assert_eq!(output.split_whitespace().filter(|word| *word != "0").collect::<Vec<_>>(), ["lo"]);
}

fn missing_directory(bench: &mut Bench) {
    let step = Step { directory: "/nowhere".into(), ..bench.step("true") };
    let error = bench.run(&step, None).unwrap_err();
    assert!(error.contains("`/nowhere`"), "{error}");
}

fn low_port(bench: &mut Bench) {
    let step = Step {
        user: UserIds { uid: 1000, gid: 1000, groups: Vec::new() },
        ..bench.step("cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
    };
    assert_eq!(bench.run(&step, None).unwrap().1, "0\n");
}

fn routes(bench: &mut Bench) {
    // Little-endian addresses: the default through 10.0.2.2, and 169.254.0.0/16 refused (flag 0x200).
    let (_, output) = bench.shell("cat /etc/resolv.conf; cut -f 1-4 /proc/net/route");
    assert!(output.starts_with("nameserver 10.0.2.3\n"), "{output}");
    assert!(output.contains("tap0\t00000000\t0202000A\t0003"), "{output}");
    assert!(output.contains("*\t0000FEA9\t00000000\t0201"), "{output}");
}

fn hangup(bench: &mut Bench) {
    let begun = Instant::now();
    let killer = bench.worker.killer();
    let kill = std::thread::spawn(move || killer.kill());
    let step = bench.step("setsid sleep 300 & sleep 300");
    let request = Request::Run { step, limit: None };
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = std::os::fd::AsFd::as_fd(&null);
    // Either it is refused at once or it never gets an answer; in both cases it is over.
    assert!(bench.worker.call::<_, hephy::sandbox::steps::Answer>(&request, &[fd, fd, fd]).is_err());
    kill.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn fast(bench: &mut Bench) {
    let mut step = bench.step("");
    step.argv = vec!["true".to_owned()];
    let mut times: Vec<_> = (0..20)
        .map(|_| {
            let begun = Instant::now();
            assert_eq!(bench.run(&step, None).unwrap().0, Outcome::Exited(0));
            begun.elapsed()
        })
        .collect();
    times.sort();
    // Some 3 ms on an idle machine; the limit is for one that is busy with other tests.
    assert!(times.first().unwrap() < &bench.patience(), "{times:?}");
}
