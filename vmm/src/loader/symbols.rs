//! For reports: which mapping an address is in, and which symbol of its file is nearest. The files are the guest's, so nothing
//! in them is trusted and everything is bounded (T54).

use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol, ObjectSegment};

use crate::memory::{AddressSpace, Backing};

/// Files above this size are not searched for symbols: a report must not cost more than the crash.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Longest symbol shown.
const NAME_MAX: usize = 80;

/// `libc.so.6+0x1234 (malloc+0x20)`, as well as it can be told.
#[must_use]
pub fn place(space: &AddressSpace, address: u64) -> String {
    let Some(vma) = space.vmas().find(address) else { return "not mapped".into() };
    let Backing::File { file, offset, name, .. } = &vma.backing else {
        let name = if vma.label.is_empty() { "anonymous memory" } else { vma.label };
        return format!("{name}+{:#x}", address - vma.start);
    };
    let in_file = offset + (address - vma.start);
    let short = name.rsplit('/').next().unwrap_or(name);
    match symbol(file, in_file) {
        Some(symbol) => format!("{short}+{in_file:#x}, {symbol}"),
        None => format!("{short}+{in_file:#x}"),
    }
}

fn symbol(file: &std::os::fd::OwnedFd, in_file: u64) -> Option<String> {
    let size = u64::try_from(rustix::fs::fstat(file).ok()?.st_size).ok().filter(|&size| size <= FILE_BYTES_MAX)?;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(file, &mut bytes[filled..], filled as u64) {
            Ok(0) | Err(_) => break,
            Ok(count) => filled += count,
        }
    }
    let elf = ElfFile64::<object::LittleEndian>::parse(&bytes[..filled]).ok()?;
    let address = elf.segments().find_map(|segment| {
        let (start, length) = segment.file_range();
        let offset = in_file.checked_sub(start).filter(|&offset| offset < length)?;
        segment.address().checked_add(offset)
    })?;
    let nearest = elf
        .symbols()
        .chain(elf.dynamic_symbols())
        .filter(|symbol| symbol.address() != 0 && symbol.address() <= address && symbol.kind() == object::SymbolKind::Text)
        .max_by_key(ObjectSymbol::address)?;
    let name: String = nearest.name().ok()?.chars().filter(|character| !character.is_control()).take(NAME_MAX).collect();
    Some(format!("{name}+{:#x}", address - nearest.address()))
}
