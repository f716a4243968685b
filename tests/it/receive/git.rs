use super::*;

/// A repository of the server's, and a working tree that pushes to it.
async fn repository(receiver: &Receiver) -> PathBuf {
    let bare = receiver.home.path().join("repositories/hello.git");
    let source = receiver.home.path().join("source");
    for directory in [&bare, &source] {
        std::fs::create_dir_all(directory).unwrap();
    }
    assert!(
        output(receiver.git(&["known"], &bare, &["init", "-q", "--bare", "-b", "main"]))
            .await
            .status
            .success()
    );
    assert!(output(receiver.git(&["known"], &source, &["init", "-q", "-b", "main"])).await.status.success());
    source
}

pub(super) async fn commit(receiver: &Receiver, source: &Path, bytes: usize) {
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(source.join("file"), noise).unwrap();
    for arguments in [&["add", "."][..], &["commit", "-q", "-m", "one"]] {
        assert!(output(receiver.git(&["known"], source, arguments)).await.status.success());
    }
}

/// Waits until a child has said so on standard error.
pub(super) async fn until_said(child: &mut tokio::process::Child, text: &str) {
    let mut errors = child.stderr.take().unwrap();
    let mut said = String::new();
    while !said.contains(text) {
        let mut buffer = [0; 64];
        let read = errors.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{said}");
        said.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    child.stderr = Some(errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_and_a_clone_work_with_stock_git() {
    let receiver = receiver().await;
    let source = repository(&receiver).await;
    commit(&receiver, &source, 30 << 20).await;
    let remote = receiver.remote("hello");
    let pushed = output(receiver.git(&["known"], &source, &["push", &remote, "main"])).await;
    assert!(pushed.status.success(), "{}", stderr(&pushed));
    let cloned =
        output(receiver.git(&["known"], receiver.home.path(), &["clone", "-q", &remote, "clone"])).await;
    assert!(cloned.status.success(), "{}", stderr(&cloned));
    let (sent, back) =
        (std::fs::read(source.join("file")), std::fs::read(receiver.home.path().join("clone/file")));
    assert!(sent.unwrap() == back.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_refused_halfway_ends_with_the_report_and_not_a_broken_pipe() {
    let receiver = receiver().await;
    let source = repository(&receiver).await;
    commit(&receiver, &source, 30 << 20).await;
    let bare = receiver.home.path().join("repositories/hello.git");
    let limit = receiver.git(&["known"], &bare, &["config", "receive.maxInputSize", "100000"]);
    assert!(output(limit).await.status.success());
    let pushed =
        output(receiver.git(&["known"], &source, &["push", &receiver.remote("hello"), "main"])).await;
    let text = stderr(&pushed);
    assert!(!pushed.status.success());
    assert!(text.contains("pack exceeds maximum allowed size"), "{text}");
    assert!(text.contains("[remote rejected] main -> main"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_push_is_a_hangup() {
    let mut receiver = receiver().await;
    let source = repository(&receiver).await;
    commit(&receiver, &source, 1000).await;
    let hook = receiver.home.path().join("repositories/hello.git/hooks/pre-receive");
    std::fs::write(&hook, "#!/bin/sh\necho building >&2\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut git = receiver.git(&["known"], &source, &["push", "-q", &receiver.remote("hello"), "main"]);
    let mut child = git.process_group(0).spawn().unwrap();
    until_said(&mut child, "building").await;
    // What a terminal does with Ctrl-C.
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::SIGINT).unwrap();
    assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Hangup);
    child.wait().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_is_no_apps_name_is_refused_with_what_a_name_is() {
    let receiver = receiver().await;
    let directory = receiver.home.path();
    for path in ["a/b", "..", "Hello", "a--b"] {
        let output =
            output(receiver.git(&["known"], directory, &["ls-remote", &receiver.remote(path)])).await;
        let text = stderr(&output);
        assert!(!output.status.success());
        assert!(text.contains("there is no repository"), "{text}");
        assert!(text.contains("remote error: hephy refused this"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_archive_and_other_services_are_refused_with_the_reason() {
    let receiver = receiver().await;
    let remote = format!("--remote={}", receiver.remote("hello"));
    let archive = output(receiver.git(&["known"], receiver.home.path(), &["archive", &remote, "HEAD"])).await;
    assert!(stderr(&archive).contains("`git-upload-archive` is not served here"), "{}", stderr(&archive));
    let bad = output(receiver.ssh(&["words 'a"])).await;
    assert_eq!(bad.status.code(), Some(1));
    assert!(stderr(&bad).contains("a quote (') is opened and not closed"), "{}", stderr(&bad));
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_that_send_no_pack_end_at_once() {
    let receiver = receiver().await;
    let source = repository(&receiver).await;
    commit(&receiver, &source, 1000).await;
    let remote = receiver.remote("hello");
    let refspecs: [&[&str]; 5] = [
        &["main"],
        &["main:refs/heads/other", "main:refs/tags/v1"],
        &["main"],
        &[":other"],
        &["--delete", "v1"],
    ];
    for refs in refspecs {
        let begin = std::time::Instant::now();
        let delete = refs.first() == Some(&"--delete");
        let mut arguments = vec!["push"];
        arguments.extend(delete.then_some("--delete"));
        arguments.push(&remote);
        arguments.extend(refs.iter().filter(|name| **name != "--delete"));
        let pushed = output(receiver.git(&["known"], &source, &arguments)).await;
        assert!(pushed.status.success(), "{refs:?} {}", stderr(&pushed));
        assert!(begin.elapsed() < Duration::from_secs(20), "{refs:?} took {:?}", begin.elapsed());
    }
}
