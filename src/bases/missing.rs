//! What to tell somebody whose base can be had nowhere.

use super::Base;

/// Both ways to get a base that neither the mirror nor its own registry has. `reference` is what the Dockerfile says; `registry` is
/// the host of the embedded registry.
#[must_use]
pub fn how_to_get(reference: &str, registry: &str) -> String {
    let name = reference.trim_start_matches("docker.io/").trim_start_matches("library/");
    let assemble = match name.parse::<Base>() {
        Ok(base) => format!("  hephy base {base}"),
        Err(_) => "  hephy base debian:12        (then say `FROM debian:12`; debian:11, debian:13 and busybox are made too)".to_owned(),
    };
    let path = if name.contains('/') { name.to_owned() } else { format!("library/{name}") };
    let path = if path.contains(':') { path } else { format!("{path}:latest") };
    format!(
        "make it from Debian's archive on the server:\n{assemble}\n\
         or copy it from a machine that has it, with a token of an admin:\n  \
         skopeo copy --dest-tls-verify=false --dest-creds hephy:\"$(hephy registry token)\" docker://{reference} docker://{registry}/mirror/{path}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_are_commands() {
        let text = how_to_get("debian:12", "127.0.0.1:5000");
        assert!(text.contains("\n  hephy base debian:12\n"), "{text}");
        assert!(
            text.ends_with("docker://debian:12 docker://127.0.0.1:5000/mirror/library/debian:12"),
            "{text}"
        );
        let text = how_to_get("node", "127.0.0.1:5000");
        assert!(text.contains("hephy base debian:12 "), "{text}");
        assert!(text.ends_with("docker://node docker://127.0.0.1:5000/mirror/library/node:latest"), "{text}");
    }
}
