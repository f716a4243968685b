//! What every implementation of the sandbox does, as root and as an ordinary user with subordinate ids.
//!
//! The cases know a [`Bench`] alone. One rung is tried today; another is another `Bench`.

mod app;
mod bench;
mod cases;
mod escapes;
mod machine;

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
    run_all(Bench::isolated, cases::ALL);
}

#[test]
fn nothing_gets_out_of_the_userns_sandbox() {
    run_all(Bench::isolated, escapes::ALL);
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
