//! Measures, with OpenSSH's server in the same run: `cargo test --test it measure -- --ignored --nocapture`.

use super::*;

/// An OpenSSH server on this machine for the user who runs the test.
async fn sshd(home: &Path) -> (tokio::process::Child, u16) {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let at = |name: &str| home.join(name).display().to_string();
    make_key(home, "sshd_key", &["-t", "ed25519"]);
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile none\n",
        at("sshd_key"),
        at("known.pub"),
    );
    std::fs::write(home.join("sshd_config"), config).unwrap();
    std::fs::create_dir_all("/run/sshd").unwrap();
    let mut known_hosts = std::fs::read_to_string(home.join("known_hosts")).unwrap();
    let key = std::fs::read_to_string(home.join("sshd_key.pub")).unwrap();
    known_hosts.extend(["[127.0.0.1]:", &port.to_string(), " ", &key]);
    std::fs::write(home.join("known_hosts"), known_hosts).unwrap();
    let mut server = tokio::process::Command::new("/usr/sbin/sshd");
    server.args(["-D", "-e", "-f", &at("sshd_config")]).stderr(Stdio::null()).kill_on_drop(true);
    let child = server.spawn().unwrap();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (child, port)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; needs an idle machine and OpenSSH's server"]
async fn a_large_push_is_not_slower_than_over_openssh() {
    let receiver = receiver().await;
    let home = receiver.home.path();
    let (_sshd, port) = sshd(home).await;
    let source = home.join("source");
    std::fs::create_dir_all(source.join("d")).unwrap();
    for number in 0..20_000_u64 {
        let line = format!("{:x}\n", number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        std::fs::write(source.join(format!("d/{number}")), line.repeat(150)).unwrap();
    }
    let noise: Vec<u8> =
        (0..3_000_000_u64).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
    std::fs::write(source.join("noise"), noise).unwrap();
    for arguments in [
        &["init", "-q", "-b", "main"][..],
        &["add", "."],
        &["commit", "-q", "-m", "one"],
        &["repack", "-adq"],
    ] {
        let prepared = output(receiver.git(&["known"], &source, arguments)).await;
        assert!(prepared.status.success(), "{arguments:?} {}", stderr(&prepared));
    }
    let bare = home.join("repositories");
    for round in 0..4 {
        for peer in ["hephy", "sshd"] {
            let app = format!("{peer}{round}");
            let repository = bare.join(format!("{app}.git"));
            std::fs::create_dir_all(&repository).unwrap();
            let init = receiver.git(&["known"], &repository, &["init", "-q", "--bare"]);
            assert!(output(init).await.status.success());
            let remote = match peer {
                "hephy" => receiver.remote(&app),
                _ => format!("ssh://root@127.0.0.1:{port}{}", repository.display()),
            };
            let begin = std::time::Instant::now();
            let pushed = output(receiver.git(&["known"], &source, &["push", "-q", &remote, "main"])).await;
            eprintln!("{peer}: {:?} {}", begin.elapsed(), stderr(&pushed));
            assert!(pushed.status.success());
        }
    }
}
