//! Where each platform of a push is built, and what is known of its bases before anything is.

use hephy::oci::{Platform, Reference};
use hephy::registry::client::{Client, ClientConfig, Reach};

use crate::machine::{Machine, Repository};

/// A platform that this machine is not of, and how a program for it begins: the head of an ELF file, for `printf`.
fn foreign() -> (&'static str, &'static str) {
    match Platform::native().architecture() {
        "arm64" => ("linux/amd64", r"\076"),
        _ => ("linux/arm64", r"\267"),
    }
}

/// `hephy.toml` that asks for both platforms.
fn both(rest: &str) -> String {
    format!("[build]\nplatforms = [\"{}\", \"{}\"]\n{rest}", Platform::native(), foreign().0)
}

/// A machine with an image that has a shell, for its own platform alone, and the image's name.
fn with_a_base(machine: &Machine) -> String {
    machine.web("tool", "tool").push().succeeded();
    format!("{}/tool:latest", machine.address("registry"))
}

fn platforms(machine: &Machine, app: &str) -> Vec<String> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = machine.address("registry");
    let reference: Reference = format!("{registry}/{app}:latest").parse().unwrap();
    let reach = Reach::plain(reference.repository.host.clone());
    let client = Client::new(ClientConfig { reach, ..ClientConfig::default() });
    let read = async { client.manifest(&reference.repository, &reference.target()).await.unwrap() };
    let index = tokio::runtime::Runtime::new().unwrap().block_on(read);
    let children = index.as_index().unwrap().manifests.iter();
    children.map(|child| child.platform.as_ref().unwrap().to_string()).collect()
}

/// What is refused before a build says nothing of building.
#[track_caller]
fn is_refused(app: &Repository<'_>, texts: &[&str]) {
    let refused = app.push().failed_with(texts);
    assert!(!refused.stderr.contains("Building"), "{}", refused.stderr);
}

#[test]
fn a_platform_without_a_machine_is_made_on_another_if_nothing_of_it_is_executed() {
    let machine = Machine::start();
    let base = with_a_base(&machine);
    let (other, number) = foreign();
    let native = Platform::native();
    let dockerfile = format!(
        "FROM --platform=$BUILDPLATFORM {base} AS compiled\nARG TARGETPLATFORM\n\
         RUN if [ $TARGETPLATFORM = {native} ]; then cp /bin/busybox /out; \
         else printf '\\177ELF\\2\\1\\1\\0\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0{number}\\0' > /out; fi\n\
         FROM scratch\nCOPY --from=compiled --chmod=755 /out /busybox\nCOPY www /www\nEXPOSE 8000\n\
         CMD [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/www\"]\n"
    );
    let files = [("Dockerfile", dockerfile.as_str()), ("www/index.html", "crossed")];
    let app = machine.repository("cross", &files);
    app.commit(&[("hephy.toml", &both(""))]);
    is_refused(
        &app,
        &[
            &format!("nothing here builds natively for {other}: there is {native}"),
            "`require_native_nodes = false`",
        ],
    );

    app.commit(&[("hephy.toml", &both("require_native_nodes = false\n"))]);
    let told = format!("{other} is made on {native}, where nothing of it is executed");
    app.push().succeeded().says(&[&told, "2 platforms"]);
    let mut expected = [native.to_string(), other.to_owned()];
    expected.sort();
    let mut found = platforms(&machine, "cross");
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(machine.get("cross", "/").unwrap(), (200, "crossed".to_owned()));

    let executes = dockerfile.replace("COPY www /www\n", "COPY www /www\nRUN [\"/busybox\", \"true\"]\n");
    app.commit(&[("Dockerfile", &executes)]);
    let at = format!("Dockerfile:7 executes a program of {other}, and nothing is emulated");
    is_refused(&app, &[&at, "$BUILDPLATFORM", "v1 still serves"]);
}

#[test]
fn a_base_that_lacks_a_platform_is_named_before_anything_is_built() {
    let machine = Machine::start();
    let base = with_a_base(&machine);
    let (native, (other, _)) = (Platform::native(), foreign());
    let dockerfile = format!("FROM scratch AS first\nCOPY a /\nFROM {base}\nCOPY --from={base}x /a /b\n");
    let app = machine.repository("lacks", &[("Dockerfile", &dockerfile), ("a", "a")]);
    app.commit(&[("hephy.toml", &both("require_native_nodes = false\n"))]);
    is_refused(
        &app,
        &[
            &format!("Dockerfile:3 on {other}: base image `{base}` was not found"),
            &format!("it has `{native}`"),
            &format!("Dockerfile:4 on {native}: base image `{base}x` was not found"),
            &format!("Dockerfile:4 on {other}: base image `{base}x` was not found"),
            "nothing was built: Dockerfile:4 has no base",
        ],
    );
    let named = dockerfile.replace(&format!("COPY --from={base}x /a /b\n"), "COPY a /b\n");
    app.commit(&[("Dockerfile", &named)]);
    let fewer = format!("`platforms = [\"{native}\"]` under [build] in hephy.toml");
    is_refused(&app, &[&fewer, &format!("nothing was built: Dockerfile:3 has no base `{base}` for {other}")]);
}

#[test]
fn a_base_whose_registry_is_not_reached_is_told_with_the_registry() {
    let machine = Machine::start();
    let app = machine.repository("far", &[("Dockerfile", "FROM nowhere.invalid/far:1\n")]);
    is_refused(
        &app,
        &["Dockerfile:1 on linux/", "base image `nowhere.invalid/far:1` was not found", "cannot be reached"],
    );
}
