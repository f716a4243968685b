//! Which machine a program is for (ELF, `e_machine`).

use std::fmt;

use crate::oci::Platform;

/// How much of a file's beginning says what it is.
pub(super) const HEAD_BYTES: usize = 20;

/// The machine that an ELF file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// `e_machine`.
    number: u16,
    /// 64 bits wide; tells x32 from amd64 and the like.
    wide: bool,
}

/// Numbers from the ELF registry, by Go's names of architectures.
const MACHINES: [(&str, Machine); 8] = [
    ("386", Machine { number: 3, wide: false }),
    ("amd64", Machine { number: 62, wide: true }),
    ("arm", Machine { number: 40, wide: false }),
    ("arm64", Machine { number: 183, wide: true }),
    ("loong64", Machine { number: 258, wide: true }),
    ("ppc64le", Machine { number: 21, wide: true }),
    ("riscv64", Machine { number: 243, wide: true }),
    ("s390x", Machine { number: 22, wide: true }),
];

/// The machine of a Linux platform, if we know it.
pub(super) fn machine_of(platform: &Platform) -> Option<Machine> {
    let known = MACHINES.iter().find(|(name, _)| *name == platform.architecture());
    known.filter(|_| platform.os() == "linux").map(|(_, machine)| *machine)
}

/// The machine that a file beginning with `head` is for; `None` if it is not an ELF file.
pub(super) fn machine_in(head: &[u8]) -> Option<Machine> {
    if head.len() < HEAD_BYTES || !head.starts_with(b"\x7fELF") {
        return None;
    }
    let number = [head[18], head[19]];
    let number = if head[5] == 2 { u16::from_be_bytes(number) } else { u16::from_le_bytes(number) };
    Some(Machine { number, wide: head[4] == 2 })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match MACHINES.iter().find(|(_, machine)| machine == self) {
            Some((name, _)) => f.write_str(name),
            None => {
                write!(f, "another machine (ELF {}, {} bits)", self.number, if self.wide { 64 } else { 32 })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_program_is_for_this_machine() {
        let head = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(machine_in(&head[..HEAD_BYTES]), machine_of(&Platform::native()));
        assert_eq!(machine_in(b"#!/bin/sh\n"), None);
        assert_eq!(machine_in(b"\x7fELF"), None);
    }
}
