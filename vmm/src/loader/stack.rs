//! The initial stack: argc, argv, envp, the auxiliary vector and the strings, as the System V ABI (x86-64, figure 3.9) and
//! Linux lay them out. From high to low: the file name, the environment strings, the argument strings (each group ascending
//! and adjacent, which programs that rewrite their title rely on), the platform string, 16 random bytes, the vectors.

use thiserror::Error;

use crate::limits::STACK_BYTES;

/// Longest single string with its zero byte (MAX_ARG_STRLEN).
const STRING_BYTES_MAX: usize = 128 << 10;
/// Most bytes of strings and pointers together: a quarter of the stack, as `execve(2)` says.
const TOTAL_BYTES_MAX: usize = STACK_BYTES as usize / 4;

/// Keys of the auxiliary vector (`getauxval(3)`).
pub(super) mod at {
    pub(in crate::loader) const NULL: u64 = 0;
    pub(in crate::loader) const PHDR: u64 = 3;
    pub(in crate::loader) const PHENT: u64 = 4;
    pub(in crate::loader) const PHNUM: u64 = 5;
    pub(in crate::loader) const PAGESZ: u64 = 6;
    pub(in crate::loader) const BASE: u64 = 7;
    pub(in crate::loader) const FLAGS: u64 = 8;
    pub(in crate::loader) const ENTRY: u64 = 9;
    pub(in crate::loader) const UID: u64 = 11;
    pub(in crate::loader) const EUID: u64 = 12;
    pub(in crate::loader) const GID: u64 = 13;
    pub(in crate::loader) const EGID: u64 = 14;
    pub(in crate::loader) const PLATFORM: u64 = 15;
    pub(in crate::loader) const HWCAP: u64 = 16;
    pub(in crate::loader) const CLKTCK: u64 = 17;
    pub(in crate::loader) const SECURE: u64 = 23;
    pub(in crate::loader) const RANDOM: u64 = 25;
    pub(in crate::loader) const HWCAP2: u64 = 26;
    pub(in crate::loader) const EXECFN: u64 = 31;
    pub(in crate::loader) const SYSINFO_EHDR: u64 = 33;
    pub(in crate::loader) const MINSIGSTKSZ: u64 = 51;
}

/// Why no stack can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StackError {
    /// Arguments and environment together are too long (E2BIG).
    #[error("the arguments and the environment together are larger than {} KiB", TOTAL_BYTES_MAX >> 10)]
    TooLarge,
    /// One string is too long (E2BIG).
    #[error("an argument or environment variable is longer than {} KiB", STRING_BYTES_MAX >> 10)]
    StringTooLong,
    /// A zero byte inside a string, which C cannot express.
    #[error("an argument or environment variable contains a zero byte")]
    ZeroByte,
}

/// What goes onto the stack.
#[derive(Debug)]
pub(super) struct Contents<'a> {
    /// `argv`.
    pub(super) arguments: &'a [Vec<u8>],
    /// `NAME=value` strings.
    pub(super) environment: &'a [Vec<u8>],
    /// Path of the program as it was named, for AT_EXECFN.
    pub(super) file_name: &'a [u8],
    /// The pairs of the auxiliary vector without those that point into the stack and without AT_NULL.
    pub(super) auxv: &'a [(u64, u64)],
    /// For AT_RANDOM.
    pub(super) random: [u8; 16],
}

/// A finished stack.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stack {
    /// Initial stack pointer: the address of argc, 16-byte aligned.
    pub(super) pointer: u64,
    /// Bytes from `pointer` up to the top.
    pub(super) bytes: Vec<u8>,
    /// Address of the 16 random bytes.
    pub(super) random_address: u64,
    /// The whole auxiliary vector with AT_NULL.
    pub(super) auxv: Vec<(u64, u64)>,
}

/// Lay a stack out below `top`, which is page aligned.
pub(super) fn build(top: u64, contents: &Contents<'_>) -> Result<Stack, StackError> {
    check_sizes(contents)?;
    let mut strings = Strings { top, bytes: Vec::new() };
    // As in Linux the last eight bytes of the stack are zero.
    strings.push(&[0; 8]);
    let file_name = strings.push_string(contents.file_name);
    let environment = strings.push_all(contents.environment);
    let arguments = strings.push_all(contents.arguments);
    let platform = strings.push_string(b"x86_64");
    strings.align(16);
    let random_address = strings.push(&contents.random);

    let mut auxv = contents.auxv.to_vec();
    auxv.extend([(at::RANDOM, random_address), (at::EXECFN, file_name), (at::PLATFORM, platform), (at::NULL, 0)]);
    let mut words = vec![arguments.len() as u64];
    words.extend(&arguments);
    words.push(0);
    words.extend(&environment);
    words.push(0);
    words.extend(auxv.iter().flat_map(|&(key, value)| [key, value]));
    if words.len() % 2 == 1 {
        // Padding goes above the vectors: argc itself must lie on 16 bytes.
        strings.push(&[0; 8]);
    }
    let vectors: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let pointer = strings.push(&vectors);
    strings.bytes.reverse();
    Ok(Stack { pointer, bytes: strings.bytes, random_address, auxv })
}

fn check_sizes(contents: &Contents<'_>) -> Result<(), StackError> {
    let all = || contents.arguments.iter().chain(contents.environment);
    if all().any(|string| string.contains(&0)) || contents.file_name.contains(&0) {
        return Err(StackError::ZeroByte);
    }
    if all().any(|string| string.len() >= STRING_BYTES_MAX) {
        return Err(StackError::StringTooLong);
    }
    let total = all().fold(contents.file_name.len() + 1, |sum, string| sum.saturating_add(string.len() + 1 + size_of::<u64>()));
    if total > TOTAL_BYTES_MAX { Err(StackError::TooLarge) } else { Ok(()) }
}

/// Bytes that grow downwards from `top`; kept in reverse so that growing is appending.
struct Strings {
    top: u64,
    bytes: Vec<u8>,
}

impl Strings {
    fn push(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.extend(bytes.iter().rev());
        self.top - self.bytes.len() as u64
    }

    fn push_string(&mut self, string: &[u8]) -> u64 {
        self.push(&[0]);
        self.push(string)
    }

    /// Addresses of the strings, the first one lowest.
    fn push_all(&mut self, strings: &[Vec<u8>]) -> Vec<u64> {
        let mut addresses: Vec<u64> = strings.iter().rev().map(|string| self.push_string(string)).collect();
        addresses.reverse();
        addresses
    }

    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: u64 = 0x7000_0000;

    fn strings(list: &[&str]) -> Vec<Vec<u8>> {
        list.iter().map(|string| string.as_bytes().to_vec()).collect()
    }

    fn word(stack: &Stack, address: u64) -> u64 {
        let at = usize::try_from(address - stack.pointer).expect("inside");
        u64::from_le_bytes(stack.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn string(stack: &Stack, address: u64) -> String {
        let at = usize::try_from(address - stack.pointer).expect("inside");
        stack.bytes[at..].split(|&byte| byte == 0).next().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).expect("a string")
    }

    #[test]
    fn a_program_finds_its_vectors() {
        for count in 0..4 {
            let environment = strings(&["HOME=/root", "LANG=C", "A=1"][..count]);
            let arguments = strings(&["true", "", "--x"]);
            let contents = Contents {
                arguments: &arguments,
                environment: &environment,
                file_name: b"/bin/true",
                auxv: &[(at::PAGESZ, 4096)],
                random: [7; 16],
            };
            let stack = build(TOP, &contents).expect("small");
            assert_eq!(stack.pointer % 16, 0);
            assert_eq!(stack.pointer + stack.bytes.len() as u64, TOP);
            assert_eq!(word(&stack, stack.pointer), 3);
            let argv: Vec<u64> = (0..4).map(|index| word(&stack, stack.pointer + 8 + index * 8)).collect();
            assert_eq!(argv[3], 0);
            assert_eq!(
                (string(&stack, argv[0]), string(&stack, argv[1]), string(&stack, argv[2])),
                ("true".into(), String::new(), "--x".into())
            );
            let envp = stack.pointer + 5 * 8;
            for (index, variable) in environment.iter().enumerate() {
                assert_eq!(string(&stack, word(&stack, envp + index as u64 * 8)).as_bytes(), variable);
            }
            let auxv = envp + (count as u64 + 1) * 8;
            assert_eq!((word(&stack, envp + count as u64 * 8), word(&stack, auxv), word(&stack, auxv + 8)), (0, at::PAGESZ, 4096));
            for (index, &(key, value)) in stack.auxv.iter().enumerate() {
                assert_eq!((word(&stack, auxv + index as u64 * 16), word(&stack, auxv + index as u64 * 16 + 8)), (key, value));
            }
            assert_eq!(stack.auxv.last(), Some(&(at::NULL, 0)));
            assert_eq!((word(&stack, stack.random_address), stack.random_address % 16), (0x0707_0707_0707_0707, 0));
            let name = stack.auxv.iter().find(|pair| pair.0 == at::EXECFN).expect("AT_EXECFN").1;
            assert_eq!(string(&stack, name), "/bin/true");
        }
    }

    #[test]
    fn argument_strings_lie_next_to_each_other_and_the_environment_follows() {
        let (arguments, environment) = (strings(&["a", "bc"]), strings(&["X=1"]));
        let stack =
            build(TOP, &Contents { arguments: &arguments, environment: &environment, file_name: b"/a", auxv: &[], random: [0; 16] })
                .expect("small");
        let first = word(&stack, stack.pointer + 8);
        let at = usize::try_from(first - stack.pointer).expect("inside");
        assert_eq!(&stack.bytes[at..], b"a\0bc\0X=1\0/a\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn limits_are_those_of_execve() {
        let with = |arguments: &[Vec<u8>]| {
            build(TOP, &Contents { arguments, environment: &[], file_name: b"/a", auxv: &[], random: [0; 16] }).map(|_| ())
        };
        assert_eq!(with(&[vec![b'x'; STRING_BYTES_MAX - 1]]), Ok(()));
        assert_eq!(with(&[vec![b'x'; STRING_BYTES_MAX]]), Err(StackError::StringTooLong));
        assert_eq!(with(&vec![vec![b'x'; 100_000]; 20]), Ok(()));
        assert_eq!(with(&vec![vec![b'x'; 100_000]; 21]), Err(StackError::TooLarge));
        assert_eq!(with(&vec![Vec::new(); TOTAL_BYTES_MAX / 9 + 1]), Err(StackError::TooLarge));
        assert_eq!(with(&[b"a\0b".to_vec()]), Err(StackError::ZeroByte));
    }
}
