//! Progress on a terminal: what is done scrolls away, what runs stays below it with its time and its last line.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::build::{BuildEvent, StepState, elapsed};

/// How often times are drawn anew.
const TICK: Duration = Duration::from_millis(100);
/// The most steps that are drawn at once.
const MAX_DRAWN: usize = 8;

/// A display on standard error. Clones are the same.
#[derive(Clone)]
pub(super) struct Display {
    state: Arc<Mutex<State>>,
}

impl Display {
    /// A display, if standard error is a terminal that can be drawn on.
    pub(super) fn open() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
        if dumb || !io::stderr().is_terminal() {
            return None;
        }
        let state = Arc::new(Mutex::new(State::default()));
        let ticking = Arc::clone(&state);
        let tick = move || {
            loop {
                std::thread::sleep(TICK);
                let mut state = ticking.lock().unwrap_or_else(PoisonError::into_inner);
                if state.is_over {
                    return;
                }
                let text = state.frame(&[], size());
                show(&text);
            }
        };
        // Without it times stand still between events.
        drop(std::thread::Builder::new().name("display".to_owned()).spawn(tick));
        Some(Self { state })
    }

    /// Shows an event.
    pub(super) fn event(&self, event: &BuildEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = state.take(event);
        let text = state.frame(&lines, size());
        show(&text);
    }

    /// Leaves only what scrolled away; nothing is drawn after this.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.clear();
        let text = state.frame(&[], size());
        show(&text);
        state.is_over = true;
    }
}

/// A step that runs.
struct Running {
    line: String,
    began: Instant,
    last: String,
}

#[derive(Default)]
struct State {
    running: BTreeMap<u32, Running>,
    /// Lines that are drawn below what scrolled away.
    drawn: usize,
    is_over: bool,
}

impl State {
    /// Takes an event in; returns the lines that stay.
    fn take(&mut self, event: &BuildEvent) -> Vec<String> {
        match event {
            BuildEvent::Step { number, of, text, state: StepState::Started, .. } => {
                let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
                let line = format!("{number}/{of} {text}");
                self.running.insert(*number, Running { line, began: Instant::now(), last: String::new() });
                Vec::new()
            }
            BuildEvent::Step { number, .. } => {
                self.running.remove(number);
                event.lines()
            }
            BuildEvent::Output { step, line, .. } => {
                if let Some(running) = self.running.get_mut(step) {
                    running.last = without_escapes(line);
                }
                Vec::new()
            }
            BuildEvent::Failed { failure } => {
                self.running.clear();
                // Only its last line was seen so far.
                let last = failure.step().map(|step| step.last_lines.as_slice()).unwrap_or_default();
                last.iter().map(|line| format!("    {line}")).chain(event.lines()).collect()
            }
            _ => event.lines(),
        }
    }

    /// What is written to get from what is drawn to `lines` and below them what runs.
    fn frame(&mut self, lines: &[String], (columns, rows): (usize, usize)) -> String {
        let mut text = String::new();
        for _ in 0..self.drawn {
            // Up one line, and clear it.
            text.push_str("\u{1b}[1A\u{1b}[2K");
        }
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn = 0;
        let fits = MAX_DRAWN.min(rows.saturating_sub(2) / 2);
        for running in self.running.values().take(fits) {
            let time = elapsed(u64::try_from(running.began.elapsed().as_millis()).unwrap_or(u64::MAX));
            let room = columns.saturating_sub(time.len() + 2);
            text.extend([format!("{:<room$}", cut(&running.line, room)), format!(" {time}\n")]);
            self.drawn += 1;
            if !running.last.is_empty() {
                let last = cut(&running.last, columns.saturating_sub(5));
                text.extend(["\u{1b}[2m    ", &last, "\u{1b}[0m\n"]);
                self.drawn += 1;
            }
        }
        text
    }
}

/// The slowest steps of a build, for the end.
pub(super) fn slowest(steps: &[crate::model::Step]) -> Vec<String> {
    const SLOW_MILLIS: u64 = 1000;
    const MOST: usize = 5;
    let mut slow: Vec<_> =
        steps.iter().filter(|step| !step.cached && step.milliseconds >= SLOW_MILLIS).collect();
    slow.sort_by_key(|step| std::cmp::Reverse(step.milliseconds));
    let line = |step: &&crate::model::Step| {
        let text: String = step.text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{:>8}  line {}: {}", elapsed(step.milliseconds), step.line, cut(&text, 70))
    };
    slow.iter().take(MOST).map(line).collect()
}

/// At most so many characters.
fn cut(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    text.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

/// A line that moves no cursor and sets no colour.
fn without_escapes(line: &str) -> String {
    let mut plain = String::new();
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.clone().next() == Some('[') {
                    chars.find(char::is_ascii_alphabetic);
                }
            }
            '\t' => plain.push(' '),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

fn size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

fn show(text: &str) {
    if !text.is_empty() {
        // Whoever closed our standard error did not cancel the build.
        drop(io::stderr().lock().write_all(text.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Location;

    fn step(number: u32, text: &str, state: StepState) -> BuildEvent {
        let at = Location { file: "Dockerfile".to_owned(), line: 1 };
        BuildEvent::Step { number, of: 2, stage: None, text: text.to_owned(), at, state, time: None }
    }

    #[test]
    fn what_runs_is_drawn_again_below_what_is_done() {
        let mut state = State::default();
        assert!(state.take(&step(1, "RUN make", StepState::Started)).is_empty());
        let first = state.frame(&[], (40, 24));
        assert!(first.starts_with("1/2 RUN make ") && first.ends_with("0.0s\n"), "{first:?}");
        let output =
            BuildEvent::Output { step: 1, stage: None, line: "\u{1b}[31mred\u{1b}[0m\tline".to_owned() };
        state.take(&output);
        let second = state.frame(&[], (40, 24));
        assert!(second.starts_with("\u{1b}[1A\u{1b}[2K1/2"), "{second:?}");
        assert!(second.ends_with("\u{1b}[2m    red line\u{1b}[0m\n"), "{second:?}");
        let lines = state.take(&step(1, "RUN make", StepState::Done { millis: 1500, why: None }));
        let third = state.frame(&lines, (40, 24));
        assert!(third.starts_with(&"\u{1b}[1A\u{1b}[2K".repeat(2)) && third.ends_with("1.5s\n"), "{third:?}");
        assert_eq!(state.frame(&[], (40, 24)), "", "nothing is left to draw");
    }

    #[test]
    fn nothing_is_drawn_wider_or_higher_than_the_terminal() {
        let mut state = State::default();
        for number in 0..20 {
            state.take(&step(number, &"x".repeat(200), StepState::Started));
        }
        let frame = state.frame(&[], (40, 10));
        assert!(frame.lines().all(|line| line.chars().count() < 40), "{frame:?}");
        assert_eq!(frame.lines().count(), 4);
    }

    #[test]
    fn the_slowest_steps_come_first_and_quick_ones_not_at_all() {
        let step = |line, milliseconds, cached| crate::model::Step {
            text: "RUN  x".to_owned(),
            line,
            cached,
            milliseconds,
        };
        let lines =
            slowest(&[step(1, 2000, false), step(2, 10, false), step(3, 9000, false), step(4, 9000, true)]);
        assert_eq!(lines, ["    9.0s  line 3: RUN x", "    2.0s  line 1: RUN x"]);
    }
}
