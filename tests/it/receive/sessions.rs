use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_becomes_words_and_never_a_shells_business() {
    let receiver = receiver().await;
    let output = output(receiver.ssh(&["words 'a b' \"c $HOME\" ; touch /tmp/x | $(id) `id` > y"])).await;
    assert_eq!(
        stdout(&output),
        r#"["a b", "c $HOME", ";", "touch", "/tmp/x", "|", "$(id)", "`id`", ">", "y"]"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_gets_a_greeting_with_and_without_a_terminal() {
    let receiver = receiver().await;
    let plain = output(receiver.ssh_as(&["known"], &["-T"], &[])).await;
    assert_eq!((plain.status.code(), stdout(&plain).as_str()), (Some(0), "Hello ada.\nThis is hephy.\n"));
    let terminal = output(receiver.ssh_as(&["known"], &["-tt"], &[])).await;
    assert_eq!(
        (terminal.status.code(), stdout(&terminal).as_str()),
        (Some(0), "Hello ada.\r\nThis is hephy.\r\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_of_both_streams_arrive_before_the_exit_status() {
    let receiver = receiver().await;
    let output = output(receiver.ssh(&["lines 20000"])).await;
    assert_eq!(output.status.code(), Some(7));
    let expected: String = (0..20000).flat_map(|line| [line.to_string(), "\n".to_owned()]).collect();
    assert!(stdout(&output) == expected, "{} bytes", output.stdout.len());
    assert!(stderr(&output).ends_with("e19998\ne19999\n"));
    assert_eq!(stderr(&output).lines().count(), 20000);
}

/// Sends [`PATTERN`] so many bytes long, and compares what comes back of it. Returns what else came.
async fn exchange(mut ssh: tokio::process::Command, sent: usize) -> (usize, String) {
    let mut child = ssh.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let writer = tokio::spawn(async move {
        let mut left = sent;
        while left > 0 {
            let part = left.min(PATTERN.len());
            input.write_all(&PATTERN[..part]).await.unwrap();
            left -= part;
        }
    });
    let mut text = Vec::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = tokio::time::timeout(PATIENCE, output.read(&mut buffer)).await.unwrap().unwrap();
        if read == 0 {
            break;
        }
        if buffer[..read].iter().all(u8::is_ascii_digit) {
            text.extend_from_slice(&buffer[..read]);
        } else {
            bytes = continues(bytes, &buffer[..read]);
        }
    }
    writer.await.unwrap();
    assert!(child.wait().await.unwrap().success());
    (bytes, String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_arrive_as_they_were_sent() {
    let receiver = receiver().await;
    assert_eq!(exchange(receiver.ssh(&["count"]), 100 << 20).await.1, (100 << 20).to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_are_received_as_they_were_written() {
    let receiver = receiver().await;
    assert_eq!(exchange(receiver.ssh(&["pattern 104857600"]), 0).await.0, 100 << 20);
}

/// Both ways at once: less than waits for a command that waits for the client (see `receive/gate.rs`).
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_keys_are_exchanged_again_on_the_way() {
    let receiver = receiver().await;
    let ssh = receiver.ssh_as(&["known"], &["-o", "RekeyLimit=1M"], &["cat"]);
    assert_eq!(exchange(ssh, 20 << 20).await.0, 20 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_client_is_noticed_within_two_seconds() {
    let mut receiver = receiver().await;
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGKILL] {
        let mut child = receiver.ssh(&["wait"]).spawn().unwrap();
        receiver.running().await;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Hangup);
        child.wait().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_client_is_noticed_while_its_input_is_not_read() {
    let mut receiver = receiver().await;
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let mut child = receiver.ssh(&["wait"]).stdin(zeros).spawn().unwrap();
    receiver.running().await;
    // Until the server has taken all it will take, which shows in nothing: a moment is enough.
    tokio::time::sleep(Duration::from_millis(300)).await;
    child.kill().await.unwrap();
    assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Hangup);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_a_terminal_is_a_hangup() {
    let mut receiver = receiver().await;
    let mut child = receiver.ssh_as(&["known"], &["-tt"], &["wait"]).stdin(Stdio::piped()).spawn().unwrap();
    receiver.running().await;
    child.stdin.as_mut().unwrap().write_all(&[3]).await.unwrap();
    assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Hangup);
    assert_eq!(child.wait().await.unwrap().code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_input_is_not_the_end_of_the_client() {
    let mut receiver = receiver().await;
    let mut child = receiver.ssh(&["wait"]).spawn().unwrap();
    receiver.running().await;
    assert!(tokio::time::timeout(Duration::from_millis(700), receiver.gone.recv()).await.is_err());
    child.kill().await.unwrap();
    assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Hangup);
}

fn impatient() -> Limits {
    Limits { keepalive_interval: Duration::from_millis(200), keepalive_max: 3, ..Limits::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_command_outlives_the_keepalives_of_a_living_client() {
    let receiver = receiver_with(impatient(), &["known"]).await;
    let output = output(receiver.ssh(&["silent 3000"])).await;
    assert_eq!(stdout(&output), "still here\n", "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_no_sign_of_life_is_silent_and_not_a_hangup() {
    let mut receiver = receiver_with(impatient(), &["known"]).await;
    let child = receiver.ssh(&["wait"]).spawn().unwrap();
    receiver.running().await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    assert_eq!(receiver.goes_within(Duration::from_secs(5)).await, Gone::Silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_clients_at_once_are_served() {
    let receiver = receiver().await;
    let clients: Vec<_> =
        (0..64).map(|number| tokio::spawn(output(receiver.ssh(&[&format!("words {number}")])))).collect();
    for (number, client) in clients.into_iter().enumerate() {
        let output = client.await.unwrap();
        assert_eq!(stdout(&output), format!("[\"{number}\"]"), "{}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_share_a_connection() {
    let receiver = receiver().await;
    let socket = receiver.home.path().join("control");
    let control = format!("ControlPath={}", socket.display());
    let mut master = receiver.ssh_as(&["known"], &["-o", &control, "-M", "-N"], &[]).spawn().unwrap();
    while !socket.exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for round in 0..30 {
        let output = output(receiver.ssh_as(&["known"], &["-o", &control], &["words", "x"])).await;
        assert_eq!(stdout(&output), "[\"x\"]", "{round} {}", stderr(&output));
    }
    let closing = output(receiver.ssh_as(&["known"], &["-o", &control, "-O", "exit"], &[])).await;
    assert!(closing.status.success());
    master.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_breaks_says_so_and_the_server_lives() {
    let receiver = receiver().await;
    let broken = output(receiver.ssh(&["break"])).await;
    assert_eq!(broken.status.code(), Some(70));
    assert!(stderr(&broken).contains("broke inside the server"), "{}", stderr(&broken));
    assert!(output(receiver.ssh(&["who"])).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_and_the_terminals_width_reach_the_command() {
    let receiver = receiver().await;
    let mut ssh = receiver.ssh_as(&["known"], &["-o", "SendEnv=GIT_PROTOCOL"], &["who"]);
    ssh.env("GIT_PROTOCOL", "version=2");
    assert_eq!(stdout(&output(ssh).await), "ada known hephy Some(\"version=2\") None\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_tells_its_sessions_and_delivers_their_last_words() {
    let mut receiver = receiver().await;
    let child = receiver.ssh(&["wait"]).spawn().unwrap();
    receiver.running().await;
    receiver.stop.cancel();
    assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Shutdown);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    tokio::time::timeout(PATIENCE, &mut receiver.task).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(receiver.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_server_waits_no_longer_than_its_grace() {
    let mut receiver = receiver().await;
    let mut idle = receiver.ssh_as(&["known"], &["-N"], &[]).spawn().unwrap();
    let child = receiver.ssh(&["silent 600000"]).spawn().unwrap();
    receiver.running().await;
    receiver.stop.cancel();
    let output =
        tokio::time::timeout(Duration::from_secs(10), child.wait_with_output()).await.unwrap().unwrap();
    assert!(stderr(&output).contains("server was stopped"), "{}", stderr(&output));
    tokio::time::timeout(Duration::from_secs(10), &mut receiver.task).await.unwrap().unwrap();
    idle.wait().await.unwrap();
}
