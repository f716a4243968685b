//! Where docker, podman and kaniko keep credentials.

use std::ffi::OsString;
use std::path::PathBuf;

/// The files that may hold credentials, those that somebody named before those that are usual.
///
/// `variable` gives a variable of the environment, if it is set and not empty.
pub(super) fn files(variable: &dyn Fn(&str) -> Option<OsString>, uid: u32) -> Vec<PathBuf> {
    let directory = |name: &str| variable(name).map(PathBuf::from);
    let home = directory("HOME");
    let in_home = |name: &str| home.as_ref().map(|home| home.join(name));
    let docker = directory("DOCKER_CONFIG");
    let runtime = directory("XDG_RUNTIME_DIR").map_or_else(
        || PathBuf::from(format!("/run/containers/{uid}")),
        |runtime| runtime.join("containers"),
    );
    let config = directory("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let usual = if docker.is_some() { None } else { in_home(".docker/config.json") };
    let places = [
        docker.map(|docker| docker.join("config.json")),
        directory("REGISTRY_AUTH_FILE"),
        usual,
        Some(runtime.join("auth.json")),
        config.map(|config| config.join("containers/auth.json")),
        Some(PathBuf::from("/kaniko/.docker/config.json")),
    ];
    let mut files: Vec<PathBuf> = Vec::new();
    for place in places.into_iter().flatten() {
        if !files.contains(&place) {
            files.push(place);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_is_read_twice_and_kanikos_is_the_last() {
        let files = files(&|name| (name == "DOCKER_CONFIG").then(|| "/kaniko/.docker/".into()), 7);
        let expected = ["/kaniko/.docker/config.json", "/run/containers/7/auth.json"];
        assert_eq!(files, expected.map(PathBuf::from));
    }
}
