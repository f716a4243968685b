//! `hephy build --driver=k8s`, from outside with a kubeconfig and as a Job of the cluster, with exactly the documented Role.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::{Setting, kubectl};
use crate::build::Place;
use crate::machine::Ran;

/// A namespace with an account that may do what `docs/cli.md` says that it has to, and no more.
struct Limited {
    namespace: String,
    place: Place,
}

impl Limited {
    fn new() -> Self {
        let namespace = format!("hephy-cli-{:08x}", rand::random::<u32>());
        kubectl(&["create", "namespace", &namespace]).succeeded();
        let metadata = json!({"name": "builder", "namespace": namespace});
        apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
        apply(
            &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": [
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "watch", "delete"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]}),
        );
        apply(
            &json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "builder"},
            "subjects": [{"kind": "ServiceAccount", "name": "builder", "namespace": namespace}]}),
        );
        let limited = Self { namespace, place: Place::new() };
        limited.write_kubeconfig();
        limited
    }

    fn write_kubeconfig(&self) {
        let token = kubectl(&["create", "token", "builder", "-n", &self.namespace]).succeeded().stdout;
        let admin = kubectl(&["config", "view", "--raw", "--minify", "-o", "json"]).succeeded().stdout;
        let admin: Value = serde_json::from_str(&admin).unwrap();
        let config = json!({"apiVersion": "v1", "kind": "Config",
            "clusters": [{"name": "test", "cluster": admin["clusters"][0]["cluster"]}],
            "users": [{"name": "builder", "user": {"token": token.trim()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "builder", "namespace": self.namespace}}],
            "current-context": "test"});
        fs::write(self.place.path("kubeconfig"), config.to_string()).unwrap();
    }

    /// `hephy build` of `dockerfile` from here.
    fn build(&self, dockerfile: &str, flags: &[&str]) -> Ran {
        self.place.file("Dockerfile", dockerfile);
        let mut command = Command::new(env!("CARGO_BIN_EXE_hephy"));
        command.arg("build").arg("--context").arg(self.place.path("context")).args(usual()).args(flags);
        command.env("KUBECONFIG", self.place.path("kubeconfig")).env("HEPHY_DATA", self.place.path("data"));
        Ran::of(command.stdin(Stdio::null()).output().unwrap())
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        drop(kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]));
    }
}

/// What the tests' registry and image take.
fn usual() -> Vec<String> {
    let Setting { registry, image, .. } = Setting::read();
    let mirror = format!("--mirror={registry}/mirror");
    let insecure = format!("--insecure-registry={registry}");
    ["--driver=k8s".to_owned(), mirror, insecure, format!("--k8s-image={image}")].into()
}

fn apply(object: &Value) {
    let mut child = Command::new("kubectl").args(["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// The platforms of the index that a reference names.
fn platforms(reference: &str) -> Vec<String> {
    let reference = format!("docker://{reference}");
    let read = super::run("skopeo", &["inspect", "--raw", "--tls-verify=false", &reference]).succeeded();
    let index: Value = serde_json::from_str(&read.stdout).unwrap();
    let of = |child: &Value| {
        let platform = &child["platform"];
        format!("{}/{}", platform["os"].as_str().unwrap(), platform["architecture"].as_str().unwrap())
    };
    index["manifests"].as_array().unwrap().iter().map(of).collect()
}

const BOTH: &str = "--multi-platform=linux/amd64,linux/arm64";

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn the_documented_role_is_enough_to_build_for_both_architectures_from_outside() {
    let limited = Limited::new();
    let destination = format!("{}/{}/app:1", Setting::read().registry, limited.namespace);
    let to = format!("--destination={destination}");
    let flags = [BOTH, "--publish-index", &to];
    let dry = limited.build("FROM busybox\nRUN uname -m\n", &[&flags[..], &["--dry-run"]].concat());
    dry.succeeded().says(&["linux/amd64", "linux/arm64", "busybox"]);
    assert!(
        !kubectl(&["get", "jobs", "-n", &limited.namespace]).stdout.contains("build-"),
        "nothing was built"
    );
    let digests = limited.place.path("digest");
    let told = format!("--digest-file={}", digests.display());
    let built = limited.build("FROM busybox\nRUN uname -m\n", &[&flags[..], &[&told]].concat()).succeeded();
    // Without `get` on `pods/log` they come at the end, and it is said why.
    let built = built.says(&["[amd64]", "x86_64", "[arm64]", "aarch64", "pods/log"]);
    let digest = fs::read_to_string(digests).unwrap();
    assert_eq!(built.stdout.trim(), digest.trim());
    assert_eq!(platforms(&destination), ["linux/amd64", "linux/arm64"]);

    let failed = limited.build("FROM busybox\nRUN echo so it goes; exit 7\n", &flags);
    failed.failed_with(&["so it goes", "Dockerfile:2", "exit status 7"]);
    // What was there is there.
    assert_eq!(platforms(&destination), ["linux/amd64", "linux/arm64"]);
}

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn an_architecture_that_no_node_has_is_named_without_the_right_to_list_nodes() {
    let limited = Limited::new();
    let to = format!("--destination={}/{}/app:1", Setting::read().registry, limited.namespace);
    let flags = ["--multi-platform=linux/amd64,linux/s390x", "--publish-index", &to];
    let failed = limited.build("FROM scratch\nCOPY Dockerfile /\n", &flags);
    failed.failed_with(&["no node for linux/s390x", "0/2 nodes are available"]);
}

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn a_job_of_the_cluster_builds_with_that_role_and_credentials_of_a_mounted_secret() {
    let limited = Limited::new();
    let namespace = &limited.namespace;
    let destination = format!("{}/{namespace}/app:1", Setting::read().registry);
    let dockerfile = "FROM busybox\nRUN uname -m > /machine\n";
    let metadata = json!({"name": "source", "namespace": namespace});
    apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
        "data": {"Dockerfile": dockerfile}}));
    let auths = json!({"auths": {Setting::read().registry: {"auth": "YTpi"}}}).to_string();
    let metadata = json!({"name": "registry", "namespace": namespace});
    apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": auths}}),
    );
    let mut words: Vec<String> = ["/hephy", "build", "--context=/source", BOTH, "--publish-index"]
        .iter()
        .map(|word| (*word).to_owned())
        .collect();
    // Which image the Jobs run it knows from its own pod.
    words.extend(usual().into_iter().filter(|flag| !flag.starts_with("--k8s-image")));
    words.extend([
        format!("--destination={destination}"),
        "--k8s-registry-secret=registry".to_owned(),
        "--data=/tmp/data".to_owned(),
    ]);
    let metadata = json!({"name": "build", "namespace": namespace});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    let config =
        json!({"secretName": "registry", "items": [{"key": ".dockerconfigjson", "path": "config.json"}]});
    apply(&json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {
        "backoffLimit": 0, "template": {"spec": {
            "serviceAccountName": "builder", "restartPolicy": "Never",
            "containers": [{"name": "hephy", "image": Setting::read().image, "imagePullPolicy": "Always",
                "command": words, "env": [{"name": "DOCKER_CONFIG", "value": "/docker"}],
                "volumeMounts": [mount("source", "/source"), mount("registry", "/docker")]}],
            "volumes": [{"name": "source", "configMap": {"name": "source"}}, {"name": "registry", "secret": config}]}}}}));
    let complete = ["wait", "-n", namespace, "job/build", "--for=condition=Complete", "--timeout=180s"];
    let complete = kubectl(&complete);
    let log = kubectl(&["logs", "-n", namespace, "job/build"]);
    assert!(complete.ok, "{}\n{}\n{}", complete.stderr, log.stdout, log.stderr);
    log.says(&["[amd64]", "[arm64]"]);
    assert_eq!(platforms(&destination), ["linux/amd64", "linux/arm64"]);
}
