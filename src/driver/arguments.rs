//! What every driver tells an engine. Nothing in it is secret.

use std::ffi::{OsStr, OsString};

use crate::build::{BuildRequest, CacheUse};

/// A command line that grows.
#[derive(Debug, Default)]
pub(super) struct Arguments(Vec<OsString>);

impl Arguments {
    /// `--name=value`
    pub(super) fn set(&mut self, name: &str, value: impl AsRef<OsStr>) {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        self.0.push(argument);
    }

    /// `--name`
    pub(super) fn flag(&mut self, name: &str) {
        self.0.push(format!("--{name}").into());
    }

    /// What is the same wherever the engine is.
    pub(super) fn of_request(&mut self, request: &BuildRequest) {
        self.set("custom-platform", request.platform.to_string());
        for (name, value) in &request.build_args {
            self.set(
                "build-arg",
                value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")),
            );
        }
        for (name, value) in &request.labels {
            self.set("label", format!("{name}={value}"));
        }
        for destination in &request.destinations {
            self.set("destination", destination.to_string());
        }
        let is_scoped = request.flags.iter().any(|flag| flag.starts_with("--cache-mount-scope="));
        if let Some(destination) = request.destinations.first().filter(|_| !is_scoped) {
            // An app's cache mounts are its own: what is written there is run by whoever mounts it next.
            self.set("cache-mount-scope", destination.repository.to_string());
        }
        for mirror in &request.mirrors {
            self.set("mirror", mirror);
        }
        for registry in &request.insecure_registries {
            self.set("insecure-registry", registry);
        }
        if let Some(target) = &request.target {
            self.set("target", target);
        }
        if let Some(epoch) = request.source_date_epoch {
            self.set("source-date-epoch", epoch.to_string());
        }
        self.set("time-limit", format!("{}s", request.limits.time.as_secs()));
        self.set("network", value_name(&request.network));
        self.set("compression", value_name(&request.compression));
        for (flag, is_set) in [
            ("no-cache", request.cache == CacheUse::Ignore),
            ("no-push", request.destinations.is_empty()),
            ("push-by-digest", true),
        ] {
            if is_set {
                self.flag(flag);
            }
        }
        if request.machine.is_some() {
            self.flag("force");
        }
        self.0.extend(request.flags.iter().map(OsString::from));
    }

    /// All of it.
    pub(super) fn into_vec(self) -> Vec<OsString> {
        self.0
    }
}

fn value_name<T: clap::ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
