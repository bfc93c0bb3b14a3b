//! The machine: uname(2), sysinfo(2), getrandom(2), sethostname(2), syslog(2), and the calls that a guest may not make at all.

use linux_raw_sys::general as sys;
use linux_raw_sys::general::{__NR_getrandom, __NR_setdomainname, __NR_sethostname, __NR_sysinfo, __NR_uname};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::RW_BYTES_MAX;
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Call, Errno, Outcome};
use crate::memory::Segment;

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_uname, "uname", &[Arg::Pointer], uname),
    full(__NR_sysinfo, "sysinfo", &[Arg::Pointer], sysinfo),
    full(__NR_getrandom, "getrandom", &[Arg::Pointer, Arg::Uint, Arg::Hex], getrandom),
    partial(__NR_sethostname, "sethostname", &[Arg::Path, Arg::Uint], not_permitted, "EPERM, as for a user without privileges"),
    partial(__NR_setdomainname, "setdomainname", &[Arg::Path, Arg::Uint], not_permitted, "EPERM, as for a user without privileges"),
];

/// What `uname` and /proc say about the kernel: the release is that whose system calls this table follows.
pub(in crate::linux) const RELEASE: &str = "6.1.0-kvmserver";
/// See [`RELEASE`].
pub(in crate::linux) const VERSION: &str = "#1 SMP kvmserver";
/// Name of the guest's host.
pub(in crate::linux) const HOST_NAME: &str = "kvmserver";

fn not_permitted(_call: &mut Call<'_>) -> Answer {
    Err(Errno::PERM)
}

/// `int uname(struct utsname *buf)`
fn uname(call: &mut Call<'_>) -> Answer {
    const FIELD: usize = 65;
    let mut answer = [0_u8; 6 * FIELD];
    let fields = ["Linux", HOST_NAME, RELEASE, VERSION, "x86_64", "(none)"];
    for (place, text) in answer.chunks_exact_mut(FIELD).zip(fields) {
        for (to, from) in place.iter_mut().zip(text.bytes()) {
            *to = from;
        }
    }
    call.memory().write_bytes(call.args[0], &answer)?;
    Ok(Outcome::OK)
}

/// `struct sysinfo`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Sysinfo {
    uptime: i64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    processes: u16,
    padding: [u16; 3],
    total_high: u64,
    free_high: u64,
    unit: u32,
    end: u32,
}

const _: () = assert!(size_of::<Sysinfo>() == 112);

/// `int sysinfo(struct sysinfo *info)`: the memory that the program may have, none of the host's figures.
fn sysinfo(call: &mut Call<'_>) -> Answer {
    let total_ram = call.space.commit_limit();
    let free_ram = total_ram.saturating_sub(call.space.vmas().writable_private_bytes());
    let uptime = call.kernel.clock.monotonic() / 1_000_000_000;
    let info = Sysinfo { uptime: uptime.cast_signed(), total_ram, free_ram, processes: 1, unit: 1, ..Sysinfo::default() };
    call.memory().write(call.args[0], &info)?;
    Ok(Outcome::OK)
}

/// Bytes that one call fetches: far more than a key needs, and a bound on the host's time.
const RANDOM_BYTES_MAX: u64 = 32 << 20;

/// `ssize_t getrandom(void *buf, size_t buflen, unsigned int flags)`: never blocks, since the host's generator is long ready.
fn getrandom(call: &mut Call<'_>) -> Answer {
    let (address, length, flags) = (call.args[0], call.args[1].min(RW_BYTES_MAX).min(RANDOM_BYTES_MAX), call.uint(2));
    if flags & !(sys::GRND_NONBLOCK | sys::GRND_RANDOM | sys::GRND_INSECURE) != 0
        || flags & (sys::GRND_RANDOM | sys::GRND_INSECURE) == sys::GRND_RANDOM | sys::GRND_INSECURE
    {
        return Err(Errno::INVAL);
    }
    if call.memory().size() < address {
        return Err(Errno::FAULT);
    }
    fill_random(call, Segment { address, length }).map(Outcome::from)
}

/// Random bytes in pieces, so that no buffer of the guest's choosing is allocated here.
fn fill_random(call: &Call<'_>, segment: Segment) -> Result<u64, Errno> {
    let mut done = 0;
    let mut buffer = [0_u8; 4096];
    while done < segment.length {
        let piece = usize::try_from(segment.length - done).unwrap_or(buffer.len()).min(buffer.len());
        let wanted = buffer.get_mut(..piece).unwrap_or_default();
        let got = match rustix::rand::getrandom(&mut *wanted, rustix::rand::GetRandomFlags::empty()) {
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let at = segment.address.checked_add(done).ok_or(Errno::FAULT)?;
        let copied = call.memory().write_some(at, wanted.get(..got).unwrap_or_default());
        done += copied as u64;
        if copied < got {
            return if done == 0 { Err(Errno::FAULT) } else { Ok(done) };
        }
    }
    Ok(done)
}
