//! A disk that is full at one moment of a push or another.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::machine::{Machine, Repository};

/// A data directory on a disk of its own, unmounted in the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Nothing where this user may not mount.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let size = format!("size={size},mode=700");
        let none = nix::mount::MsFlags::empty();
        let mounted = nix::mount::mount(Some("tmpfs"), path, Some("tmpfs"), none, Some(size.as_str()));
        if mounted.is_err() {
            assert!(!nix::unistd::Uid::effective().is_root());
            #[expect(clippy::print_stderr, reason = "says why nothing was tried")]
            let () = eprintln!("not root: a small disk cannot be mounted, not tried");
            return None;
        }
        Some(Self(path.to_owned()))
    }

    fn free(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.0).unwrap();
        found.blocks_free() * found.fragment_size()
    }

    /// Leaves so much free.
    fn fill(&self, leave: u64) {
        let mut file = File::create(self.filler()).unwrap();
        while self.free() > leave {
            let part = (self.free() - leave).min(1 << 16);
            if file.write_all(&vec![b'x'; usize::try_from(part).unwrap()]).is_err() {
                break;
            }
        }
    }

    fn empty(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// Commits a page, and a file that takes a megabyte wherever it goes: it does not compress.
fn commit(app: &Repository<'_>, page: &str) {
    let mut noise = vec![0; 1 << 20];
    rand::fill(&mut noise[..]);
    fs::write(app.path.join("www/noise"), noise).unwrap();
    app.commit(&[("www/index.html", page)]);
}

#[test]
fn a_disk_that_fills_up_at_any_stage_is_named_and_the_next_push_works() {
    let machine = Machine::prepared(&[]);
    let Some(disk) = SmallDisk::mount(&machine.data(), "100m") else { return };
    machine.up();
    let app = machine.web("full", "first");
    app.push().succeeded();
    let mut served = "first".to_owned();
    let mut failures = Vec::new();
    for (round, leave) in [0, 900, 2500, 4500, 5500, 6500, 7500].into_iter().enumerate() {
        let deployed = app.git(&["ls-remote", "deis", "main"]).succeeded().stdout;
        let page = format!("page {round}");
        commit(&app, &page);
        disk.fill(leave << 10);
        let pushed = app.push();
        if pushed.ok {
            served.clone_from(&page);
        } else {
            let said = pushed.stderr.to_lowercase();
            assert!(said.contains("no space left") || said.contains("disk is full"), "{leave} kB: {said}");
            // Nobody's Dockerfile is at fault.
            assert!(!said.contains("build failed: dockerfile"), "{leave} kB: {said}");
            failures.push(pushed.stderr);
        }
        assert_eq!(machine.get("full", "/").unwrap(), (200, served.clone()), "{leave} kB");
        disk.empty();
        if served != page {
            assert_eq!(app.git(&["ls-remote", "deis", "main"]).succeeded().stdout, deployed, "{leave} kB");
            app.push().succeeded();
            served = page;
            assert_eq!(machine.get("full", "/").unwrap(), (200, served.clone()), "{leave} kB");
        }
    }
    let at = |text: &str| failures.iter().filter(|said| said.contains(text)).count();
    assert!(at("Building") > 0 && at("Building") < failures.len(), "in and before the build: {failures:#?}");
    drop((machine, disk));
}
