//! Cache mounts that outlive their machine: saved in the cache repository, restored by whoever mounts them first.

use std::time::Duration;

use hephy::build::BuildEvent;

use super::Place;
use super::pushes::{mirror, on_a_fresh_machine};
use crate::registry::Registry;

fn lines(place: &Place) -> Vec<String> {
    let line =
        |event: BuildEvent| if let BuildEvent::Output { line, .. } = event { Some(line) } else { None };
    place.events().into_iter().filter_map(line).collect()
}

fn notes(place: &Place) -> Vec<String> {
    let note = |event: BuildEvent| if let BuildEvent::Note { text } = event { Some(text) } else { None };
    place.events().into_iter().filter_map(note).filter(|note| note.contains("cache mount")).collect()
}

/// A step that shows what a cache has, with owner, mode and time, and adds to it.
fn step(word: &str) -> String {
    format!(
        "FROM busybox:1\nRUN --mount=type=cache,id=c,target=/c ls /c/d; stat -c '%u:%g %a %Y' /c/d/f; readlink /c/l; mkdir -p /c/d && \
         echo {word} > /c/d/{word} && touch -d @1600000000 /c/d/f && chown 7:8 /c/d/f && chmod 640 /c/d/f && ln -sf f /c/l\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_mount_is_there_on_a_machine_that_has_never_built() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror(&registry).await;
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    let cache = format!("{}/hello/cache", registry.address);
    let build = |word: &str, flags: &[&str]| {
        let flags = [&["--cache-repo", cache.as_str()], flags].concat();
        on_a_fresh_machine(&registry, &config, &step(word), &flags)
    };
    tokio::task::block_in_place(|| {
        let first = build("one", &[]);
        assert!(!lines(&first).contains(&"one".to_owned()));
        let second = build("two", &[]);
        assert_eq!(lines(&second), ["f", "one", "7:8 640 1600000000", "f"]);
        assert_eq!(notes(&second).len(), 1, "{:?}", notes(&second));
        assert_eq!(second.left_over(), [""; 0]);
        assert_eq!(lines(&build("three", &[]))[..3], ["f", "one", "two"]);

        let other = build("four", &["--cache-mount-scope", "other"]);
        assert!(!lines(&other).contains(&"one".to_owned()), "{:?}", lines(&other));
        assert_eq!(notes(&other), [""; 0]);
        let none = build("five", &["--cache-mount-save-limit", "0"]);
        assert!(!lines(&none).contains(&"one".to_owned()), "{:?}", lines(&none));
        let all = build("six", &[]);
        assert!(!lines(&all).contains(&"five".to_owned()), "{:?}", lines(&all));

        // A step that is known mounts nothing, and nothing is fetched for it.
        let known = build("six", &[]);
        assert_eq!((lines(&known), notes(&known)), (Vec::new(), Vec::new()));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_not_saved_and_that_is_told() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let registry = Registry::start().await;
    mirror(&registry).await;
    let token = registry.server.tokens().for_build(&"hello".parse().unwrap(), Duration::from_mins(5));
    let config = hephy::registry::server::docker_config(&registry.host(), &token);
    let cache = format!("{}/hello/cache", registry.address);
    let show = "FROM busybox:1\nRUN --mount=type=cache,id=c,target=/c ls /c\n";
    let fill = "FROM busybox:1\nRUN --mount=type=cache,id=c,target=/c head -c 3000000 /dev/zero > /c/large\n";
    tokio::task::block_in_place(|| {
        let flags = ["--cache-repo", cache.as_str(), "--cache-mount-save-limit", "1MiB"];
        let first = on_a_fresh_machine(&registry, &config, fill, &flags);
        let told = notes(&first);
        assert!(told.len() == 1 && told[0].contains("larger than 1.0 MB"), "{told:?}");
        assert_eq!(lines(&on_a_fresh_machine(&registry, &config, show, &flags)), [""; 0]);
    });
}
