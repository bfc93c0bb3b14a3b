//! What an ELF file asks the loader to do, read from its headers and checked; no host calls besides reading the file.
//!
//! Every number in the file is hostile: a program may have been uploaded by anybody. What leaves this module is bounded:
//! segments ascend, do not overlap, lie in the lower half of the address space and inside the file, and no sum of their
//! fields overflows. Parsing of the raw structs is the `object` crate's. See `elf(5)` and the System V ABI, chapter 5.

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use rustix::io::Errno;
use thiserror::Error;

use crate::limits::{PAGE, PATH_MAX};
use crate::memory::Protection;

/// One past the highest address of user mode (47 bits).
pub(super) const USER_END: u64 = 1 << 47;
/// Most bytes of program headers, as in Linux (`load_elf_phdrs`).
const PROGRAM_HEADER_BYTES_MAX: usize = 65_536;
/// Largest alignment a segment may ask for: what the fixed base of position-independent programs can honour.
const ALIGNMENT_MAX: u64 = 1 << 30;

/// Something whose bytes can be read at an offset: an open file, or bytes in a test.
pub(super) trait ReadAt {
    /// Read into `buffer` from `offset`; fewer bytes only at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno>;
    /// Size in bytes.
    fn size(&self) -> Result<u64, Errno>;

    /// Read exactly `length` bytes, or `None` where the file is shorter.
    fn read_exact_at(&self, offset: u64, length: usize) -> Result<Option<Vec<u8>>, Errno> {
        if offset.checked_add(length as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        Ok((self.read_at(offset, &mut bytes)? == length).then_some(bytes))
    }
}

impl ReadAt for std::os::fd::OwnedFd {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(self, rest, offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(done)
    }

    fn size(&self) -> Result<u64, Errno> {
        Ok(u64::try_from(rustix::fs::fstat(self)?.st_size).unwrap_or(0))
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn size(&self) -> Result<u64, Errno> {
        Ok(self.len() as u64)
    }
}

/// Why a file is not an ELF program that this machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ElfError {
    /// The file does not begin with the ELF magic.
    #[error("it is not an ELF file")]
    NotElf,
    /// A 32-bit (i386 or x32) program.
    #[error("it is a 32-bit program, and only 64-bit x86-64 programs run")]
    Class32,
    /// Byte order, ELF version or header size are not those of a Linux x86-64 program.
    #[error("its ELF header is not that of a Linux x86-64 program")]
    BadHeader,
    /// Another processor's program.
    #[error("it is a program for another processor (ELF machine {0}), not for x86-64")]
    Machine(u16),
    /// An object file or a core dump.
    #[error("it is an ELF file of type {0}, not an executable")]
    Type(u16),
    /// No program headers, too many, or headers outside the file.
    #[error("its ELF program headers are damaged")]
    ProgramHeaders,
    /// PT_INTERP is outside the file, too long, empty or without its zero byte.
    #[error("the path of its ELF interpreter is damaged")]
    InterpreterPath,
    /// No PT_LOAD segment.
    #[error("it has no ELF segment to load")]
    NoSegments,
    /// A segment that is larger in the file than in memory, wraps around, overlaps another or is not aligned as its file offset.
    #[error("its ELF segment {0} is damaged")]
    Segment(usize),
    /// A segment lies beyond the end of the file.
    #[error("the file is cut off: its ELF segment {0} lies beyond the end")]
    CutOff(usize),
    /// An alignment that no address in a process has.
    #[error("its ELF segment {0} asks for an alignment of more than 1 GiB")]
    Alignment(usize),
    /// The entry point is not a user address.
    #[error("its ELF entry point is not a valid address")]
    Entry,
    /// Reading failed.
    #[error("it cannot be read: {0}")]
    Read(#[from] Errno),
}

/// How the addresses in the file are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// ET_EXEC: as they are.
    Fixed,
    /// ET_DYN: relative to a base that the loader chooses.
    Relocatable,
}

/// One PT_LOAD segment, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Address of the first byte, without the load bias.
    pub(super) address: u64,
    /// Offset of that byte in the file; congruent to `address` modulo the page size where `file_bytes` is not zero.
    pub(super) offset: u64,
    /// Bytes that come from the file.
    pub(super) file_bytes: u64,
    /// Bytes in memory, at least `file_bytes`; what exceeds them is zero.
    pub(super) memory_bytes: u64,
    /// What the program may do with it.
    pub(super) protection: Protection,
}

/// An ELF file's demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elf {
    /// How its addresses are meant.
    pub(super) kind: Kind,
    /// Entry point, without the load bias.
    pub(super) entry: u64,
    /// Segments in ascending order; at least one.
    pub(super) segments: Vec<Segment>,
    /// PT_INTERP.
    pub(super) interpreter: Option<Vec<u8>>,
    /// PT_GNU_STACK asks for an executable stack.
    pub(super) executable_stack: bool,
    /// Address of the program headers in memory without the bias, if a segment holds them.
    pub(super) headers_address: Option<u64>,
    /// Number of program headers.
    pub(super) headers_count: u16,
    /// Alignment that the load bias must have, a power of two of at least a page.
    pub(super) alignment: u64,
    /// File offset and size of PT_DYNAMIC.
    pub(super) dynamic: Option<(u64, u64)>,
}

type Header = FileHeader64<LittleEndian>;
type ProgramHeader = ProgramHeader64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

impl Elf {
    /// Read and check the headers of a program, an interpreter or a library.
    pub(super) fn parse(file: &(impl ReadAt + ?Sized)) -> Result<Self, ElfError> {
        let mut head = [0; size_of::<Header>()];
        let length = file.read_at(0, &mut head)?;
        let header = check_header(head.get(..length).unwrap_or_default())?;
        let kind = match header.e_type(LE) {
            elf::ET_EXEC => Kind::Fixed,
            elf::ET_DYN => Kind::Relocatable,
            other => return Err(ElfError::Type(other.0)),
        };
        let count = header.e_phnum(LE);
        let bytes = usize::from(count) * size_of::<ProgramHeader>();
        if count == 0 || bytes > PROGRAM_HEADER_BYTES_MAX || usize::from(header.e_phentsize(LE)) != size_of::<ProgramHeader>() {
            return Err(ElfError::ProgramHeaders);
        }
        let table = file.read_exact_at(header.e_phoff(LE), bytes)?.ok_or(ElfError::ProgramHeaders)?;
        let (headers, _) =
            object::pod::slice_from_bytes::<ProgramHeader>(&table, usize::from(count)).map_err(|()| ElfError::ProgramHeaders)?;

        let (segments, alignment) = load_segments(headers, file.size()?)?;
        let first_of = |wanted| headers.iter().find(|header| header.p_type(LE) == wanted);
        let interpreter = first_of(elf::PT_INTERP).map(|header| interpreter_path(file, header)).transpose()?;
        let executable_stack = headers
            .iter()
            .rfind(|header| header.p_type(LE) == elf::PT_GNU_STACK)
            .is_some_and(|header| header.p_flags(LE).0 & elf::PF_X.0 != 0);
        let headers_offset = header.e_phoff(LE);
        let holder =
            segments.iter().find(|segment| headers_offset >= segment.offset && headers_offset - segment.offset < segment.file_bytes);
        Ok(Self {
            kind,
            entry: Some(header.e_entry(LE)).filter(|&entry| entry < USER_END).ok_or(ElfError::Entry)?,
            headers_address: holder.map(|segment| segment.address + (headers_offset - segment.offset)),
            headers_count: count,
            interpreter,
            executable_stack,
            alignment,
            dynamic: first_of(elf::PT_DYNAMIC).map(|header| (header.p_offset(LE), header.p_filesz(LE))),
            segments,
        })
    }

    /// The page-aligned range `[low, high)` that holds all segments, without the bias.
    pub(super) fn span(&self) -> (u64, u64) {
        let low = self.segments.first().map_or(0, |segment| page_down(segment.address));
        let high = self.segments.last().map_or(0, |segment| page_up(segment.address + segment.memory_bytes));
        (low, high)
    }

    /// Where the byte at `address` (without the bias) is in the file.
    pub(super) fn file_offset(&self, address: u64) -> Option<u64> {
        let segment = self.segments.iter().find(|segment| address >= segment.address && address - segment.address < segment.file_bytes)?;
        Some(segment.offset + (address - segment.address))
    }
}

/// Round down to a page.
pub(super) const fn page_down(address: u64) -> u64 {
    address & !(PAGE - 1)
}

/// Round up to a page; the callers' numbers end below [`USER_END`].
pub(super) const fn page_up(address: u64) -> u64 {
    page_down(address + (PAGE - 1))
}

fn check_header(head: &[u8]) -> Result<Header, ElfError> {
    if !head.starts_with(&elf::ELFMAG) {
        return Err(ElfError::NotElf);
    }
    let (header, _) = object::pod::from_bytes::<Header>(head).map_err(|()| ElfError::BadHeader)?;
    if header.is_class_32() {
        return Err(ElfError::Class32);
    }
    if !header.is_supported() || !header.is_little_endian() {
        return Err(ElfError::BadHeader);
    }
    match header.e_machine(LE) {
        elf::EM_X86_64 => Ok(*header),
        other => Err(ElfError::Machine(other.0)),
    }
}

fn interpreter_path(file: &(impl ReadAt + ?Sized), header: &ProgramHeader) -> Result<Vec<u8>, ElfError> {
    let length =
        usize::try_from(header.p_filesz(LE)).ok().filter(|length| (2..=PATH_MAX).contains(length)).ok_or(ElfError::InterpreterPath)?;
    let mut path = file.read_exact_at(header.p_offset(LE), length)?.ok_or(ElfError::InterpreterPath)?;
    if path.last() != Some(&0) {
        return Err(ElfError::InterpreterPath);
    }
    path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(0));
    if path.is_empty() { Err(ElfError::InterpreterPath) } else { Ok(path) }
}

/// The PT_LOAD segments and the alignment they ask for. `size` is the file's.
fn load_segments(headers: &[ProgramHeader], size: u64) -> Result<(Vec<Segment>, u64), ElfError> {
    let mut segments = Vec::new();
    let mut alignment = PAGE;
    let mut end = 0;
    for (index, header) in headers.iter().enumerate().filter(|(_, header)| header.p_type(LE) == elf::PT_LOAD) {
        if header.p_memsz(LE) == 0 && header.p_filesz(LE) == 0 {
            // Some linkers leave an empty one behind; Linux maps nothing for it.
            continue;
        }
        let segment = check_segment(index, header, size)?;
        if segment.address < end {
            return Err(ElfError::Segment(index));
        }
        end = segment.address + segment.memory_bytes;
        if header.p_align(LE).is_power_of_two() {
            alignment = alignment.max(header.p_align(LE));
        }
        if alignment > ALIGNMENT_MAX {
            return Err(ElfError::Alignment(index));
        }
        segments.push(segment);
    }
    if segments.is_empty() { Err(ElfError::NoSegments) } else { Ok((segments, alignment)) }
}

fn check_segment(index: usize, header: &ProgramHeader, size: u64) -> Result<Segment, ElfError> {
    let bad = ElfError::Segment(index);
    let (address, offset) = (header.p_vaddr(LE), header.p_offset(LE));
    let (file_bytes, memory_bytes) = (header.p_filesz(LE), header.p_memsz(LE));
    if file_bytes > memory_bytes {
        return Err(bad);
    }
    address.checked_add(memory_bytes).filter(|&end| end <= USER_END).ok_or(bad)?;
    if file_bytes > 0 {
        if offset % PAGE != address % PAGE {
            return Err(bad);
        }
        offset.checked_add(file_bytes).filter(|&end| end <= size).ok_or(ElfError::CutOff(index))?;
    }
    let flags = header.p_flags(LE).0;
    let mut protection = Protection::empty();
    protection.set(Protection::READ, flags & elf::PF_R.0 != 0);
    protection.set(Protection::WRITE, flags & elf::PF_W.0 != 0);
    protection.set(Protection::EXEC, flags & elf::PF_X.0 != 0);
    Ok(Segment { address, offset, file_bytes, memory_bytes, protection })
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
