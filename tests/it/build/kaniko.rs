//! hephy in the place of kaniko's executor.

use std::os::unix::fs::symlink;
use std::process::Command;

use hephy::oci::{Digest, Platform, RawManifest};

use super::{Place, base};
use crate::registry::faulty::{Faulty, answer};

fn executor(place: &Place, flags: &[&str]) -> std::process::Output {
    let program = place.path("executor");
    if !program.exists() {
        symlink(crate::ordinary_user::executable(), &program).unwrap();
    }
    let mut command = Command::new(program);
    command.arg(format!("--context=dir://{}", place.path("context").display()));
    command.arg("--registry-mirror").arg(format!("oci:{}", base::layout().display()));
    command.env("HEPHY_DATA", place.path("data")).args(flags).output().unwrap()
}

#[test]
fn an_executors_command_line_builds_the_image() {
    let place = Place::new();
    place.file("Dockerfile", "FROM busybox:1\nARG NAME\nRUN echo $NAME > /name\n");
    let (layout, names) = (place.path("layout"), place.path("names"));
    let output = executor(
        &place,
        &[
            "--dockerfile=Dockerfile",
            "--destination=registry.invalid/team/app:v1",
            "--noPush=true",
            "--snapshotMode=redo",
            "--use-new-run=true",
            "--cleanup",
            "--buildArg",
            "NAME=x",
            "--image-format=docker",
            "--annotation=org.example.a=b",
            "--log-timestamp",
            "--compressed-caching=false",
            &format!("--image-name-tag-with-digest-file={}", names.display()),
            &format!("--oci-layout-path={}", layout.display()),
        ],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let digest = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(std::fs::read_to_string(names).unwrap(), format!("registry.invalid/team/app:v1@{digest}\n"));
    let step = said.lines().find(|line| line.contains("RUN echo")).unwrap();
    assert!(step.starts_with("20") && step.contains("Z "), "{said}");
    let manifest = std::fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
    let manifest = RawManifest::parse(manifest, None).unwrap();
    assert_eq!(manifest.media_type().as_str(), "application/vnd.docker.distribution.manifest.v2+json");
    let image = manifest.as_image().unwrap();
    assert_eq!(image.config.media_type.as_str(), "application/vnd.docker.container.image.v1+json");
    assert!(
        image
            .layers
            .iter()
            .all(|layer| layer.media_type.as_str() == "application/vnd.docker.image.rootfs.diff.tar.gzip")
    );
    assert_eq!(image.annotations["org.example.a"], "b");
}

#[test]
fn a_flag_that_cannot_be_done_says_why() {
    let place = Place::new();
    place.file("Dockerfile", "FROM scratch\n");
    for (flag, why) in [
        ("--single-snapshot", "each step is a layer"),
        ("--ignore-path=/x", "--mount=type=tmpfs"),
        ("--materialize", "--oci-layout-path"),
    ] {
        let output = executor(&place, &["--no-push", flag]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(why), "{flag}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_cannot_be_moved_is_an_error_unless_it_is_to_be_none() {
    let refusal = r#"{"errors":[{"code":"TAG_INVALID","message":"the tag `1` cannot be overwritten because the tag is immutable"}]}"#;
    let registry =
        Faulty::start(move |_, asked| match (asked.method.as_str(), asked.path.contains("/manifests/")) {
            ("HEAD", false) => answer(200, &[], ""),
            ("PUT", true) => answer(400, &[], refusal),
            _ => answer(404, &[], ""),
        })
        .await;
    let place = Place::new();
    place.file("Dockerfile", "FROM scratch\nCOPY a /a\n").file("a", "a");
    let to = format!("--destination={}/app:1", registry.address);
    let run = |flags: &[&str]| tokio::task::block_in_place(|| executor(&place, flags));
    let output = run(&[&to]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("immutable"), "{said}");
    let output = run(&[&to, "--push-ignore-immutable-tag-errors=true"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("app:1 stays as it is"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tar_is_written_and_the_image_is_pushed_and_both_are_told() {
    let registry =
        Faulty::start(|_, asked| match (asked.method.as_str(), asked.path.contains("/manifests/")) {
            ("HEAD", false) => answer(200, &[], ""),
            ("PUT", true) if asked.path.contains("/refused/") => answer(403, &[], ""),
            ("PUT", true) => answer(201, &[], ""),
            _ => answer(404, &[], ""),
        })
        .await;
    let place = Place::new();
    place.file("Dockerfile", "FROM scratch\nCOPY a /a\n").file("a", "a");
    let run = |name: &str, flags: &[&str]| {
        let tar = place.path("image.tar");
        drop(std::fs::remove_file(&tar));
        let to = format!("--destination={}/{name}:1", registry.address);
        let written = format!("--tar-path={}", tar.display());
        let flags = [&[to.as_str(), written.as_str()], flags].concat();
        let output = tokio::task::block_in_place(|| executor(&place, &flags));
        assert!(tar.exists(), "{name}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let is_place = |line: &&str| line.starts_with("Wrote") || line.starts_with("Pushed");
        let places: Vec<String> = said.lines().filter(is_place).map(ToOwned::to_owned).collect();
        (output.status.success(), places)
    };
    let wrote = format!("Wrote {}", place.path("image.tar").display());
    let (ok, places) = run("app", &[]);
    assert!(ok && places.len() == 2 && places[0] == wrote, "{places:?}");
    assert!(places[1].starts_with(&format!("Pushed {}/app:1@sha256:", registry.address)), "{places:?}");
    assert_eq!(run("app", &["--no-push"]), (true, vec![wrote]));
    assert_eq!(run("refused", &[]), (false, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_is_not_pushed_to_is_read_alone() {
    let registry = Faulty::start(|_, _| answer(404, &[], "")).await;
    let place = Place::new();
    place.file("Dockerfile", "FROM scratch\nCOPY a /a\n").file("a", "a");
    let cache = format!("--cache-repo={}/cache", registry.address);
    let run = |flags: &[&str]| tokio::task::block_in_place(|| executor(&place, flags));
    for _ in 0..2 {
        let output = run(&["--no-push", "--no-push-cache", &cache]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let methods = registry.methods();
    assert!(methods.contains("GET") && !methods.contains("PO") && !methods.contains("PU"), "{methods}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_a_warmed_base_are_not_fetched() {
    let place = Place::new();
    let bases = place.path("bases");
    let cache_dir = format!("--cache-dir={}", bases.display());
    let mut command = Command::new(crate::ordinary_user::executable());
    command.args(["cache", "warm", "--image=busybox:1", &cache_dir]);
    command.arg(format!("--mirror=oci:{}", base::layout().display()));
    let warmed = tokio::task::block_in_place(|| command.output().unwrap());
    assert!(warmed.status.success(), "{warmed:?}");
    let index = RawManifest::parse(std::fs::read(bases.join("index.json")).unwrap(), None).unwrap();
    let entry = index.as_index().unwrap().manifests[0].clone();
    assert_eq!(entry.platform, Some(Platform::native()));
    assert_eq!(
        String::from_utf8(warmed.stdout).unwrap(),
        format!("busybox:1 {} {}\n", Platform::native(), entry.digest)
    );
    let files = |name: &str| std::fs::read_dir(bases.join(name)).unwrap().count();
    assert_eq!((files("."), files("blobs/sha256")), (3, 3));

    // A registry that has the image, and lets nobody have its layers.
    let blob = |digest: &Digest| bases.join("blobs/sha256").join(digest.hex());
    let manifest = std::fs::read(blob(&entry.digest)).unwrap();
    let image = RawManifest::parse(manifest.clone(), None).unwrap().as_image().unwrap().clone();
    let config = (image.config.digest.to_string(), std::fs::read(blob(&image.config.digest)).unwrap());
    let registry = Faulty::start(move |_, asked| match &asked.path {
        path if path.contains("/manifests/") => {
            answer(200, &[("content-type", "application/vnd.oci.image.manifest.v1+json")], manifest.clone())
        }
        path if path.ends_with(&config.0) => answer(200, &[], config.1.clone()),
        _ => answer(404, &[], ""),
    })
    .await;
    place.file("Dockerfile", format!("FROM {}/library/busybox:1\nENV A=1\n", registry.address));
    let build = |flags: &[&str]| {
        let mut command = Command::new(crate::ordinary_user::executable());
        command.arg("build").arg(format!("--context=dir://{}", place.path("context").display()));
        command.args(["--no-push", "--image-fs-extract-retry=3"]).args(flags).env_remove("HEPHY_DATA");
        command.arg(format!("--kaniko-dir={}", place.path("kaniko").display()));
        command.arg(format!("--oci-layout-path={}", place.path("layout").display()));
        tokio::task::block_in_place(|| command.output().unwrap())
    };
    assert!(!build(&[]).status.success());
    let layer = blob(&image.layers[0].digest);
    let content = std::fs::read(&layer).unwrap();
    std::fs::write(&layer, vec![0; content.len()]).unwrap();
    assert!(!build(&[&cache_dir]).status.success(), "a layer that somebody has changed");
    std::fs::write(&layer, content).unwrap();
    let built = build(&[&cache_dir]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    assert!(place.path("kaniko/layers").is_dir());
}
