//! Where the program's own processor time goes: a sampled profile, in the format that `go tool pprof` and its like read.
//!
//! It knows nothing of what the program does. A signal comes for every hundredth of a second that the process has used of a
//! processor; whichever thread runs then notes where it is (`signal`). What the addresses are called is looked up
//! afterwards, and the whole is written as `profile.proto` (`encode`).

mod encode;
mod signal;

use std::time::{Duration, SystemTime};

/// The longest profile.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Samples for each second of processor time; not a divisor of what else happens a hundred times a second.
const FREQUENCY: u32 = 99;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// One is being made.
    #[error("a profile is being taken: try again when it is done")]
    Busy,
    /// The system does not let us.
    #[error("cannot be woken while the program runs")]
    Signal(#[source] nix::errno::Errno),
    /// It could not be compressed.
    #[error("cannot write the profile")]
    Write(#[source] std::io::Error),
}

/// Takes a profile for as long as it is told, at most [`LONGEST`], and returns it as gzip-compressed `profile.proto`.
///
/// # Cancel safety
/// Dropped, it takes no more samples.
pub async fn take(duration: Duration) -> Result<Vec<u8>, ProfileError> {
    let duration = duration.min(LONGEST);
    let (began, sampling) = (SystemTime::now(), signal::Sampling::start(FREQUENCY)?);
    tokio::time::sleep(duration).await;
    let samples = sampling.end().await;
    // Names are looked up in the program's file, which is read for it.
    let written = tokio::task::spawn_blocking(move || {
        encode::profile(&samples, &encode::Timing { began, duration, frequency: FREQUENCY })
    });
    match written.await {
        Ok(written) => written.map_err(ProfileError::Write),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// What the test looks for.
    #[inline(never)]
    fn burns_the_processor(stop: &AtomicBool) -> u64 {
        let mut number = 1_u64;
        while number == 0 || !stop.load(Ordering::Relaxed) {
            let mut turn = 0;
            while turn < 10_000 {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                turn += 1;
            }
        }
        number
    }

    /// A message of protocol buffers as its fields: number, and either a number or bytes.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            match key & 7 {
                0 => found.push((key >> 3, varint(&mut bytes), Vec::new())),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)).unwrap();
                    let (inner, rest) = bytes.split_at(length);
                    found.push((key >> 3, 0, inner.to_vec()));
                    bytes = rest;
                }
                other => panic!("wire type {other}"),
            }
        }
        found
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_profile_names_the_function_that_takes_the_time_and_one_is_taken_at_a_time() {
        let stop = Arc::new(AtomicBool::new(false));
        let burning = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || burns_the_processor(&stop)
        });
        let mut first = Box::pin(take(Duration::from_secs(2)));
        assert!(futures::poll!(&mut first).is_pending());
        let refused = take(Duration::ZERO).await.unwrap_err();
        assert!(matches!(refused, ProfileError::Busy), "{refused}");
        let gzip = first.await.unwrap();
        stop.store(true, Ordering::Relaxed);
        burning.join().unwrap();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*gzip).read_to_end(&mut bytes).unwrap();
        let profile = fields(&bytes);
        let of = |number| profile.iter().filter(move |(found, ..)| *found == number);
        let strings: Vec<String> =
            of(6).map(|(_, _, text)| String::from_utf8(text.clone()).unwrap()).collect();
        assert_eq!(strings[0], "");
        // Sample → its first location → the line in it → the function → its name.
        let number =
            |message: &[u8], field| fields(message).iter().find(|(found, ..)| *found == field).unwrap().1;
        let entry = |list, id| of(list).find(|(_, _, message)| number(message, 1) == id).unwrap().2.clone();
        let name_of = |location: u64| {
            let location = entry(4, location);
            let line = fields(&location).into_iter().find(|(found, ..)| *found == 4).unwrap().2;
            let function = entry(5, number(&line, 1));
            strings[usize::try_from(number(&function, 2)).unwrap()].clone()
        };
        let mut burnt = 0;
        for (_, _, sample) in of(2) {
            let packed = |field| {
                let bytes = fields(sample).into_iter().find(|(found, ..)| *found == field).unwrap().2;
                let (mut rest, mut values) = (&bytes[..], Vec::new());
                while !rest.is_empty() {
                    values.push(varint(&mut rest));
                }
                values
            };
            let (locations, values) = (packed(1), packed(2));
            assert_eq!(values.len(), 2);
            if locations.iter().any(|id| name_of(*id).contains("burns_the_processor")) {
                burnt += values[0];
            }
        }
        assert!(burnt > 0, "{strings:?}");
        // And the next may begin.
        take(Duration::ZERO).await.unwrap();
    }
}
