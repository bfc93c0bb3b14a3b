//! For reports: which mapping an address is in, and which symbol of its file holds it.
//!
//! The files are the guest's, and a guest can make us look at one whenever it likes, by crashing: nothing in a file is
//! trusted, and what a report reads is bounded whatever the file says (T54).

use object::LittleEndian;
use object::elf::{self, FileHeader64, SectionHeader64, Sym64};
use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};

use super::elf::{Elf, ReadAt};
use super::error::show;
use crate::memory::{AddressSpace, Backing, Protection};

/// Most sections of a file that are looked at.
const SECTIONS_MAX: usize = 256;
/// Most bytes of symbols that one report reads: a few milliseconds at worst.
const SYMBOL_BYTES_MAX: u64 = 8 << 20;
/// Symbols read at once.
const CHUNK: usize = 4096;
/// Longest name shown, bytes; C++ and Rust names can be thousands long.
const NAME_MAX: usize = 120;

type Header = FileHeader64<LittleEndian>;
type Section = SectionHeader64<LittleEndian>;
type Symbol = Sym64<LittleEndian>;
const LE: LittleEndian = LittleEndian;

/// `libc.so.6+0x9c0f7, malloc+0x27` (offset in the file, then symbol), as well as it can be told.
#[must_use]
pub fn place(space: &AddressSpace, address: u64) -> String {
    let Some(vma) = space.vmas().find(address) else { return "not mapped".into() };
    let into = address.saturating_sub(vma.start);
    match &vma.backing {
        Backing::File { file, offset, name, .. } => {
            let in_file = offset.saturating_add(into);
            let short = show(name.rsplit('/').next().unwrap_or_default().as_bytes());
            let symbol = symbol(file.as_ref(), in_file).map_or_else(String::new, |symbol| format!(", {symbol}"));
            format!("{short}+{in_file:#x}{symbol}")
        }
        Backing::Anonymous if !vma.label.is_empty() => format!("{}+{into:#x}", vma.label),
        Backing::Anonymous if vma.protection.contains(Protection::EXEC) => format!("code made at run time+{into:#x}"),
        Backing::Anonymous => format!("anonymous memory+{into:#x}"),
    }
}

/// The symbol that holds the byte at an offset of an ELF file, and how far into it that is.
fn symbol(file: &(impl ReadAt + ?Sized), in_file: u64) -> Option<String> {
    let elf = Elf::parse(file).ok()?;
    let segment = elf.segments.iter().find(|segment| in_file >= segment.offset && in_file - segment.offset < segment.file_bytes)?;
    let address = segment.address + (in_file - segment.offset);
    let sections = sections(file)?;
    let mut budget = SYMBOL_BYTES_MAX;
    for wanted in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
        let Some(table) = sections.iter().find(|section| section.sh_type(LE) == wanted) else { continue };
        if let Some(symbol) = find(file, table, address, &mut budget) {
            let strings = sections.get(usize::try_from(table.sh_link(LE)).ok()?)?;
            let name = name(file, strings, symbol.st_name(LE))?;
            return Some(format!("{name}+{:#x}", address.saturating_sub(symbol.st_value(LE))));
        }
    }
    None
}

fn sections(file: &(impl ReadAt + ?Sized)) -> Option<Vec<Section>> {
    let bytes = file.read_exact_at(0, size_of::<Header>()).ok()??;
    let (header, _) = object::pod::from_bytes::<Header>(&bytes).ok()?;
    if usize::from(header.e_shentsize(LE)) != size_of::<Section>() {
        return None;
    }
    let count = usize::from(header.e_shnum(LE)).min(SECTIONS_MAX);
    let bytes = file.read_exact_at(header.e_shoff(LE), count * size_of::<Section>()).ok()??;
    let (sections, _) = object::pod::slice_from_bytes::<Section>(&bytes, count).ok()?;
    Some(sections.to_vec())
}

/// The function in a symbol table that holds `address`; reads at most `budget` bytes and takes off what it has read.
fn find(file: &(impl ReadAt + ?Sized), table: &Section, address: u64, budget: &mut u64) -> Option<Symbol> {
    let holds = |symbol: &&Symbol| {
        let start = symbol.st_value(LE);
        symbol.st_type() == elf::STT_FUNC && start <= address && address - start < symbol.st_size(LE).max(1)
    };
    let mut offset = table.sh_offset(LE);
    let mut left = table.sh_size(LE).min(*budget);
    while left >= size_of::<Symbol>() as u64 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK * size_of::<Symbol>());
        let mut bytes = vec![0; wanted];
        let length = file.read_at(offset, &mut bytes).ok()?;
        let count = length / size_of::<Symbol>();
        let (symbols, _) = object::pod::slice_from_bytes::<Symbol>(&bytes, count).ok()?;
        if let Some(found) = symbols.iter().find(holds) {
            return Some(*found);
        }
        let read = (count * size_of::<Symbol>()) as u64;
        if read == 0 {
            return None;
        }
        offset = offset.checked_add(read)?;
        left -= read;
        *budget = budget.saturating_sub(read);
    }
    None
}

fn name(file: &(impl ReadAt + ?Sized), strings: &Section, at: u32) -> Option<String> {
    let room = strings.sh_size(LE).checked_sub(u64::from(at))?;
    let mut bytes = vec![0; usize::try_from(room).unwrap_or(usize::MAX).min(NAME_MAX)];
    let length = file.read_at(strings.sh_offset(LE).checked_add(u64::from(at))?, &mut bytes).ok()?;
    let bytes = bytes.get(..length)?;
    let name = bytes.split(|&byte| byte == 0).next().filter(|name| !name.is_empty())?;
    Some(show(name))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use proptest::prelude::*;

    use super::*;
    use crate::memory::{MapRequest, Placement};

    fn libc() -> &'static [u8] {
        static LIBC: OnceLock<Vec<u8>> = OnceLock::new();
        LIBC.get_or_init(|| std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").expect("libc"))
    }

    /// File offset of `malloc` in libc, by way of the object crate's own tables.
    fn malloc() -> u64 {
        use object::{Object as _, ObjectSymbol as _};
        let file = object::File::parse(libc()).expect("libc");
        let symbol = file.dynamic_symbols().find(|symbol| symbol.name() == Ok("malloc")).expect("malloc");
        Elf::parse(libc()).expect("libc").file_offset(symbol.address()).expect("in the file")
    }

    #[test]
    fn a_function_of_libc_is_found() {
        assert_eq!(symbol(libc(), malloc() + 0x10).as_deref(), Some("malloc+0x10"));
        assert_eq!(symbol(libc(), u64::MAX), None);
        assert_eq!(symbol(&b"text"[..], 0), None);
    }

    #[test]
    fn places_are_named() {
        let mut space = AddressSpace::new(4 << 30, 1 << 30).expect("an address space");
        let file = Arc::new(std::os::fd::OwnedFd::from(std::fs::File::open("/lib/x86_64-linux-gnu/libc.so.6").expect("libc")));
        let mut map = |backing, protection, label| {
            let request = MapRequest { placement: Placement::Anywhere, length: 0x1000, protection, backing, label };
            space.map(request).expect("room")
        };
        let page = malloc() & !0xfff;
        let name = Arc::from("/lib/x/libc\n.so.6");
        let library = map(Backing::File { file, offset: page, shared: false, name }, Protection::READ | Protection::EXEC, "");
        let heap = map(Backing::Anonymous, Protection::READ, "[heap]");
        let code = map(Backing::Anonymous, Protection::READ | Protection::EXEC, "");
        let expected = format!("libc\\n.so.6+{:#x}, malloc+0x0", malloc());
        assert_eq!(place(&space, library + (malloc() & 0xfff)), expected);
        assert_eq!(place(&space, heap + 8), "[heap]+0x8");
        assert_eq!(place(&space, code), "code made at run time+0x0");
        assert_eq!(place(&space, u64::MAX), "not mapped");
    }

    #[test]
    fn hostile_tables_cost_no_more_than_honest_ones() {
        use object::{Object as _, ObjectSection as _};
        let original = libc();
        let headers = usize::try_from(u64::from_le_bytes(original[40..48].try_into().expect("eight"))).expect("small");
        let index = object::File::parse(original).expect("libc").section_by_name(".dynsym").expect(".dynsym").index().0;
        let header = headers + index * 64;
        // e_shoff, e_shnum; sh_offset, sh_size, sh_link of the symbol table.
        for (at, width) in [(40, 8), (60, 2), (header + 24, 8), (header + 32, 8), (header + 40, 4)] {
            for value in [0_u64, 1, 0xffff, u64::MAX / 2, u64::MAX] {
                let mut bytes = original.to_vec();
                bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                symbol(&bytes[..], malloc());
            }
        }
        // Every symbol claims every address, and names of a megabyte.
        let mut bytes = original.to_vec();
        for section in object::File::parse(original).expect("libc").sections().filter(|section| section.name() == Ok(".dynstr")) {
            let (start, length) = section.file_range().expect("in the file");
            let (start, length) = (usize::try_from(start).expect("small"), usize::try_from(length).expect("small"));
            bytes[start..start + length].fill(b'x');
        }
        assert!(symbol(&bytes[..], malloc()).is_some_and(|name| name.len() < NAME_MAX + 20));
    }

    proptest! {
        #[test]
        fn mutated_files_never_break_a_report(edits in prop::collection::vec((0..256_usize, any::<u8>(), any::<bool>()), 1..8)) {
            // The end of the file holds the section headers.
            let mut bytes = libc().to_vec();
            let length = bytes.len();
            for (offset, value, at_end) in edits {
                bytes[if at_end { length - 1 - offset * 16 } else { offset }] = value;
            }
            symbol(&bytes[..], malloc());
        }
    }
}
