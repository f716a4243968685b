//! Samples as `profile.proto`, compressed
//! (<https://github.com/google/pprof/blob/main/proto/profile.proto>; its few messages are written out here).

use std::collections::HashMap;
use std::ffi::c_void;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::signal::Samples;

/// When and how samples were taken.
pub(super) struct Timing {
    pub(super) began: SystemTime,
    pub(super) duration: Duration,
    pub(super) frequency: u32,
}

/// The whole profile.
pub(super) fn profile(samples: &Samples, timing: &Timing) -> io::Result<Vec<u8>> {
    let period = 1_000_000_000 / u64::from(timing.frequency.max(1));
    let mut names = Names::default();
    let mut profile = Message::default();
    profile.message(1, &value_type(&mut names, ("samples", "count")));
    let time = value_type(&mut names, ("cpu", "nanoseconds"));
    profile.message(1, &time);
    let mut counts: HashMap<&[usize], u64> = HashMap::new();
    for stack in &samples.stacks {
        *counts.entry(stack).or_default() += 1;
    }
    // The same samples, the same bytes.
    let mut counts: Vec<(&[usize], u64)> = counts.into_iter().collect();
    counts.sort_unstable();
    let mut program = Program::default();
    for (stack, count) in counts {
        let mut sample = Message::default();
        sample.packed(
            1,
            stack.iter().enumerate().map(|(depth, address)| {
                // A caller goes on after its call, which may be the beginning of another line.
                program.location(*address - usize::from(depth > 0), &mut names)
            }),
        );
        sample.packed(2, [count, count * period]);
        profile.message(2, &sample);
    }
    for (field, messages) in [(4, program.locations), (5, program.functions)] {
        for message in messages {
            profile.message(field, &message);
        }
    }
    let nanoseconds = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    profile.number(9, nanoseconds(timing.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()));
    profile.number(10, nanoseconds(timing.duration));
    profile.message(11, &time);
    profile.number(12, period);
    if samples.is_full {
        let comment = names.of("there was no room for the last samples: take a shorter profile");
        profile.packed(13, [comment]);
    }
    for name in &names.all {
        profile.bytes(6, name.as_bytes());
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&profile.0)?;
    gzip.finish()
}

fn value_type(names: &mut Names, (kind, unit): (&str, &str)) -> Message {
    let mut message = Message::default();
    message.number(1, names.of(kind));
    message.number(2, names.of(unit));
    message
}

/// The table of strings, of which the first is empty.
struct Names {
    all: Vec<String>,
    known: HashMap<String, u64>,
}

impl Default for Names {
    fn default() -> Self {
        Self { all: vec![String::new()], known: HashMap::from([(String::new(), 0)]) }
    }
}

impl Names {
    fn of(&mut self, name: &str) -> u64 {
        if let Some(index) = self.known.get(name) {
            return *index;
        }
        let index = self.all.len() as u64;
        self.all.push(name.to_owned());
        self.known.insert(name.to_owned(), index);
        index
    }
}

/// The places in the program that samples name.
#[derive(Default)]
struct Program {
    locations: Vec<Message>,
    functions: Vec<Message>,
    known_locations: HashMap<usize, u64>,
    known_functions: HashMap<(u64, u64), u64>,
}

impl Program {
    /// The number of a place, which is looked up the first time.
    fn location(&mut self, address: usize, names: &mut Names) -> u64 {
        if let Some(id) = self.known_locations.get(&address) {
            return *id;
        }
        let id = self.locations.len() as u64 + 1;
        let mut location = Message::default();
        location.number(1, id);
        location.number(3, address as u64);
        let mut is_known = false;
        // Several where functions are inlined, the innermost first, as the format wants it.
        backtrace::resolve(address as *mut c_void, |symbol| {
            is_known = true;
            let name = symbol.name().map_or_else(|| "?".to_owned(), |name| format!("{name:#}"));
            let file = symbol.filename().map(|path| path.display().to_string()).unwrap_or_default();
            let function = self.function((names.of(&name), names.of(&file)));
            let mut line = Message::default();
            line.number(1, function);
            line.number(2, symbol.lineno().unwrap_or_default().into());
            location.message(4, &line);
        });
        if !is_known {
            let mut line = Message::default();
            line.number(1, self.function((names.of(&format!("{address:#x}")), 0)));
            location.message(4, &line);
        }
        self.locations.push(location);
        self.known_locations.insert(address, id);
        id
    }

    fn function(&mut self, (name, file): (u64, u64)) -> u64 {
        if let Some(id) = self.known_functions.get(&(name, file)) {
            return *id;
        }
        let id = self.functions.len() as u64 + 1;
        let mut function = Message::default();
        function.number(1, id);
        function.number(2, name);
        function.number(3, name);
        function.number(4, file);
        self.functions.push(function);
        self.known_functions.insert((name, file), id);
        id
    }
}

/// A message of protocol buffers (<https://protobuf.dev/programming-guides/encoding/>).
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, field: u64, value: u64) {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    fn packed(&mut self, field: u64, values: impl IntoIterator<Item = u64>) {
        let mut bytes = Vec::new();
        for value in values {
            varint(&mut bytes, value);
        }
        self.bytes(field, &bytes);
    }
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(seven_bits(value) | 0x80);
        value >>= 7;
    }
    bytes.push(seven_bits(value));
}

fn seven_bits(value: u64) -> u8 {
    u8::try_from(value & 0x7f).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_seven_bits_at_a_time() {
        let written = |value| {
            let mut message = Message::default();
            message.number(1, value);
            message.0
        };
        assert_eq!(written(150), [0x08, 0x96, 0x01]);
        assert_eq!(written(0), [0x08, 0x00]);
        assert_eq!(written(u64::MAX).len(), 11);
    }

    #[test]
    fn the_same_samples_are_the_same_bytes_and_those_without_a_name_are_their_address() {
        let samples = Samples { stacks: vec![vec![2, 16], vec![1], vec![2, 16]], is_full: false };
        let timing =
            Timing { began: SystemTime::UNIX_EPOCH, duration: Duration::from_secs(1), frequency: 100 };
        let first = profile(&samples, &timing).unwrap();
        assert_eq!(first, profile(&samples, &timing).unwrap());
        let mut text = Vec::new();
        io::copy(&mut flate2::read::GzDecoder::new(&*first), &mut text).unwrap();
        let text = String::from_utf8_lossy(&text);
        for name in ["0x1", "0x2", "0xf", "samples", "nanoseconds"] {
            assert!(text.contains(name), "{name}: {text}");
        }
    }
}
