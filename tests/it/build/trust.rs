//! `--ca-bundle`: RUN trusts it, and the image, the keys and the history know nothing of it.

use std::fs;

use super::{Built, Place};

const OURS: &str =
    "-----BEGIN CERTIFICATE-----\nb3Vycy1vZi10aGUtY29ycG9yYXRpb24=\n-----END CERTIFICATE-----\n";
const WORD: &str = "b3Vycy1vZi10aGUtY29ycG9yYXRpb24=";
const THEIRS: &str = "-----BEGIN CERTIFICATE-----\\ntheirs\\n-----END CERTIFICATE-----\\n";

/// Builds with a bundle, and without one in another place; both must be the same image. Returns the first.
fn both_ways(dockerfile: &str) -> Built {
    let (with, without) = (Place::new(), Place::new());
    let bundle = with.path("bundle.pem");
    fs::write(&bundle, format!("a note\n{OURS}")).unwrap();
    let trusting = with.build_with(dockerfile, &["--ca-bundle", bundle.to_str().unwrap()]).ok();
    let plain = without.build(dockerfile).ok();
    assert_eq!(trusting.digest(), plain.digest(), "{:?}\n{:?}", trusting.layer(0), plain.layer(0));
    trusting
}

#[test]
fn an_image_with_a_bundle_trusts_more_while_run_runs() {
    let dockerfile = format!(
        "FROM busybox:1\nRUN mkdir -p /etc/ssl/certs && printf -- '{THEIRS}' > /etc/ssl/certs/ca-certificates.crt && ln -s certs/ca-certificates.crt /etc/ssl/cert.pem\n\
         RUN grep -c theirs $SSL_CERT_FILE $PIP_CERT; grep -c {WORD} /etc/ssl/cert.pem $CURL_CA_BUNDLE; touch /made\n\
         RUN rm /etc/ssl/cert.pem; echo appended >> /etc/ssl/certs/ca-certificates.crt; ls /run 2>&1; true\n"
    );
    // Without a bundle of ours there are no variables, and grep would read standard input.
    let dockerfile =
        dockerfile.replace("grep -c theirs $SSL_CERT_FILE", "grep -c theirs /dev/null $SSL_CERT_FILE");
    let built = both_ways(&dockerfile);
    assert_eq!(
        built.lines(),
        [
            "/dev/null:0",
            "/run/hephy/ca-bundle.crt:1",
            "/run/hephy/ca-bundle.crt:1",
            "/etc/ssl/cert.pem:1",
            "/run/hephy/ca-bundle.crt:1",
            "hephy"
        ]
    );
    assert_eq!(built.layer_paths(1), ["made"]);
    let changed = built.layer(0);
    let bundle = changed.iter().find(|entry| entry.path.ends_with("ca-certificates.crt")).unwrap();
    assert!(bundle.content.ends_with("appended\n") && bundle.content.contains("theirs"), "{bundle:?}");
    assert!(!bundle.content.contains(WORD), "{bundle:?}");
    assert_eq!(built.config().config.env, ["PATH=/bin"]);
}

#[test]
fn certificates_that_are_installed_in_the_very_run_are_the_images_and_ours_are_trusted_meanwhile() {
    // What `update-ca-certificates` does: a new file, renamed onto the bundle.
    let install = format!(
        "mkdir -p /etc/ssl/certs; cd /etc/ssl/certs; printf -- '{THEIRS}' > new; chmod 644 new; mv -f new ca-certificates.crt"
    );
    let dockerfile = format!(
        "FROM busybox:1\nRUN {install}; [ -z \"$SSL_CERT_FILE\" ] || until grep -q {WORD} ca-certificates.crt; do :; done\nRUN {install}; mv -f ca-certificates.crt x; mv x ca-certificates.crt\n"
    );
    let built = both_ways(&dockerfile);
    let layer = built.layer(0);
    let entry = layer.iter().find(|entry| entry.path == "etc/ssl/certs/ca-certificates.crt").unwrap();
    assert_eq!((entry.content.as_str(), entry.mode & 0o7777), (THEIRS.replace("\\n", "\n").as_str(), 0o644));
}

#[test]
fn an_image_without_any_bundle_keeps_no_trace() {
    let built = both_ways("FROM busybox:1\nRUN touch /made; chmod 755 /etc\n");
    assert_eq!(built.layer_paths(0), ["made"]);
}

#[test]
fn what_the_dockerfile_sets_stays_and_the_bundle_is_in_no_key() {
    let place = Place::new();
    let dockerfile = "FROM busybox:1\nENV PIP_CERT=/mine\nARG SSL_CERT_FILE=/args\nRUN echo $PIP_CERT $SSL_CERT_FILE ${CURL_CA_BUNDLE:-none}\n";
    assert_eq!(place.build(dockerfile).ok().lines(), ["/mine /args none"]);
    let bundle = place.path("bundle.pem");
    fs::write(&bundle, OURS).unwrap();
    let arguments = ["--ca-bundle", bundle.to_str().unwrap()];
    assert_eq!(place.build_with(dockerfile, &arguments).ok().steps(), ["cached"; 2]);
    let again = place.build_with(dockerfile, &[&arguments[..], &["--no-cache"]].concat()).ok();
    assert_eq!(again.lines(), ["/mine /args /run/hephy/ca-bundle.crt"]);
}

#[test]
fn a_file_without_a_certificate_is_refused_and_a_key_in_it_is_left_out() {
    let place = Place::new();
    let bundle = place.path("bundle.pem");
    let key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    fs::write(&bundle, key).unwrap();
    let arguments = ["--ca-bundle", bundle.to_str().unwrap()];
    let refused = place.build_with("FROM busybox:1\n", &arguments);
    assert_eq!(refused.output.status.code(), Some(2));
    fs::write(&bundle, format!("{key}{OURS}")).unwrap();
    let built =
        place.build_with("FROM busybox:1\nRUN grep -c c2VjcmV0 $SSL_CERT_FILE; true\n", &arguments).ok();
    assert_eq!(built.lines(), ["0"]);
}

#[test]
fn the_store_of_a_jdk_trusts_it_while_run_runs_and_is_the_images_own_after_it() {
    let store = "/usr/lib/jvm/java/lib/security/cacerts";
    // No store that can be read: what is laid is of what the system trusts.
    let built = both_ways(&format!(
        "FROM busybox:1\nRUN mkdir -p /usr/lib/jvm/java/lib/security && echo store > {store}\n\
         RUN grep -c ours-of-the-corporation {store}; touch /made\n"
    ));
    assert_eq!(built.lines(), ["1"]);
    assert_eq!(built.layer_paths(0), ["made"]);
    let layer = built.layer(1);
    let entry = layer.iter().find(|entry| entry.path.ends_with("security/cacerts")).unwrap();
    assert_eq!(entry.content, "store\n");
}
