//! What every implementation of the sandbox does, as root and as an ordinary user with subordinate ids.
//!
//! The cases know a [`Bench`] alone; each rung is another `Bench`, and has cases of its own besides those of all.

mod app;
mod bench;
mod cases;
mod escapes;
mod machine;
mod plain;

use bench::Bench;

/// What is promised, and what tries it.
type Case = (&'static str, fn(&mut Bench));

/// Runs every case on a fresh bench, and tells all that failed by name.
fn run_all(make: impl Fn() -> Bench, cases: &[Case]) {
    let failed: Vec<_> = cases
        .iter()
        .filter(|(_, case)| {
            let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&mut make())));
            attempt.is_err()
        })
        .map(|(name, _)| *name)
        .collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

#[test]
fn the_userns_sandbox_conforms() {
    run_all(Bench::isolated, cases::EVERYWHERE);
    run_all(Bench::isolated, cases::NAMESPACES);
}

#[test]
fn nothing_gets_out_of_the_userns_sandbox() {
    run_all(Bench::isolated, escapes::ALL);
}

#[test]
fn the_in_place_sandbox_conforms() {
    if nix::unistd::Uid::effective().is_root() {
        run_all(Bench::in_place, cases::EVERYWHERE);
        run_all(Bench::in_place, plain::ALL);
    }
}

/// Root is not the only caller: the same suite by a user who has nothing but subordinate ids.
#[test]
fn an_ordinary_user_has_the_same_sandbox() {
    crate::ordinary_user::run_tests(&[
        "sandbox_conformance::the_userns_sandbox_conforms",
        "sandbox_conformance::nothing_gets_out_of_the_userns_sandbox",
        "sandbox_conformance::app::an_app_is_held_reached_and_stopped",
        "sandbox_conformance::machine::a_machine_that_runs_these_tests_lacks_nothing_vital",
    ]);
}
