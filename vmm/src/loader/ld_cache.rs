//! /etc/ld.so.cache: which file glibc's loader opens for a library name. The layout is that of glibc's
//! `sysdeps/generic/dl-cache.h` (format 1.1, alone or behind the older format, as `ldconfig` writes it).
//!
//! Why not a crate: none reads the current format (checked 2026-11), and it is two arrays.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::elf::ReadAt;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
/// Size of the old format's header (magic, padding, count) and of one of its entries, bytes.
const OLD_SIZES: (usize, usize) = (16, 12);
/// FLAG_ELF_LIBC6 | FLAG_X8664_LIB64: what a library for this machine is marked with.
const X86_64: u32 = 0x0303;
/// Largest cache that is read, bytes; ten times a full desktop's.
const CACHE_BYTES_MAX: u64 = 4 << 20;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 20],
    count: U32,
    string_bytes: U32,
    flags: u8,
    padding: [u8; 3],
    extension_offset: U32,
    unused: [U32; 3],
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    flags: U32,
    /// Offsets of the strings from the header.
    name: U32,
    path: U32,
    os_version: U32,
    hwcap: U64,
}

const _: () = assert!(size_of::<Header>() == 48 && size_of::<Entry>() == 24);

/// The cache's bytes from the header of format 1.1 on; empty where there is none.
#[derive(Debug, Default)]
pub(super) struct LdCache {
    bytes: Vec<u8>,
}

impl LdCache {
    /// Read the file; one that is not understood is as good as none, as the loader itself treats it.
    pub(super) fn read(file: &OwnedFd) -> Self {
        let length = file.size().unwrap_or(0).min(CACHE_BYTES_MAX);
        let bytes = usize::try_from(length).ok().and_then(|length| file.read_exact_at(0, length).ok().flatten()).unwrap_or_default();
        Self::new(bytes)
    }

    fn new(bytes: Vec<u8>) -> Self {
        if bytes.starts_with(MAGIC) {
            return Self { bytes };
        }
        let behind_old = || {
            let count = U32::read_from_prefix(bytes.strip_prefix(OLD_MAGIC)?.get(1..)?).ok()?.0.get();
            let end = OLD_SIZES.1.checked_mul(usize::try_from(count).ok()?)?.checked_add(OLD_SIZES.0)?;
            bytes.get(end.checked_next_multiple_of(8)?..).filter(|rest| rest.starts_with(MAGIC))
        };
        Self { bytes: behind_old().unwrap_or_default().to_vec() }
    }

    /// All files that the cache has for `name` on x86-64: one, or several for different processor levels.
    pub(super) fn find(&self, name: &str) -> Vec<PathBuf> {
        let Ok((header, rest)) = Header::ref_from_prefix(&self.bytes) else { return Vec::new() };
        let count = usize::try_from(header.count.get()).unwrap_or(usize::MAX).min(rest.len() / size_of::<Entry>());
        let Ok((entries, _)) = <[Entry]>::ref_from_prefix_with_elems(rest, count) else { return Vec::new() };
        let matching = entries.iter().filter(|entry| entry.flags.get() & 0xffff == X86_64 && self.string(entry.name) == Some(name));
        matching.filter_map(|entry| self.string(entry.path)).filter(|path| path.starts_with('/')).map(PathBuf::from).collect()
    }

    fn string(&self, offset: U32) -> Option<&str> {
        let rest = self.bytes.get(usize::try_from(offset.get()).ok()?..)?;
        let end = memchr::memchr(0, rest.get(..rest.len().min(4096))?)?;
        std::str::from_utf8(rest.get(..end)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host() -> Vec<u8> {
        std::fs::read("/etc/ld.so.cache").expect("this machine's cache")
    }

    #[test]
    fn the_hosts_cache_knows_libc() {
        let found = LdCache::new(host()).find("libc.so.6");
        assert_eq!(found.len(), 1);
        assert!(found[0].is_file() && found[0].ends_with("libc.so.6"));
        assert!(LdCache::new(host()).find("libdoes-not-exist.so.1").is_empty());
    }

    #[test]
    fn the_old_format_may_stand_before_it() {
        let mut old = b"ld.so-1.7.0\0".to_vec();
        old.extend(3_u32.to_le_bytes());
        old.resize(OLD_SIZES.0 + 3 * OLD_SIZES.1, 0);
        old.resize(old.len().next_multiple_of(8), 0);
        old.extend(host());
        assert_eq!(LdCache::new(old).find("libc.so.6").len(), 1);
    }

    proptest! {
        #[test]
        fn a_damaged_cache_never_breaks_the_reader(edits in prop::collection::vec((0..4096_usize, any::<u8>()), 1..20), length in 0..8192_usize) {
            let mut bytes = host();
            for (offset, value) in edits {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte = value;
                }
            }
            LdCache::new(bytes.clone()).find("libc.so.6");
            bytes.truncate(length);
            LdCache::new(bytes).find("libc.so.6");
        }
    }
}
