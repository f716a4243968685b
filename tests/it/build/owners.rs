//! Files of ids that no sandbox has: the layers say whose they are all the same, on every rung.

use std::os::unix::fs::symlink;

use super::{Built, Place, base, in_place};

const BASES: (u64, u64) = (300_000, 300_001);
const COPIED: (u64, u64) = (100_000, 200_000);
const ADDED: (u64, u64) = (2_000_000, 100_001);

/// A tar with a directory, a file and a symlink of an owner.
fn tar(name: &str, (uid, gid): (u64, u64)) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind, size| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_mtime(1_500_000_000);
        header.set_size(size);
        header
    };
    let (mut directory, mut file, mut link) = (
        header(tar::EntryType::Directory, 0),
        header(tar::EntryType::Regular, 1),
        header(tar::EntryType::Symlink, 0),
    );
    tar.append_data(&mut directory, name, &b""[..]).unwrap();
    tar.append_data(&mut file, format!("{name}/f"), &b"x"[..]).unwrap();
    tar.append_link(&mut link, format!("{name}/link"), "f").unwrap();
    tar.into_inner().unwrap()
}

/// A place with files, and a mirror whose `high:1` has some of a high id.
fn place() -> Place {
    let place = Place::new();
    place.file("d/f", "f").file("d/g", "g").file("a.tar", tar("t", ADDED));
    symlink("f", place.path("context/d/link")).unwrap();
    let mut rootfs = base::rootfs();
    rootfs.truncate(rootfs.len() - 1024);
    rootfs.extend(tar("high", BASES));
    base::write(&place.path("mirror"), "high:1", &rootfs, &[]);
    place
}

fn build(place: &Place, dockerfile: &str, is_in_place: bool) -> Built {
    let layout = place.path("layout");
    drop(std::fs::remove_dir_all(&layout));
    let mirror = format!("oci:{}", place.path("mirror").display());
    let mut command = place.command_with(&mirror, dockerfile, &["--oci-layout-path"]);
    command.arg(layout);
    if is_in_place {
        command.args(["--isolation", "in-place"]);
        command = in_place::contained(&command);
    }
    place.built(command.output().unwrap())
}

fn owners(built: &Built, from_top: usize) -> Vec<(String, (u64, u64))> {
    built.layer(from_top).into_iter().map(|entry| (entry.path, entry.owner)).collect()
}

fn owned(pairs: &[(&str, (u64, u64))]) -> Vec<(String, (u64, u64))> {
    pairs.iter().map(|(path, owner)| ((*path).to_owned(), *owner)).collect()
}

const DOCKERFILE: &str = "FROM high:1 AS one
COPY --chown=100000:200000 d /d/
ADD a.tar /
USER 100000
WORKDIR /made
USER 0
RUN echo more >> /d/f && echo more >> /high/f && chown 5:6 /d/g
FROM scratch
COPY --from=one /d /d/
COPY --from=one /t /t/
COPY --from=one /high /high/
";

#[test]
fn layers_say_the_owner_of_files_whatever_ids_the_sandbox_has() {
    let one = place();
    let changed = build(&one, DOCKERFILE.split("FROM scratch").next().unwrap(), false).ok();
    let of_copy = [("d/", COPIED), ("d/f", COPIED), ("d/g", COPIED), ("d/link", COPIED)];
    assert_eq!(owners(&changed, 3), owned(&of_copy));
    assert_eq!(owners(&changed, 2), owned(&[("t/", ADDED), ("t/f", ADDED), ("t/link", ADDED)]));
    assert_eq!(owners(&changed, 1), owned(&[("made/", (100_000, 0))]));
    let of_run = [("d/", COPIED), ("d/f", COPIED), ("d/g", (5, 6)), ("high/", BASES), ("high/f", BASES)];
    assert_eq!(owners(&changed, 0), owned(&of_run));
    let copied = build(&one, DOCKERFILE, false).ok();
    let of_copy = [("d/", (0, 0)), ("d/f", COPIED), ("d/g", (5, 6)), ("d/link", COPIED)];
    assert_eq!(owners(&copied, 2), owned(&of_copy));
    assert_eq!(owners(&copied, 1), owned(&[("t/", (0, 0)), ("t/f", ADDED), ("t/link", ADDED)]));
    assert_eq!(owners(&copied, 0), owned(&[("high/", (0, 0)), ("high/f", BASES), ("high/link", BASES)]));
    let other = place();
    assert_eq!(build(&other, DOCKERFILE, true).ok().digest(), copied.digest());
}

#[test]
fn a_step_sees_the_last_id_and_a_file_that_it_gives_away_is_given() {
    let dockerfile = "FROM high:1
RUN stat -c %u:%g /high/f /high/link && cp -p /high/f /copy && chown 7:7 /high/f && touch /high/link
RUN chown 65535 /high/f && stat -c %u:%g /copy
";
    let built = build(&place(), dockerfile, false).ok();
    assert_eq!(built.lines(), ["65535:65535", "65535:65535", "65535:65535"]);
    let of_first = owners(&built, 1);
    assert!(of_first.contains(&("high/f".to_owned(), (7, 7))), "{of_first:?}");
}

#[test]
fn a_directory_may_have_more_symlinks_of_such_an_owner_than_attributes() {
    const DOCKERFILE: &str = "FROM high:1 AS one
COPY --chown=100000:200000 bin /app/bin/
RUN touch /app/bin/new
FROM scratch
COPY --from=one /app/bin /bin/
";
    const LINKS: usize = 200;
    let place = place();
    place.file("bin/f", "f");
    (0..LINKS).for_each(|n| symlink("f", place.path(&format!("context/bin/{n}"))).unwrap());
    let copied = build(&place, DOCKERFILE, false).ok();
    let owners = owners(&copied, 0).into_iter().filter(|(path, _)| path != "bin/");
    let (of_new, others): (Vec<_>, Vec<_>) = owners.partition(|(path, _)| path == "bin/new");
    assert_eq!((of_new[0].1, others.len()), ((0, 0), LINKS + 1));
    assert!(others.iter().all(|(_, owner)| *owner == COPIED), "{others:?}");
}
