//! Memory: mmap(2), munmap(2), mprotect(2), mremap(2), madvise(2), brk(2), msync(2), mincore(2), mlock(2) and relatives.

use std::sync::Arc;

use linux_raw_sys::general as abi;
use linux_raw_sys::general::{
    __NR_brk, __NR_get_mempolicy, __NR_madvise, __NR_mbind, __NR_mincore, __NR_mlock, __NR_mlock2, __NR_mlockall, __NR_mmap, __NR_mprotect,
    __NR_mremap, __NR_msync, __NR_munlock, __NR_munlockall, __NR_munmap, __NR_pkey_alloc, __NR_pkey_free, __NR_pkey_mprotect,
    __NR_set_mempolicy,
};
use rustix::io::Errno;

use crate::limits::PAGE;
use crate::linux::file::File;
use crate::linux::table::{Arg, Entry, full, ignored, partial};
use crate::linux::{Answer, Call, Outcome};
use crate::memory::{Backing, MapRequest, Placement, Protection};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_mmap, "mmap", &[Arg::Pointer, Arg::Uint, Arg::Protection, Arg::MapFlags, Arg::Fd, Arg::Hex], mmap),
    full(__NR_munmap, "munmap", &[Arg::Pointer, Arg::Uint], munmap),
    full(__NR_mprotect, "mprotect", &[Arg::Pointer, Arg::Uint, Arg::Protection], mprotect),
    full(__NR_mremap, "mremap", &[Arg::Pointer, Arg::Uint, Arg::Uint, Arg::Hex, Arg::Pointer], mremap),
    partial(
        __NR_madvise,
        "madvise",
        &[Arg::Pointer, Arg::Uint, Arg::Int],
        madvise,
        "MADV_FREE frees at once; advice on paging is accepted without effect",
    ),
    full(__NR_brk, "brk", &[Arg::Pointer], brk),
    full(__NR_msync, "msync", &[Arg::Pointer, Arg::Uint, Arg::Hex], msync),
    partial(__NR_mincore, "mincore", &[Arg::Pointer, Arg::Uint, Arg::Pointer], mincore, "says that every mapped page is resident"),
    ignored(__NR_mlock, "mlock", &[Arg::Pointer, Arg::Uint], mlock, "memory is not locked: a snapshot may be swapped"),
    ignored(__NR_mlock2, "mlock2", &[Arg::Pointer, Arg::Uint, Arg::Hex], mlock, "as mlock"),
    ignored(__NR_munlock, "munlock", &[Arg::Pointer, Arg::Uint], mlock, "as mlock"),
    ignored(__NR_mlockall, "mlockall", &[Arg::Hex], succeed, "as mlock"),
    ignored(__NR_munlockall, "munlockall", &[], succeed, "as mlock"),
    ignored(__NR_mbind, "mbind", &[Arg::Pointer, Arg::Uint, Arg::Int, Arg::Pointer, Arg::Uint, Arg::Hex], succeed, "one memory node"),
    ignored(__NR_set_mempolicy, "set_mempolicy", &[Arg::Int, Arg::Pointer, Arg::Uint], succeed, "one memory node"),
    partial(
        __NR_get_mempolicy,
        "get_mempolicy",
        &[Arg::Pointer, Arg::Pointer, Arg::Uint, Arg::Pointer, Arg::Hex],
        get_mempolicy,
        "always MPOL_DEFAULT on node 0",
    ),
    partial(__NR_pkey_alloc, "pkey_alloc", &[Arg::Hex, Arg::Hex], no_keys, "no protection keys: ENOSPC, as on a processor without them"),
    partial(__NR_pkey_free, "pkey_free", &[Arg::Int], bad_key, "no protection keys"),
    partial(__NR_pkey_mprotect, "pkey_mprotect", &[Arg::Pointer, Arg::Uint, Arg::Protection, Arg::Int], pkey_mprotect, "only with key -1"),
];

fn protection(bits: u64) -> Result<Protection, Errno> {
    // PROT_GROWSDOWN, PROT_GROWSUP and PROT_SEM mean nothing here; other bits are an error.
    let known = u64::from(abi::PROT_READ | abi::PROT_WRITE | abi::PROT_EXEC);
    if bits & !(known | u64::from(abi::PROT_SEM)) != 0 {
        return Err(Errno::INVAL);
    }
    Ok(Protection::from_bits_truncate((bits & known) as u8))
}

/// `void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)`
fn mmap(call: &mut Call<'_>) -> Answer {
    let [address, length, prot, flags, _, offset] = call.args;
    let has = |flag: u32| flags & u64::from(flag) != 0;
    // mmap itself ignores protection bits that it does not know.
    let protection = Protection::from_bits_truncate((prot & 7) as u8);
    let fixed = has(abi::MAP_FIXED) || has(abi::MAP_FIXED_NOREPLACE);
    if fixed && !address.is_multiple_of(PAGE) || !offset.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let shared = match flags as u32 & abi::MAP_TYPE {
        abi::MAP_PRIVATE => false,
        abi::MAP_SHARED | abi::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::INVAL),
    };
    if has(abi::MAP_HUGETLB) {
        return Err(Errno::NOMEM);
    }
    let placement = if has(abi::MAP_FIXED_NOREPLACE) {
        Placement::FixedNoReplace(address)
    } else if has(abi::MAP_FIXED) {
        Placement::Fixed(address)
    } else if has(abi::MAP_32BIT) {
        Placement::Low
    } else {
        Placement::Anywhere
    };
    let backing = if has(abi::MAP_ANONYMOUS) { Backing::Anonymous } else { file_backing(call, protection, shared, offset)? };
    let request = MapRequest { placement, length, protection, backing, label: "" };
    call.space.map(request).map(Outcome::from)
}

fn file_backing(call: &Call<'_>, protection: Protection, shared: bool, offset: u64) -> Result<Backing, Errno> {
    let id = call.file(4)?;
    let slot = call.kernel.files.get(id)?;
    let access = slot.flags & abi::O_ACCMODE;
    if slot.flags & abi::O_PATH != 0 {
        return Err(Errno::BADF);
    }
    if access == abi::O_WRONLY || shared && protection.contains(Protection::WRITE) && access != abi::O_RDWR {
        return Err(Errno::ACCESS);
    }
    if i64::try_from(offset).is_err() {
        return Err(Errno::OVERFLOW);
    }
    match &slot.file {
        File::Host(file) if !file.is_directory() => Ok(Backing::File {
            file: Arc::clone(file.descriptor()),
            offset,
            shared,
            name: Arc::from(String::from_utf8_lossy(file.path()).as_ref()),
        }),
        File::Special(file) if file.is_zero() => Ok(Backing::Anonymous),
        _ => Err(Errno::NODEV),
    }
}

/// `int munmap(void *addr, size_t length)`
fn munmap(call: &mut Call<'_>) -> Answer {
    call.space.unmap(call.args[0], call.args[1]).map(|()| Outcome::OK)
}

/// `int mprotect(void *addr, size_t len, int prot)`
fn mprotect(call: &mut Call<'_>) -> Answer {
    let protection = protection(call.args[2])?;
    call.space.protect(call.args[0], call.args[1], protection).map(|()| Outcome::OK)
}

/// `int pkey_mprotect(void *addr, size_t len, int prot, int pkey)`
fn pkey_mprotect(call: &mut Call<'_>) -> Answer {
    if call.int(3) != -1 {
        return Err(Errno::INVAL);
    }
    mprotect(call)
}

/// `void *mremap(void *old_address, size_t old_size, size_t new_size, int flags, void *new_address)`
fn mremap(call: &mut Call<'_>) -> Answer {
    let [address, old, new, flags, to, _] = call.args;
    let known = u64::from(abi::MREMAP_MAYMOVE | abi::MREMAP_FIXED | abi::MREMAP_DONTUNMAP);
    let has = |flag: u32| flags & u64::from(flag) != 0;
    if flags & !known != 0 || has(abi::MREMAP_DONTUNMAP) || has(abi::MREMAP_FIXED) && !has(abi::MREMAP_MAYMOVE) {
        return Err(Errno::INVAL);
    }
    let to = has(abi::MREMAP_FIXED).then_some(to);
    call.space.remap(address, old, new, has(abi::MREMAP_MAYMOVE), to).map(Outcome::from)
}

/// `int madvise(void *addr, size_t length, int advice)`
fn madvise(call: &mut Call<'_>) -> Answer {
    let [address, length, ..] = call.args;
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let advice = call.uint(2);
    let known = matches!(
        advice,
        abi::MADV_NORMAL..=abi::MADV_DONTNEED | abi::MADV_FREE..=abi::MADV_POPULATE_WRITE | abi::MADV_DONTNEED_LOCKED | abi::MADV_COLLAPSE
    );
    if !known {
        return Err(Errno::INVAL);
    }
    // A length that rounds up to nothing, or an end that wraps around, is an error of the arguments (T5).
    let end = length.checked_next_multiple_of(PAGE).and_then(|length| address.checked_add(length)).ok_or(Errno::INVAL)?;
    if length == 0 {
        return Ok(Outcome::OK);
    }
    if end > call.space.size() {
        return Err(Errno::NOMEM);
    }
    match advice {
        abi::MADV_DONTNEED | abi::MADV_FREE | abi::MADV_DONTNEED_LOCKED => call.space.discard(address, length)?,
        abi::MADV_WIPEONFORK => call.space.set_wipe_on_fork(address, length, true)?,
        abi::MADV_KEEPONFORK => call.space.set_wipe_on_fork(address, length, false)?,
        abi::MADV_REMOVE => return Err(Errno::INVAL),
        _ => {
            if !call.space.vmas().covers(address, end) {
                return Err(Errno::NOMEM);
            }
        }
    }
    Ok(Outcome::OK)
}

/// `int brk(void *addr)`; the system call returns the break, not 0.
fn brk(call: &mut Call<'_>) -> Answer {
    Ok(Outcome::Return(call.space.set_brk(call.args[0])))
}

/// `int msync(void *addr, size_t length, int flags)`
fn msync(call: &mut Call<'_>) -> Answer {
    let flags = call.uint(2);
    let known = abi::MS_ASYNC | abi::MS_INVALIDATE | abi::MS_SYNC;
    if flags & !known != 0 || flags & abi::MS_ASYNC != 0 && flags & abi::MS_SYNC != 0 {
        return Err(Errno::INVAL);
    }
    call.space.sync(call.args[0], call.args[1]).map(|()| Outcome::OK)
}

/// `int mincore(void *addr, size_t length, unsigned char *vec)`
fn mincore(call: &mut Call<'_>) -> Answer {
    let [address, length, vector, ..] = call.args;
    if !address.is_multiple_of(PAGE) {
        return Err(Errno::INVAL);
    }
    let end = address
        .checked_add(length)
        .and_then(|end| end.checked_next_multiple_of(PAGE))
        .filter(|&end| end <= call.space.size())
        .ok_or(Errno::NOMEM)?;
    if !call.space.vmas().covers(address, end) {
        return Err(Errno::NOMEM);
    }
    let mut left = (end - address) / PAGE;
    let mut at = vector;
    let ones = [1_u8; 4096];
    while left > 0 {
        let piece = left.min(4096);
        call.memory().write_bytes(at, &ones[..piece as usize])?;
        at = at.checked_add(piece).ok_or(Errno::FAULT)?;
        left -= piece;
    }
    Ok(Outcome::OK)
}

/// `int mlock(const void *addr, size_t len)`
fn mlock(call: &mut Call<'_>) -> Answer {
    let start = call.args[0] / PAGE * PAGE;
    let end = call.args[0].checked_add(call.args[1]).and_then(|end| end.checked_next_multiple_of(PAGE)).ok_or(Errno::INVAL)?;
    if end > call.space.size() || !call.space.vmas().covers(start, end) {
        return Err(Errno::NOMEM);
    }
    Ok(Outcome::OK)
}

fn succeed(_call: &mut Call<'_>) -> Answer {
    Ok(Outcome::OK)
}

/// `long get_mempolicy(int *mode, unsigned long *nodemask, unsigned long maxnode, void *addr, unsigned long flags)`
fn get_mempolicy(call: &mut Call<'_>) -> Answer {
    let [mode, mask, nodes, ..] = call.args;
    if mode != 0 {
        call.memory().write(mode, &0_u32)?;
    }
    if mask != 0 && nodes > 0 {
        call.memory().write(mask, &1_u64)?;
    }
    Ok(Outcome::OK)
}

fn no_keys(_call: &mut Call<'_>) -> Answer {
    Err(Errno::NOSPC)
}

fn bad_key(_call: &mut Call<'_>) -> Answer {
    Err(Errno::INVAL)
}
