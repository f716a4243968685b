use tokio::net::TcpStream;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_is_refused() {
    let receiver = receiver().await;
    let sftp = output(receiver.ssh_as(&["known"], &["-s"], &["sftp"])).await;
    assert!(!sftp.status.success());
    let forward =
        receiver.ssh_as(&["known"], &["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"], &["who"]);
    let forward = output(forward).await;
    assert_eq!(forward.status.code(), Some(255), "{}", stdout(&forward));
    let inward = output(receiver.ssh_as(&["known"], &["-W", "127.0.0.1:1"], &[])).await;
    assert!(stderr(&inward).contains("stdio forwarding failed"), "{}", stderr(&inward));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_log_in_is_dropped_and_others_are_served_meanwhile() {
    let limits =
        Limits { login_timeout: Duration::from_millis(1500), unauthenticated: 4, ..Limits::default() };
    let receiver = receiver_with(limits, &["known"]).await;
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(receiver.address).await.unwrap();
        stream.write_all(b"SSH-2").await.unwrap();
        slow.push(stream);
    }
    let output = output(receiver.ssh(&["who"])).await;
    assert!(output.status.success() || output.status.code() == Some(255), "{}", stderr(&output));
    for stream in slow {
        assert_eq!(read_all(stream).await, b"SSH-2.0-hephy\r\n");
    }
    assert!(super::output(receiver.ssh(&["who"])).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dribbles_its_key_exchange_is_dropped() {
    let limits = Limits { login_timeout: Duration::from_millis(500), ..Limits::default() };
    let receiver = receiver_with(limits, &["known"]).await;
    let mut stream = TcpStream::connect(receiver.address).await.unwrap();
    stream.write_all(b"SSH-2.0-slow\r\n\x00\x00").await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let dribble = tokio::spawn(async move {
        while write.write_all(b"\x00").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut bytes = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(5), read.read_to_end(&mut bytes)).await;
    assert!(end.is_ok(), "the connection is still open");
    dribble.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_not_answered_and_harms_nobody() {
    let receiver = receiver().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0; 4096],
        b"\x16\x03\x01\x02\x00",
        b"SSH-1.5-old\r\n",
        b"\n\n\n\n",
    ] {
        let mut stream = TcpStream::connect(receiver.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_all(stream).await, b"SSH-2.0-hephy\r\n", "{garbage:?}");
    }
    let mut stream = TcpStream::connect(receiver.address).await.unwrap();
    stream.write_all(b"SSH-2.0-x\r\n\xff\xff\xff\xff").await.unwrap();
    let begun = read_all(stream).await;
    assert!(begun.starts_with(b"SSH-2.0-hephy\r\n"));
    assert!(output(receiver.ssh(&["who"])).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_a_limited_number_of_connections() {
    let limits = Limits { per_address: 3, ..Limits::default() };
    let receiver = receiver_with(limits, &["known"]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(receiver.address).await.unwrap();
        let mut banner = [0; 15];
        stream.read_exact(&mut banner).await.unwrap();
        streams.push(stream);
    }
    assert_eq!(read_all(TcpStream::connect(receiver.address).await.unwrap()).await, b"");
    drop(streams);
    // A place comes back as soon as the server has seen the end of one.
    tokio::time::timeout(PATIENCE, async { while !output(receiver.ssh(&["who"])).await.status.success() {} })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_algorithms_are_not_offered() {
    let receiver = receiver().await;
    for option in [
        "KexAlgorithms=diffie-hellman-group14-sha1",
        "Ciphers=aes128-cbc",
        "MACs=hmac-sha1",
        "HostKeyAlgorithms=ssh-rsa",
    ] {
        let output =
            output(receiver.ssh_as(&["known"], &["-o", option, "-o", "Ciphers=aes256-ctr"], &["who"])).await;
        if option != "Ciphers=aes128-cbc" {
            assert_eq!(output.status.code(), Some(255), "{option}");
        }
    }
    let cbc = output(receiver.ssh_as(&["known"], &["-o", "Ciphers=aes128-cbc"], &["who"])).await;
    assert_eq!(cbc.status.code(), Some(255));
    let modern = output(receiver.ssh_as(&["known"], &["-o", "Ciphers=aes256-ctr", "-C"], &["who"])).await;
    assert!(modern.status.success(), "{}", stderr(&modern));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_nobody_reads_is_not_taken_without_end() {
    let receiver = receiver().await;
    let mut child = receiver.ssh(&["hold"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut taken = 0;
    let part = vec![0; 1 << 20];
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(2), input.write(&part)).await {
        taken += written.unwrap();
        assert!(taken < 64 << 20, "the server takes everything");
    }
    assert!(taken > 4 << 20, "only {taken} bytes");
}
