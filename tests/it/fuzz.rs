//! Inputs that nobody wrote: what is read from outside neither panics, nor hangs, nor writes outside its root.
//!
//! Every target takes what is known to be good, spoils it, and checks rules that hold whatever it was given. The same
//! seed gives the same inputs; `HEPHY_FUZZ_SEED` is another seed, `HEPHY_FUZZ_MILLIS` how long each target has (1000).
//! An input that fails is kept in a file, which the failure names.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hephy::dockerfile::{self, Expander, IgnoreFile};
use hephy::layers::{Root, UnpackOptions, unpack_files, unpack_layer};
use tar::EntryType;

/// How long one input may take: far more than any does.
const LIMIT: Duration = Duration::from_secs(10);

/// The largest input.
const MAX_BYTES: usize = 64 * 1024;

/// A number from a variable of the environment.
fn setting(name: &str, otherwise: u64) -> u64 {
    let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
    value.map_or(otherwise, |value| value.parse().unwrap())
}

/// Numbers that look random and are the same every time (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % end.max(1)
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// Gives `check` one spoilt input after the other, for as long as there is time.
///
/// Each is in the file before it is looked at, and is looked at by another thread: one that ends the process is kept, and
/// one that hangs ends the test.
fn fuzz(target: &str, corpus: &[Vec<u8>], words: &[&[u8]], check: impl Fn(&[u8]) + Send + 'static) {
    assert!(!corpus.is_empty());
    let seed = setting("HEPHY_FUZZ_SEED", 0x5EED_0004).max(1);
    let mut random = Random(seed);
    let clock = Instant::now();
    let end = Duration::from_millis(setting("HEPHY_FUZZ_MILLIS", 1000));
    let path = std::env::temp_dir().join(format!("hephy-fuzz-{target}-{}", std::process::id()));
    let (inputs, to_check) = mpsc::channel::<Vec<u8>>();
    let (checked, outcomes) = mpsc::channel();
    std::thread::spawn(move || {
        for input in to_check {
            let outcome = catch_unwind(AssertUnwindSafe(|| check(&input)));
            checked.send(outcome.is_ok()).unwrap();
        }
    });
    let mut count = 0;
    while count < 2 * corpus.len() || clock.elapsed() < end {
        let mut input = corpus.get(count).cloned().unwrap_or_else(|| random.of(corpus).clone());
        if count >= corpus.len() {
            for _ in 0..=random.below(6) {
                spoil(&mut input, corpus, words, &mut random);
            }
            input.truncate(MAX_BYTES);
        }
        fs::write(&path, &input).unwrap();
        inputs.send(input).unwrap();
        let path = path.display();
        match outcomes.recv_timeout(LIMIT) {
            Ok(true) => {}
            Ok(false) => panic!("{target}: input {count} of seed {seed} fails: {path}"),
            Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => {
                panic!("{target}: input {count} of seed {seed} takes more than {LIMIT:?}: {path}")
            }
        }
        count += 1;
    }
    fs::remove_file(&path).unwrap();
}

#[test]
fn an_input_that_fails_is_kept_in_the_file_that_the_failure_names() {
    let failed = catch_unwind(|| fuzz("itself", &[b"spoilt".to_vec()], &[b"y"], |_| panic!("on purpose")));
    let said = failed.unwrap_err().downcast::<String>().unwrap();
    let path = said.rsplit_once(": ").unwrap().1;
    assert_eq!(fs::read(path).unwrap(), b"spoilt");
    fs::remove_file(path).unwrap();
}

fn spoil(input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = at + random.below((input.len() - at).min(64) + 1);
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => {
            input[at] = *random.of(&[0, b'\n', b'\\', b'$', b'"', b'/', b'.', 0x7f, 0xff]);
        }
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            let to = random.below(input.len() + 1);
            drop(input.splice(to..to, copy));
        }
        4 | 5 => drop(input.splice(at..at, random.of(words).iter().copied())),
        6 => {
            let other = random.of(corpus);
            let from = random.below(other.len() + 1);
            drop(input.splice(at..end, other[from..].iter().copied()));
        }
        _ => input.truncate(at),
    }
}

/// The files of this name in the cases of the differential harness.
fn cases(name: &str) -> Vec<Vec<u8>> {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/cases");
    let entries = walkdir::WalkDir::new(cases).sort_by_file_name().into_iter().map(Result::unwrap);
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(name));
    named.map(|entry| fs::read(entry.path()).unwrap()).collect()
}

const DOCKERFILE_WORDS: &[&[u8]] = &[
    b"\nFROM a AS b\n",
    b"\nRUN <<EOF\nx\nEOF\n",
    b"<<-'A B'",
    b"\nCOPY --from=b --chmod=u+x a b\n",
    b"\\\n",
    b"`\n",
    b"# escape=`\n",
    b"# syntax=docker/dockerfile:1\n",
    b"${A:-${B:+$C}}",
    b"${A/x/${A}}",
    b"${A##*}",
    b"$",
    b"[\"a\",",
    b"--mount=type=cache,target=/c,id=",
    b"\nONBUILD ",
    b"\nARG A=\"",
    b"\nENV A=b C='d\n",
    b"\nHEALTHCHECK --interval=1s CMD x\n",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\t",
    b"'",
    b"\"",
];

#[test]
fn any_text_is_a_dockerfile_or_an_error_at_a_place_in_it() {
    let corpus = cases("Dockerfile");
    assert!(corpus.len() > 100);
    fuzz("dockerfile", &corpus, DOCKERFILE_WORDS, |input| {
        let lines = input.split(|byte| *byte == b'\n').count();
        let parsed = match dockerfile::parse(input, "Dockerfile") {
            Ok(parsed) => parsed,
            Err(error) => {
                assert!(error.position.line <= lines, "line {} of {lines}: {error}", error.position.line);
                assert!(!error.problem.to_string().is_empty());
                return;
            }
        };
        let lookup = |name: &str| (name.len() < 3).then(|| format!("{name} value"));
        for stage in &parsed.stages {
            let mut last = stage.span.start.line;
            for located in &stage.instructions {
                let line = located.span.start.line;
                assert!((last..=lines).contains(&line), "line {line} after {last} of {lines}");
                last = line;
                drop(located.instruction.expand(&Expander::new(parsed.escape, &lookup)));
            }
        }
    });
}

const IGNORE_WORDS: &[&[u8]] = &[
    b"\n!", b"**/", b"/**", b"*", b"?", b"[a-z]", b"[^", b"\\", b"..", b"./", b"//", b"\n#", b"a/b", b"\n",
    b" ", b"\xff", b"!!", b"c.d",
];

#[test]
fn what_an_ignore_file_says_of_a_directory_holds_for_everything_in_it() {
    let mut corpus = cases(".dockerignore");
    corpus.extend([&b"*\n!a/b/c.d\n"[..], b"a\n!a/**/x\n", b"**/b\n!a/b/?\n"].map(<[u8]>::to_vec));
    let paths =
        ["a", "a/b", "a/b/c.d", "a/b/c.d/x", "b", "b/a", "b/a/b", "src/a.rs", "x", "a/x", ".dockerignore"];
    fuzz("ignore", &corpus, IGNORE_WORDS, move |input| {
        let Ok(ignore) = IgnoreFile::parse(input, ".dockerignore") else { return };
        for directory in paths.map(Path::new) {
            if !ignore.is_ignored(directory) || ignore.may_reinclude_below(directory) {
                continue;
            }
            // Nobody looks into it: nothing in it may be wanted.
            for inside in paths.map(Path::new).into_iter().filter(|path| path.starts_with(directory)) {
                assert!(ignore.is_ignored(inside), "`{}` in `{}`", inside.display(), directory.display());
            }
        }
    });
}

type Written = (EntryType, &'static str, &'static str, &'static [u8]);

fn archive(entries: &[Written]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Archives with what archives can have in them.
fn archives() -> Vec<Vec<u8>> {
    use EntryType::{Directory, Fifo, GNULongName, Link, Regular, Symlink, XHeader};
    let all: [&[Written]; 6] = [
        &[(Directory, "d/", "", b""), (Regular, "d/f", "", b"content"), (Symlink, "d/l", "f", b"")],
        &[
            (Symlink, "out", "../outside", b""),
            (Regular, "out/evil", "", b"x"),
            (Link, "hard", "../outside/f", b""),
        ],
        &[(Symlink, "abs", "/", b""), (Regular, "abs/evil", "", b"x"), (Regular, "../evil", "", b"x")],
        &[(Directory, "d", "", b""), (Regular, "d/.wh..wh..opq", "", b""), (Regular, ".wh.d", "", b"")],
        &[(Fifo, "p", "", b""), (Link, "q", "p", b""), (Regular, "p", "", b"again")],
        &[
            (XHeader, "x", "", b"30 path=a/very/long/path/of/x\n"),
            (Regular, "short", "", b"1"),
            (GNULongName, "n", "", b"b/long\0"),
            (Regular, "s", "", b""),
        ],
    ];
    all.map(archive).into()
}

/// Makes the checksums of headers right again: a wrong one hides everything after it.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut fixed = input.to_vec();
    for block in fixed.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().copied().map(u32::from).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    fixed
}

const TAR_WORDS: &[&[u8]] = &[
    b"../",
    b"/",
    b"..",
    b".wh.",
    b".wh..wh..opq",
    b"\0",
    b"ustar\x0000",
    b"ustar  \0",
    b"00000000777\0",
    b"\x80\0\0\0\0\0\0\0\xff",
    b"path=../../evil\n",
    b"outside",
];

/// A place for a root, beside which nothing may appear.
struct Beside(tempfile::TempDir);

impl Beside {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/f"), "untouched").unwrap();
        Self(directory)
    }

    /// Lets `write` fill a new root, and looks at what is beside it afterwards.
    fn check(&self, write: impl FnOnce(&Root)) {
        let root = tempfile::Builder::new().prefix("root-").tempdir_in(self.0.path()).unwrap();
        let before = self.beside();
        write(&Root::open(root.path()).unwrap());
        assert_eq!(self.beside(), before, "something outside of the root was written to");
        // Whatever modes an archive gave its directories, they are ours.
        drop(root.close());
    }

    fn beside(&self) -> BTreeMap<PathBuf, (u64, u32, Vec<u8>)> {
        let is_root = |entry: &walkdir::DirEntry| entry.file_name().to_string_lossy().starts_with("root-");
        let entries = walkdir::WalkDir::new(self.0.path())
            .min_depth(1)
            .into_iter()
            .filter_entry(|entry| !is_root(entry));
        let of = |entry: walkdir::DirEntry| {
            let metadata = entry.metadata().unwrap();
            let content = if metadata.is_file() { fs::read(entry.path()).unwrap() } else { Vec::new() };
            (entry.into_path(), (metadata.nlink(), metadata.mode(), content))
        };
        entries.map(Result::unwrap).map(of).collect()
    }
}

#[test]
fn a_layer_is_unpacked_inside_its_root_or_refused() {
    let beside = Beside::new();
    fuzz("layer", &archives(), TAR_WORDS, move |input| {
        let tar = with_checksums(input);
        beside.check(|root| drop(unpack_layer(&tar[..], root, None, &UnpackOptions::default())));
    });
}

#[test]
fn a_context_is_unpacked_inside_its_root_or_refused() {
    let mut corpus = archives();
    corpus.extend(archives().iter().map(|tar| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        gzip.finish().unwrap()
    }));
    corpus.extend(archives().iter().map(|tar| zstd::encode_all(&tar[..], 1).unwrap()));
    let beside = Beside::new();
    fuzz("context", &corpus, TAR_WORDS, move |input| {
        let tar = with_checksums(input);
        beside.check(|root| drop(unpack_files(&tar[..], root)));
    });
}
