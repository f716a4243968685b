//! hephy's own image has what its program runs: git with HTTPS and SSH, and the shell that git wants.

use serde_json::json;

use super::{Setting, kubectl};
use crate::build::web::Web;

#[test]
#[ignore = "needs a cluster: scripts/test-cluster"]
fn the_image_fetches_a_context_with_submodules_on_both_architectures() {
    let setting = Setting::read();
    let web = Web::at(&setting.node);
    web.commit("library.git", &[("part", "of a library\n")]);
    web.commit("app.git", &[("Dockerfile", "FROM scratch\nCOPY library/part /\n")]);
    web.git("app.git", &["submodule", "--quiet", "add", &web.url("/library.git"), "library"]);
    web.commit("app.git", &[]);
    let namespace = format!("hephy-image-{:08x}", rand::random::<u32>());
    kubectl(&["create", "namespace", &namespace]).succeeded();
    let script = format!(
        "set -e; ssh -V; /usr/lib/git-core/git-remote-https x 2>&1 </dev/null | head -n1; \
         exec /kaniko/executor --context {} --git recurse-submodules=true --no-push --destination example/app:1 --data /tmp/data",
        web.url("/app.git").replace("http://", "git://")
    );
    for architecture in ["amd64", "arm64"] {
        let selector = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": architecture}}}).to_string();
        let image = format!("--image={}", setting.image);
        let overrides = format!("--overrides={selector}");
        let run = ["run", architecture, "-n", &namespace, &image, &overrides, "--restart=Never"];
        let words = [
            "--image-pull-policy=Always",
            "--env=GIT_PULL_METHOD=http",
            "--command",
            "--",
            "/bin/sh",
            "-c",
            &script,
        ];
        kubectl(&[&run[..], &words[..]].concat()).succeeded();
    }
    // An emulated git-remote-http may sleep for a minute before it goes on.
    for architecture in ["amd64", "arm64"] {
        let pod = format!("pod/{architecture}");
        let ended =
            ["wait", "-n", &namespace, &pod, "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s"];
        let ended = kubectl(&ended);
        let log = kubectl(&["logs", "-n", &namespace, &pod]);
        assert!(ended.ok, "{architecture}: {}\n{}{}", ended.stderr, log.stdout, log.stderr);
        log.says(&["OpenSSH", &format!("Built linux/{architecture}")]);
    }
    kubectl(&["delete", "namespace", &namespace, "--wait=false"]).succeeded();
}
