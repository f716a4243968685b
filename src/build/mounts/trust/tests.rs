//! What is laid over bundles, and what is left of it.

use std::fs;
use std::time::Duration;

use super::*;

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n";

fn root() -> (tempfile::TempDir, Root, SystemTime) {
    let directory = tempfile::tempdir().unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    fs::create_dir(directory.path().join("etc")).unwrap();
    File::open(directory.path().join("etc")).unwrap().set_modified(long_ago).unwrap();
    let root = Root::open(directory.path()).unwrap();
    (directory, root, long_ago)
}

#[test]
fn certificates_are_taken_out_of_whatever_else_is_in_the_file() {
    let pem = format!(
        "# note\n-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n{CERTIFICATE}x\n{CERTIFICATE}"
    );
    assert_eq!(certificates(&pem).unwrap(), CERTIFICATE.repeat(2));
    assert_eq!(certificates("-----BEGIN CERTIFICATE-----\ncut"), None);
}

#[test]
fn a_bundle_has_them_during_the_step_and_is_what_it_was_after_it() {
    let (directory, root, long_ago) = root();
    let path = directory.path().join("etc/ssl/certs/ca-certificates.crt");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "theirs, without an end").unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    std::os::unix::fs::symlink("certs/ca-certificates.crt", directory.path().join("etc/ssl/cert.pem"))
        .unwrap();
    let laid = Laid::lay(&root, CERTIFICATE).unwrap();
    let during = fs::read_to_string(&path).unwrap();
    assert_eq!(during, format!("theirs, without an end\n{CERTIFICATE}"));
    assert_eq!(laid.bundle, during);
    fs::write(&path, format!("{during}appended")).unwrap();
    laid.take_back(&root).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "theirs, without an endappended");
    fs::write(&path, "theirs").unwrap();
    File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    Laid::lay(&root, CERTIFICATE).unwrap().take_back(&root).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), long_ago);
}

#[test]
fn a_bundle_that_is_gone_is_the_steps_and_one_that_is_too_large_is_told() {
    let (directory, root, _) = root();
    let path = directory.path().join("etc/ssl/cert.pem");
    let lay = || {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "theirs").unwrap();
        Laid::lay(&root, CERTIFICATE).unwrap()
    };
    let laid = lay();
    File::options().write(true).open(&path).unwrap().set_len(2 * MAX_BUNDLE_BYTES + 1).unwrap();
    let error = laid.take_back(&root).unwrap_err();
    assert!(matches!(error, WorkerError::TrustTooLarge { .. }) && error.is_app(), "{error}");
    assert!(matches!(Laid::lay(&root, CERTIFICATE), Err(WorkerError::TrustTooLarge { .. })));
    let removed: [&dyn Fn(); 3] = [
        &|| fs::remove_file(&path).unwrap(),
        &|| {
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
        },
        &|| {
            fs::remove_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path.parent().unwrap(), "").unwrap();
        },
    ];
    for remove in removed {
        let laid = lay();
        remove();
        laid.take_back(&root).unwrap();
        drop(fs::remove_dir(&path));
    }
}

#[test]
fn an_image_without_a_bundle_has_one_for_the_step_and_no_trace_of_it() {
    let (directory, root, long_ago) = root();
    let laid = Laid::lay(&root, CERTIFICATE).unwrap();
    let path = directory.path().join("etc/ssl/certs/ca-certificates.crt");
    assert!(fs::read_to_string(&path).unwrap().contains("ours"));
    laid.take_back(&root).unwrap();
    assert_eq!(fs::read_dir(directory.path().join("etc")).unwrap().count(), 0);
    assert_eq!(fs::metadata(directory.path().join("etc")).unwrap().modified().unwrap(), long_ago);
}

#[test]
fn a_bundle_that_the_step_puts_there_is_added_to_and_then_the_steps_alone() {
    let (directory, root, _) = root();
    let laid = Laid::lay(&root, CERTIFICATE).unwrap();
    let watch = laid.watch(&root).unwrap();
    let path = directory.path().join("etc/ssl/certs/ca-certificates.crt");
    fs::write(path.with_extension("new"), "theirs\n").unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    let clock = std::time::Instant::now();
    while !fs::read_to_string(&path).unwrap().ends_with(CERTIFICATE) {
        assert!(clock.elapsed() < Duration::from_mins(1), "waited in vain");
        std::thread::yield_now();
    }
    drop(watch);
    laid.take_back(&root).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "theirs\n");
}

#[test]
fn what_a_package_manager_set_aside_because_of_ours_takes_its_place() {
    let (directory, root, _) = root();
    let path = directory.path().join("etc/ssl/cert.pem");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "old").unwrap();
    let laid = Laid::lay(&root, CERTIFICATE).unwrap();
    fs::write(directory.path().join("etc/ssl/cert.pem.apk-new"), "new").unwrap();
    laid.take_back(&root).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert!(!directory.path().join("etc/ssl/cert.pem.apk-new").exists());
}

#[test]
fn a_link_that_leaves_the_image_is_not_followed_out() {
    let (directory, root, _) = root();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "outside").unwrap();
    fs::create_dir_all(directory.path().join("etc/ssl/certs")).unwrap();
    std::os::unix::fs::symlink(outside.path(), directory.path().join("etc/ssl/certs/ca-certificates.crt"))
        .unwrap();
    Laid::lay(&root, CERTIFICATE).unwrap().take_back(&root).unwrap();
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "outside");
}
