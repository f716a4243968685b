//! What an instance is told by its environment, what it runs, and where it listens.

use std::collections::BTreeMap;

use super::LocalImage;
use super::directory::Id;
use crate::oci::ImageConfig;
use crate::rollout::{RuntimeError, Version};
use crate::runtime::environment::of_release;

pub(super) use crate::runtime::environment::{image_command, port};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SIGTERM: i32 = 15;

/// Every variable of an instance: the image's own, then ours, then the config, each over those before.
pub(super) fn variables(version: &Version, image: &LocalImage, id: &Id, port: u16) -> Vec<(String, String)> {
    let mut variables = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), image.home.clone()),
    ]);
    for line in &image.config.config.env {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        variables.insert(name.to_owned(), value.to_owned());
    }
    let ours = [("HOSTNAME", hostname(id)), ("HEPHY_PROCESS", id.instance.to_string())];
    let ours = of_release(&version.release, port).into_iter().chain(ours);
    variables.extend(ours.map(|(name, value)| (name.to_owned(), value)));
    for (name, value) in &version.variables {
        variables.insert(name.as_str().to_owned(), value.reveal().clone());
    }
    variables.into_iter().collect()
}

/// The name of an instance's machine, as it sees it.
pub(super) fn hostname(id: &Id) -> String {
    format!("{}-{}-{}", id.app, id.instance.process_type, id.instance.number)
}

/// What an instance runs: its process type's line in a shell, else what the image itself says.
pub(super) fn command(version: &Version, image: &ImageConfig, id: &Id) -> Result<Vec<String>, RuntimeError> {
    let process_type = &id.instance.process_type;
    if let Some(Some(line)) = version.release.processes.get(process_type) {
        return Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()]);
    }
    let argv = image_command(image);
    if argv.is_empty() { Err(RuntimeError::NoCommand(process_type.clone())) } else { Ok(argv) }
}

/// The signal that asks an instance to end: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`; `SIGTERM` where the image names none.
pub(super) fn stop_signal(image: &ImageConfig) -> Result<i32, RuntimeError> {
    let Some(text) = image.config.stop_signal.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(SIGTERM);
    };
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let real_time =
        name.strip_prefix("RTMIN+").and_then(|offset| offset.parse::<i32>().ok()).map(|offset| 34 + offset);
    let named = || format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32);
    let number = name.parse().ok().or(real_time).or_else(named);
    number.filter(|number| (1..=64).contains(number)).ok_or_else(|| RuntimeError::StopSignal(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{BuildNumber, PublishedIndex, Release, ReleaseNumber, ReleaseState, Secret};
    use crate::oci::Digest;
    use crate::rollout::InstanceName;
    use crate::sandbox::UserIds;

    fn version(config: &[(&str, &str)], procfile: Option<&str>) -> Version {
        let release = Release {
            format: 1,
            app: "hello".parse().unwrap(),
            number: ReleaseNumber(4),
            created_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            by: "ada".parse().unwrap(),
            summary: "ada deployed 3f2a1c9".to_owned(),
            build: BuildNumber(7),
            commit: "3f2a1c9000000000000000000000000000000000".parse().unwrap(),
            index: PublishedIndex {
                digest: Digest::of(b""),
                repository: "hello".to_owned(),
                images: Vec::new(),
            },
            processes: [("web".parse().unwrap(), procfile.map(str::to_owned))].into(),
            ready_timeout_seconds: None,
            state: ReleaseState::Pending,
        };
        let variables =
            config.iter().map(|(n, v)| (n.parse().unwrap(), Secret::new((*v).to_owned()))).collect();
        Version { release, variables, scale: BTreeMap::new(), ready_timeout: Some(Duration::ZERO) }
    }

    fn id() -> Id {
        let instance = InstanceName { process_type: "web".parse().unwrap(), number: 2 };
        Id { app: "hello".parse().unwrap(), release: ReleaseNumber(4), instance, once: false }
    }

    fn image(change: impl FnOnce(&mut ImageConfig)) -> LocalImage {
        let mut config = ImageConfig::default();
        change(&mut config);
        LocalImage {
            config,
            trees: Vec::new(),
            user: UserIds::default(),
            home: "/root".to_owned(),
            lease: None,
        }
    }

    fn exposing(ports: &[&str]) -> ImageConfig {
        image(|image| image.config.exposed_ports = ports.iter().map(|p| (*p).to_owned()).collect()).config
    }

    #[test]
    fn the_port_is_the_configs_or_the_only_exposed_one_or_5000() {
        let plain = version(&[], None);
        for (ports, port_of) in [
            (&[][..], 5000),
            (&["8080/tcp"], 8080),
            (&["80"], 80),
            (&["53/udp", "8080/tcp"], 8080),
            (&["80/tcp", "443/tcp"], 5000),
            (&["53/udp"], 5000),
        ] {
            assert_eq!(port(&plain, &exposing(ports)).unwrap(), port_of, "{ports:?}");
        }
        assert_eq!(port(&version(&[("PORT", "7000")], None), &exposing(&["80/tcp"])).unwrap(), 7000);
        for wrong in ["", "0", "70000", "http"] {
            assert!(port(&version(&[("PORT", wrong)], None), &exposing(&[])).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_config_wins_over_ours_and_ours_over_the_images() {
        let image = image(|image| {
            image.config.env = ["PATH=/bin", "PORT=1", "A=image", "HEPHY_APP=x", "B=b=c", "EMPTY"]
                .map(str::to_owned)
                .to_vec();
        });
        let variables: BTreeMap<_, _> =
            variables(&version(&[("A", "config"), ("DEIS_APP", "mine")], None), &image, &id(), 5000)
                .into_iter()
                .collect();
        let get = |name: &str| variables.get(name).map(String::as_str);
        assert_eq!(
            (get("PATH"), get("A"), get("B"), get("EMPTY")),
            (Some("/bin"), Some("config"), Some("b=c"), Some(""))
        );
        assert_eq!(
            (get("PORT"), get("HOME"), get("HEPHY_APP"), get("DEIS_APP")),
            (Some("5000"), Some("/root"), Some("hello"), Some("mine"))
        );
        assert_eq!(
            (get("HEPHY_RELEASE"), get("HEPHY_PROCESS"), get("HOSTNAME")),
            (Some("v4"), Some("web.2"), Some("hello-web-2"))
        );
        assert_eq!(get("SOURCE_VERSION"), Some("3f2a1c9000000000000000000000000000000000"));
        assert_eq!(get("WORKFLOW_RELEASE_CREATED_AT"), Some("2026-01-02T03:04:05Z"));
    }

    #[test]
    fn a_procfile_line_runs_in_a_shell_and_else_the_image_says_what_runs() {
        let image = image(|image| {
            image.config.entrypoint = Some(vec!["/entry".to_owned()]);
            image.config.cmd = Some(vec!["serve".to_owned()]);
        })
        .config;
        assert_eq!(
            command(&version(&[], Some("run $PORT")), &image, &id()).unwrap(),
            ["/bin/sh", "-c", "run $PORT"]
        );
        assert_eq!(command(&version(&[], None), &image, &id()).unwrap(), ["/entry", "serve"]);
        assert!(matches!(
            command(&version(&[], None), &ImageConfig::default(), &id()),
            Err(RuntimeError::NoCommand(_))
        ));
    }

    #[test]
    fn stop_signals_are_read_in_every_spelling() {
        let of =
            |text: &str| stop_signal(&image(|image| image.config.stop_signal = Some(text.to_owned())).config);
        for (text, number) in [("", 15), ("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37)] {
            assert_eq!(of(text).unwrap(), number, "{text}");
        }
        assert_eq!(stop_signal(&ImageConfig::default()).unwrap(), 15);
        assert!(of("SIGNOPE").is_err() && of("0").is_err() && of("65").is_err());
    }
}
