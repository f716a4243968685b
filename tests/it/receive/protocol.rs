//! Our own git protocol over our own SSH, as a push has them.

use hephy::git::{Limits, Received, Refs, Repository, Shown, Verdict, receive_pack, upload_pack};
use hephy::model::RefName;

use super::*;

/// Receives as a push does: what it says depends on the app's name.
pub(super) async fn receive(
    repositories: &Path,
    refs: &Mutex<Refs>,
    gone: &mpsc::UnboundedSender<Gone>,
    app: &AppName,
    session: Session,
) -> u8 {
    let Session { mut stdin, stdout, closed, .. } = session;
    std::fs::create_dir_all(repositories).unwrap();
    let repository = Repository::open_or_create(&repositories.join(format!("{app}.git"))).unwrap();
    let mut limits = Limits::default();
    if app.as_str() == "own-small" {
        limits.max_pack_bytes = 100_000;
    }
    let before = refs.lock().unwrap().clone();
    let (push, mut reporter) = match receive_pack(&repository, &before, &limits, &mut stdin, stdout).await {
        Ok(Received::Push(push, reporter)) => (push, reporter),
        Ok(Received::Nothing(..) | Received::Refused) | Err(_) => return 1,
    };
    reporter.progress("-----> Building\n").await.unwrap();
    if app.as_str() == "own-slow" {
        let went = loop {
            tokio::select! {
                went = closed.wait() => break went,
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(reporter.keepalive().await),
            }
        };
        gone.send(went).unwrap();
        return 1;
    }
    for line in 0..5000 {
        reporter.progress(&format!("       line {line}\n")).await.unwrap();
    }
    let mut after = before;
    let mut verdicts = Vec::new();
    for command in &push.commands {
        let accepted = command.name.as_branch() == Some("main");
        if accepted {
            after.extend(command.new.map(|new| (command.name.clone(), new)));
        }
        let verdict = if accepted { Verdict::Accepted } else { Verdict::Refused("push to main".into()) };
        verdicts.push((command.name.clone(), verdict));
    }
    let keep: Vec<_> = after.values().copied().collect();
    push.quarantine.migrate(&keep).unwrap();
    *refs.lock().unwrap() = after;
    reporter.finish(verdicts).await.unwrap();
    0
}

pub(super) async fn upload(repositories: &Path, refs: &Mutex<Refs>, app: &AppName, session: Session) -> u8 {
    let repository = Repository::open_or_create(&repositories.join(format!("{app}.git"))).unwrap();
    let refs = refs.lock().unwrap().clone();
    let head = RefName::branch("main").unwrap();
    let protocol = session.environment.git_protocol.as_deref();
    let shown = Shown { refs: &refs, head: &head, protocol, idle: PATIENCE };
    u8::from(upload_pack(&repository, shown, session.stdin, session.stdout).await.is_err())
}

/// A working tree with one incompressible file.
async fn work(receiver: &Receiver, bytes: usize) -> PathBuf {
    let source = receiver.home.path().join("work");
    std::fs::create_dir(&source).unwrap();
    assert!(output(receiver.git(&["known"], &source, &["init", "-q", "-b", "main"])).await.status.success());
    super::git::commit(receiver, &source, bytes).await;
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_a_refusal_of_a_branch_and_a_clone_go_through() {
    let receiver = receiver().await;
    let source = work(&receiver, 20 << 20).await;
    let remote = receiver.remote("own");
    let pushed =
        output(receiver.git(&["known"], &source, &["push", &remote, "main", "main:refs/heads/other"])).await;
    let text = stderr(&pushed);
    assert!(!pushed.status.success(), "{text}");
    assert!(text.contains("remote: -----> Building"), "{text}");
    assert!(text.contains("remote:        line 4999"), "{text}");
    assert!(text.contains("[new branch]      main -> main"), "{text}");
    assert!(text.contains("[remote rejected] main -> other (push to main)"), "{text}");
    for options in [&["clone", "-q"][..], &["-c", "protocol.version=0", "clone", "-q", "--depth=1"]] {
        let copy = receiver.home.path().join(format!("copy{}", options.len()));
        let mut arguments = options.to_vec();
        let copy_text = copy.display().to_string();
        arguments.extend([remote.as_str(), &copy_text]);
        let cloned = output(receiver.git(&["known"], receiver.home.path(), &arguments)).await;
        assert!(cloned.status.success(), "{}", stderr(&cloned));
        assert!(std::fs::read(copy.join("file")).unwrap() == std::fs::read(source.join("file")).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_too_large_ends_with_the_reason() {
    let receiver = receiver().await;
    let source = work(&receiver, 20 << 20).await;
    let pushed =
        output(receiver.git(&["known"], &source, &["push", &receiver.remote("own-small"), "main"])).await;
    let text = stderr(&pushed);
    assert!(!pushed.status.success());
    assert!(text.contains("[remote rejected] main -> main"), "{text}");
    assert!(!text.contains("hung up"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_in_git_is_a_hangup_within_two_seconds() {
    let mut receiver = receiver().await;
    let source = work(&receiver, 1000).await;
    let mut git = receiver.git(&["known"], &source, &["push", &receiver.remote("own-slow"), "main"]);
    let mut child = git.process_group(0).spawn().unwrap();
    super::git::until_said(&mut child, "Building").await;
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::killpg(group, nix::sys::signal::SIGINT).unwrap();
    assert_eq!(receiver.goes_within(Duration::from_secs(2)).await, Gone::Hangup);
    child.wait().await.unwrap();
}
