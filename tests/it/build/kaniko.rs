//! hephy in the place of kaniko's executor.

use std::os::unix::fs::symlink;
use std::process::Command;

use hephy::oci::RawManifest;

use super::{Place, base};

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
