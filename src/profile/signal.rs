//! Samples: where each thread is when its process has used a little more of a processor.
//!
//! The handler runs in the middle of anything, so it takes no lock, allocates nothing, and reads memory only by a system
//! call, which fails where a stray pointer would kill. It follows frame pointers; code that has none shows as the one
//! function that ran.
#![expect(unsafe_code, reason = "a signal handler, and the timer that calls it, are not to be had without")]

use std::ffi::{c_int, c_void};
use std::io::IoSliceMut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use super::ProfileError;

/// How many frames of a stack are noted, innermost first.
const MAX_FRAMES: usize = 64;

/// The farthest that a stack goes from its innermost frame, in bytes.
const MAX_STACK_BYTES: usize = 64 << 20;

/// How much is noted: of each sample its length, and an address for each frame. 8 MiB.
const CAPACITY: usize = 1 << 20;

/// Whether samples are wanted.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether somebody has the sampler.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// How many handlers are at work.
static WORKING: AtomicUsize = AtomicUsize::new(0);
/// Where the next sample goes.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// The samples. Made with the first profile and kept: a late signal may still write.
static SPACE: OnceLock<Box<[AtomicUsize]>> = OnceLock::new();

/// The samples of a profile.
#[derive(Debug, Default)]
pub(super) struct Samples {
    /// The addresses of each, innermost first: where it was, then where each caller goes on.
    pub(super) stacks: Vec<Vec<usize>>,
    /// Whether there was no room for the last of them.
    pub(super) is_full: bool,
}

/// Samples are being taken, until this is dropped.
#[derive(Debug)]
pub(super) struct Sampling(());

impl Sampling {
    /// Begins, unless somebody else has.
    pub(super) fn start(frequency: u32) -> Result<Self, ProfileError> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(ProfileError::Busy);
        }
        let this = Self(());
        SPACE.get_or_init(|| (0..CAPACITY).map(|_| AtomicUsize::new(0)).collect());
        NEXT.store(0, Ordering::SeqCst);
        // It stays: a signal that comes late would otherwise end the process.
        let action = SigAction::new(SigHandler::SigAction(handle), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler only does what a handler may: see the module.
        unsafe { sigaction(Signal::SIGPROF, &action) }.map_err(ProfileError::Signal)?;
        WANTED.store(true, Ordering::SeqCst);
        set_timer(1_000_000 / frequency.max(1)).map_err(ProfileError::Signal)?;
        Ok(this)
    }

    /// Ends, and returns what was noted.
    pub(super) async fn end(self) -> Samples {
        stop();
        // A handler that was at work may still write; it has microseconds to go, if its thread has a processor.
        while WORKING.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        read()
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        stop();
        TAKEN.store(false, Ordering::SeqCst);
    }
}

fn stop() {
    WANTED.store(false, Ordering::SeqCst);
    // Where it is not taken back, the handler does nothing.
    let _fails_for_wrong_arguments_only = set_timer(0);
}

/// Sends SIGPROF each time that the process has used this much of a processor; never with 0.
fn set_timer(microseconds: u32) -> Result<(), Errno> {
    let interval = libc::timeval { tv_sec: 0, tv_usec: microseconds.into() };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the timer lives as long as the call, and nothing is written back.
    Errno::result(unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) })
        .map(drop)
}

/// Takes what the handlers left, each sample whole.
fn read() -> Samples {
    let mut samples = Samples::default();
    let Some(space) = SPACE.get() else { return samples };
    let (mut at, noted) = (0, NEXT.load(Ordering::SeqCst));
    samples.is_full = noted > CAPACITY;
    while at < noted.min(CAPACITY) {
        let length = space[at].load(Ordering::SeqCst);
        let end = at + 1 + length;
        if length == 0 || end > CAPACITY {
            break;
        }
        samples.stacks.push(space[at + 1..end].iter().map(|word| word.load(Ordering::Relaxed)).collect());
        at = end;
    }
    samples
}

extern "C" fn handle(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    WORKING.fetch_add(1, Ordering::SeqCst);
    if WANTED.load(Ordering::SeqCst) && !context.is_null() {
        let errno = Errno::last_raw();
        // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context (sigaction(2)).
        let registers = Registers::of(unsafe { &*context.cast::<libc::ucontext_t>() });
        let mut frames = [0; MAX_FRAMES];
        let count = walk(&registers, &mut frames);
        note(&frames[..count]);
        Errno::set_raw(errno);
    }
    WORKING.fetch_sub(1, Ordering::SeqCst);
}

/// Where a thread is, and where its stack is.
struct Registers {
    instruction: usize,
    stack: usize,
    frame: usize,
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    fn of(context: &libc::ucontext_t) -> Self {
        let register = |number: c_int| {
            let value = usize::try_from(number).ok().and_then(|index| context.uc_mcontext.gregs.get(index));
            usize::try_from(value.copied().unwrap_or_default().cast_unsigned()).unwrap_or_default()
        };
        Self {
            instruction: register(libc::REG_RIP),
            stack: register(libc::REG_RSP),
            frame: register(libc::REG_RBP),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn of(context: &libc::ucontext_t) -> Self {
        let machine = &context.uc_mcontext;
        Self {
            instruction: usize::try_from(machine.pc).unwrap_or_default(),
            stack: usize::try_from(machine.sp).unwrap_or_default(),
            frame: usize::try_from(machine.regs[29]).unwrap_or_default(),
        }
    }
}

/// Notes the frames from the innermost outward, and returns how many.
///
/// A frame pointer points to the one before it, with the address where the caller goes on beside it, on both architectures
/// (System V ABI, AMD64, §3.2.2; AAPCS64 §6.4.6).
fn walk(registers: &Registers, frames: &mut [usize; MAX_FRAMES]) -> usize {
    frames[0] = registers.instruction;
    let (mut count, mut frame, mut below) = (1, registers.frame, registers.stack);
    while count < MAX_FRAMES {
        let is_plausible = frame >= below
            && frame.is_multiple_of(size_of::<usize>())
            && frame - registers.stack < MAX_STACK_BYTES;
        let Some([next, returns]) = is_plausible.then(|| words_at(frame)).flatten() else { break };
        if returns == 0 {
            break;
        }
        frames[count] = returns;
        count += 1;
        // Outward is upward.
        (below, frame) = (frame + 1, next);
    }
    count
}

/// Two words of our own memory, if they are there to be read.
fn words_at(address: usize) -> Option<[usize; 2]> {
    let mut bytes = [0; 2 * size_of::<usize>()];
    let remote = [RemoteIoVec { base: address, len: bytes.len() }];
    let length = bytes.len();
    let read = process_vm_readv(Pid::this(), &mut [IoSliceMut::new(&mut bytes)], &remote);
    let (first, second) = bytes.split_at(size_of::<usize>());
    let word = |bytes: &[u8]| bytes.try_into().map(usize::from_ne_bytes).ok();
    if read == Ok(length) { Some([word(first)?, word(second)?]) } else { None }
}

fn note(frames: &[usize]) {
    let Some(space) = SPACE.get() else { return };
    let at = NEXT.fetch_add(frames.len() + 1, Ordering::SeqCst);
    let Some(room) = space.get(at..at.saturating_add(frames.len() + 1)) else {
        // The end: what is read stops at a length of nothing.
        if let Some(word) = space.get(at) {
            word.store(0, Ordering::SeqCst);
        }
        return;
    };
    let Some((length, words)) = room.split_first() else { return };
    for (word, frame) in words.iter().zip(frames) {
        word.store(*frame, Ordering::Relaxed);
    }
    length.store(frames.len(), Ordering::SeqCst);
}
