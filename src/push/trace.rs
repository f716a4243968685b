//! The trace of a build: a span for all of it, below that one for each stage, below `build` one for each platform, and
//! below each of those one for each step of its Dockerfile.
//!
//! Every id follows from the build and the place in it. So a server that goes on with a build goes on with its trace,
//! and what both tell is the same span. What is not yet over is told by whoever ends it, and by nobody before.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::metrics::{result_of, result_of_platform};
use super::{Ended, Stages};
use crate::build::{BuildEvent, BuildFailure, StepState};
use crate::model::{Build, CancelReason, Fault, Outcome, PlatformImage};
use crate::oci::Platform;
use crate::traces::{Attribute, Exporter, Kind, Span, SpanEvent, SpanId, Status, TraceId};

/// Where the root of a trace is; what is below has a path below this one.
const ROOT: &str = "push";

/// How many steps of a platform are told.
const MAX_STEPS: usize = 1000;

/// How many notes of a platform are told.
const MAX_NOTES: usize = 64;

/// The trace of one build.
#[derive(Debug, Clone)]
pub(super) struct Trace {
    exporter: Exporter,
    id: TraceId,
}

/// A stage that has begun. Dropped without its end, nothing is told of it.
#[derive(Debug)]
pub(super) struct StageTrace {
    exporter: Exporter,
    span: Span,
}

/// What is known so far of the build of a platform.
#[derive(Debug)]
pub(super) struct PlatformTrace {
    trace: Trace,
    path: String,
    span: Span,
    attempts: u32,
    open: BTreeMap<u32, Span>,
    ended: Vec<Span>,
    hits: u64,
    misses: u64,
}

/// The id of a build's trace, which is also the id of the push in the log.
pub(super) fn id_of(build: &Build) -> TraceId {
    // A build of the same number of an earlier app of that name was made at another time.
    TraceId::of(&[
        build.app.as_str(),
        &build.number.0.to_string(),
        &build.commit.to_string(),
        &build.created_at.to_string(),
    ])
}

impl Trace {
    /// The trace of a build, wherever it is driven.
    pub(super) fn of(stages: &Stages, build: &Build) -> Self {
        Self { exporter: stages.traces.clone(), id: id_of(build) }
    }

    /// A stage that begins now.
    pub(super) fn stage(&self, name: &'static str) -> StageTrace {
        let span = self.span((&stage_path(name), Some(ROOT)), name, Timestamp::now());
        StageTrace { exporter: self.exporter.clone(), span }
    }

    /// The build of a platform, which begins now.
    pub(super) fn platform(&self, platform: &Platform) -> PlatformTrace {
        let stage = stage_path("build");
        let path = format!("{stage}/{platform}");
        let mut span = self.span((&path, Some(&stage)), "platform", Timestamp::now());
        set(&mut span, "hephy.platform", platform.to_string());
        let (open, ended) = (BTreeMap::new(), Vec::new());
        PlatformTrace { trace: self.clone(), path, span, attempts: 0, open, ended, hits: 0, misses: 0 }
    }

    /// Tells the whole build, which has ended.
    pub(super) fn ended(&self, build: &Build, outcome: &Outcome) {
        let mut span = self.span((ROOT, None), "push", build.created_at);
        span.kind = Kind::Server;
        set(&mut span, "hephy.app", build.app.as_str());
        set(&mut span, "hephy.build", build.number.0);
        set(&mut span, "vcs.ref.head.revision", build.commit.to_string());
        set(&mut span, "hephy.result", result_of(outcome));
        (span.end, span.status) = match outcome {
            Outcome::Succeeded { at, release } => {
                set(&mut span, "hephy.release", release.to_string());
                (*at, Status::Ok)
            }
            Outcome::Failed { at, reason, .. } => (*at, Status::Error(reason.clone())),
            Outcome::Cancelled { at, reason } => {
                set(&mut span, "hephy.cancelled", reason.sentence());
                (*at, Status::Unset)
            }
        };
        self.exporter.send(span);
    }

    fn span(&self, (path, parent): (&str, Option<&str>), name: &str, start: Timestamp) -> Span {
        Span {
            trace: self.id,
            id: SpanId::of(self.id, path),
            parent: parent.map(|parent| SpanId::of(self.id, parent)),
            name: name.to_owned(),
            kind: Kind::Internal,
            start,
            end: start,
            attributes: Vec::new(),
            events: Vec::new(),
            status: Status::Unset,
        }
    }
}

fn stage_path(name: &str) -> String {
    format!("{ROOT}/{name}")
}

/// Says something of a span, in the place of what was said of it before.
fn set(span: &mut Span, key: &'static str, value: impl Into<Attribute>) {
    span.attributes.retain(|(known, _)| *known != key);
    span.attributes.push((key, value.into()));
}

impl StageTrace {
    /// Tells the stage, unless it goes on elsewhere.
    pub(super) fn end<T>(mut self, ended: &Result<T, Ended>) {
        self.span.end = Timestamp::now();
        let (result, status) = match ended {
            Err(Ended::NotOurs) => return,
            Ok(_) => ("succeeded", Status::Ok),
            Err(Ended::Cancelled(reason)) => {
                set(&mut self.span, "hephy.cancelled", reason.sentence());
                ("cancelled", Status::Unset)
            }
            Err(Ended::Failed(failure)) => {
                let result = match failure.fault {
                    Fault::App => "failed",
                    Fault::Platform => "platform_failed",
                };
                (result, Status::Error(failure.reason.clone()))
            }
        };
        set(&mut self.span, "hephy.result", result);
        self.span.status = status;
        self.exporter.send(self.span);
    }

    /// Tells a wait, which had an end or was given up.
    pub(super) fn end_wait(self, is_over: bool) {
        self.end(&if is_over { Ok(()) } else { Err(Ended::Cancelled(CancelReason::Requested)) });
    }
}

impl PlatformTrace {
    /// How many steps came from the cache, and how many did not.
    pub(super) const fn steps(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    /// Takes note of what the build tells.
    pub(super) fn take(&mut self, event: &BuildEvent) {
        match event {
            BuildEvent::Started { isolation, .. } => {
                // One that was under way was lost with the machine that it ran on.
                self.give_up_steps("lost");
                self.attempts += 1;
                set(&mut self.span, "hephy.isolation", isolation.as_str());
            }
            BuildEvent::Step { number, of, stage, text, at, state, time } => {
                let time = time.unwrap_or_else(Timestamp::now);
                let begin = |trace: &Self, start| {
                    let path = format!("{}/{}/{number}", trace.path, trace.attempts);
                    let name = text.split_whitespace().next().unwrap_or("step");
                    let mut span = trace.trace.span((&path, Some(&trace.path)), name, start);
                    set(&mut span, "hephy.step.text", text.as_str());
                    set(&mut span, "hephy.step.file", at.file.as_str());
                    set(&mut span, "hephy.step.line", at.line as u64);
                    set(&mut span, "hephy.step.number", *number);
                    set(&mut span, "hephy.step.of", *of);
                    if let Some(stage) = stage {
                        set(&mut span, "hephy.step.stage", stage.as_str());
                    }
                    span
                };
                if *state == StepState::Started {
                    if self.has_room() {
                        let span = begin(self, time);
                        self.open.insert(*number, span);
                    }
                    return;
                }
                let span = self
                    .open
                    .remove(number)
                    .unwrap_or_else(|| begin(self, time.checked_sub(time_of(state)).unwrap_or(time)));
                self.end_step(span, state, time);
            }
            BuildEvent::Note { text } => {
                if self.span.events.len() < MAX_NOTES {
                    self.span.events.push(SpanEvent { at: Timestamp::now(), name: text.clone() });
                }
            }
            BuildEvent::Begun
            | BuildEvent::Output { .. }
            | BuildEvent::Finished { .. }
            | BuildEvent::Failed { .. } => {}
        }
    }

    fn has_room(&self) -> bool {
        self.trace.exporter.is_on() && self.open.len() + self.ended.len() < MAX_STEPS
    }

    fn end_step(&mut self, mut span: Span, state: &StepState, end: Timestamp) {
        span.end = end;
        let is_cached = *state == StepState::Cached;
        if is_cached {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        set(&mut span, "hephy.step.cached", is_cached);
        let (result, status) = match state {
            StepState::Started => return,
            StepState::Cached => ("succeeded", Status::Ok),
            StepState::Done { why, .. } => {
                if let Some(why) = why {
                    set(&mut span, "hephy.step.why", why.as_str());
                }
                ("succeeded", Status::Ok)
            }
            StepState::Failed { exit_status: Some(status), .. } => {
                set(&mut span, "process.exit.code", Attribute::Number((*status).into()));
                ("failed", Status::Error(format!("exit status {status}")))
            }
            StepState::Failed { exit_status: None, .. } => ("failed", Status::Error("it failed".to_owned())),
        };
        span.status = status;
        set(&mut span, "hephy.result", result);
        if self.has_room() {
            self.ended.push(span);
        }
    }

    /// Ends the steps of which no end was told.
    fn give_up_steps(&mut self, result: &'static str) {
        for (_, mut span) in std::mem::take(&mut self.open) {
            span.end = Timestamp::now();
            set(&mut span, "hephy.result", result);
            self.ended.push(span);
        }
    }

    /// Tells the build of the platform with all its steps.
    pub(super) fn end(mut self, built: &Result<PlatformImage, BuildFailure>) {
        self.give_up_steps("cancelled");
        let span = &mut self.span;
        span.end = Timestamp::now();
        set(span, "hephy.result", result_of_platform(built));
        set(span, "hephy.attempts", self.attempts);
        span.status = match built {
            Ok(image) => {
                set(span, "hephy.image", image.manifest.to_string());
                Status::Ok
            }
            Err(BuildFailure::Cancelled) => Status::Unset,
            Err(failure) => Status::Error(match failure.step().and_then(|step| step.at.as_ref()) {
                Some(at) => format!("{at}: {failure}"),
                None => failure.to_string(),
            }),
        };
        for span in self.ended.into_iter().chain([self.span]) {
            self.trace.exporter.send(span);
        }
    }
}

/// How long a step took, as it says.
const fn time_of(state: &StepState) -> Duration {
    match state {
        StepState::Done { millis, .. } | StepState::Failed { millis, .. } => Duration::from_millis(*millis),
        StepState::Started | StepState::Cached => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::*;
    use crate::build::{Location, StepFailure};
    use crate::model::{BuildNumber, BuildState, CommitId, FORMAT, PushOptions, ReleaseNumber, Source};

    fn build(number: u64) -> Build {
        let (app, at) = ("hello".parse::<crate::model::AppName>().unwrap(), time(0));
        let commit: CommitId = "0123456789012345678901234567890123456789".parse().unwrap();
        let source = Source { app: app.clone(), build: BuildNumber(number), commit, committed_at: at };
        Build {
            format: FORMAT,
            app,
            number: BuildNumber(number),
            commit,
            moves: Vec::new(),
            by: "ada".parse().unwrap(),
            created_at: at,
            options: PushOptions::default(),
            state: BuildState::Received(source),
            cancel: None,
            outcome: None,
        }
    }

    fn time(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn trace() -> (Trace, impl FnMut() -> Vec<Span>) {
        let (exporter, kept) = Exporter::keeping();
        (Trace { exporter, id: id_of(&build(7)) }, kept)
    }

    fn step(number: u32, text: &str, state: StepState, at: Timestamp) -> BuildEvent {
        let location = Location { file: "Dockerfile".to_owned(), line: 3 };
        let (text, stage) = (text.to_owned(), None);
        BuildEvent::Step { number, of: 3, stage, text, at: location, state, time: Some(at) }
    }

    fn started() -> BuildEvent {
        BuildEvent::Started { platform: Platform::native(), steps: 3, isolation: "userns".to_owned() }
    }

    fn is(span: &Span, key: &str) -> Option<Attribute> {
        span.attributes.iter().find(|(known, _)| *known == key).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_id_is_the_builds_wherever_it_is_driven_and_no_other_has_it() {
        assert_eq!(id_of(&build(7)), id_of(&build(7)));
        assert_ne!(id_of(&build(7)), id_of(&build(8)));
        assert_ne!(id_of(&build(7)), id_of(&Build { created_at: time(1), ..build(7) }));
    }

    #[test]
    fn steps_are_below_their_platform_with_the_engines_times() {
        let (trace, mut kept) = trace();
        let mut platform = trace.platform(&"linux/arm64".parse().unwrap());
        platform.take(&started());
        platform.take(&step(1, "FROM debian:12", StepState::Cached, time(10)));
        platform.take(&step(2, "RUN make", StepState::Started, time(11)));
        platform.take(&BuildEvent::Note { text: "a download".to_owned() });
        let why = Some("changed: app.py".to_owned());
        platform.take(&step(2, "RUN make", StepState::Done { millis: 4000, why }, time(15)));
        // Of one whose beginning nobody told, its own word counts.
        platform.take(&step(
            3,
            "COPY . /app",
            StepState::Failed { millis: 2000, exit_status: None },
            time(18),
        ));
        assert_eq!(platform.steps(), (1, 2));
        let failure = BuildFailure::App(StepFailure {
            at: Some(Location { file: "Dockerfile".to_owned(), line: 3 }),
            ..StepFailure::new("no such file")
        });
        platform.end(&Err(failure));
        let spans = kept();
        let [from, run, copy, whole] = &spans[..] else { panic!("{spans:?}") };
        assert_eq!(whole.parent, Some(SpanId::of(trace.id, "push/build")));
        assert!(whole.status == Status::Error("Dockerfile:3: no such file".to_owned()));
        assert_eq!(is(whole, "hephy.platform"), Some("linux/arm64".into()));
        assert_eq!(is(whole, "hephy.isolation"), Some("userns".into()));
        assert_eq!(whole.events[0].name, "a download");
        for step in [from, run, copy] {
            assert_eq!((step.parent, step.trace), (Some(whole.id), trace.id));
        }
        assert_eq!((&*from.name, from.start, from.end), ("FROM", time(10), time(10)));
        assert_eq!(is(from, "hephy.step.cached"), Some(true.into()));
        assert_eq!((&*run.name, run.start, run.end), ("RUN", time(11), time(15)));
        assert_eq!(is(run, "hephy.step.why"), Some("changed: app.py".into()));
        assert_eq!(is(run, "hephy.step.line"), Some(Attribute::Number(3)));
        assert_eq!((&*copy.name, copy.start, copy.end), ("COPY", time(16), time(18)));
        assert_eq!(is(copy, "hephy.result"), Some("failed".into()));
    }

    #[test]
    fn a_step_that_took_longer_than_there_is_time_began_when_it_ended() {
        let (trace, mut kept) = trace();
        let mut platform = trace.platform(&Platform::native());
        platform.take(&started());
        platform.take(&step(1, "RUN make", StepState::Done { millis: u64::MAX, why: None }, time(3)));
        platform.end(&Err(BuildFailure::Cancelled));
        let spans = kept();
        assert_eq!((spans[0].start, spans[0].end), (time(3), time(3)));
    }

    #[test]
    fn the_steps_of_a_lost_attempt_are_beside_those_of_the_next() {
        let (trace, mut kept) = trace();
        let mut platform = trace.platform(&Platform::native());
        platform.take(&started());
        platform.take(&step(1, "RUN make", StepState::Started, time(1)));
        platform.take(&started());
        platform.take(&step(1, "RUN make", StepState::Started, time(5)));
        platform.end(&Err(BuildFailure::Cancelled));
        let spans = kept();
        let [lost, cancelled, whole] = &spans[..] else { panic!("{spans:?}") };
        assert_ne!(lost.id, cancelled.id);
        assert_eq!((lost.start, cancelled.start), (time(1), time(5)));
        assert_eq!(is(lost, "hephy.result"), Some("lost".into()));
        assert_eq!(is(cancelled, "hephy.result"), Some("cancelled".into()));
        assert_eq!(is(whole, "hephy.attempts"), Some(Attribute::Number(2)));
        assert_eq!(whole.status, Status::Unset);
    }

    #[test]
    fn who_drives_a_build_again_gives_the_same_steps_the_same_ids() {
        let ids = || {
            let (trace, mut kept) = trace();
            let mut platform = trace.platform(&Platform::native());
            platform.take(&started());
            platform.take(&step(1, "RUN make", StepState::Cached, time(1)));
            platform.end(&Err(BuildFailure::Cancelled));
            kept().into_iter().map(|span| span.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(), ids());
    }

    #[test]
    fn more_steps_than_anybody_reads_are_left_out_and_counted() {
        let (trace, mut kept) = trace();
        let mut platform = trace.platform(&Platform::native());
        for number in 0..2000 {
            platform.take(&step(number, "RUN make", StepState::Started, time(1)));
            platform.take(&step(number, "RUN make", StepState::Done { millis: 1, why: None }, time(1)));
        }
        assert_eq!(platform.steps(), (0, 2000));
        platform.end(&Err(BuildFailure::Cancelled));
        assert_eq!(kept().len(), MAX_STEPS + 1);
    }

    #[test]
    fn a_stage_says_whose_fault_it_was_and_one_that_goes_on_elsewhere_says_nothing() {
        let (trace, mut kept) = trace();
        trace.stage("plan").end::<()>(&Err(Ended::NotOurs));
        drop(trace.stage("build"));
        assert_eq!(kept(), []);
        trace.stage("rollout").end::<()>(&Err(Failure::app("it crashes", Vec::new()).into()));
        let [rollout] = &kept()[..] else { panic!() };
        assert_eq!(rollout.parent, Some(SpanId::of(trace.id, ROOT)));
        assert_eq!(is(rollout, "hephy.result"), Some("failed".into()));
        assert_eq!(rollout.status, Status::Error("it crashes".to_owned()));
    }

    #[test]
    fn the_root_is_the_whole_push() {
        let (trace, mut kept) = trace();
        trace.ended(&build(7), &Outcome::Succeeded { at: time(9), release: ReleaseNumber(4) });
        let [root] = &kept()[..] else { panic!() };
        assert_eq!((root.id, root.parent, root.kind), (SpanId::of(trace.id, ROOT), None, Kind::Server));
        assert_eq!((root.start, root.end), (time(0), time(9)));
        for (key, value) in [
            ("hephy.app", "hello".into()),
            ("hephy.build", Attribute::Number(7)),
            ("hephy.result", "succeeded".into()),
            ("hephy.release", "v4".into()),
        ] {
            assert_eq!(is(root, key), Some(value), "{key}");
        }
    }
}
