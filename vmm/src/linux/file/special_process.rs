//! /proc/PID: what the generated files say about the process and its threads.

use std::fmt::Write as _;

use super::File;
use super::special_text::ticks;
use crate::limits::PAGE;
use crate::linux::thread::{State, Thread, Tid};
use crate::linux::{Kernel, guest_path};
use crate::memory::{AddressSpace, Backing, Protection, Vma};

/// A file of /proc/PID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the files, proc(5)")]
pub enum ProcessText {
    Auxv,
    CmdLine,
    Comm,
    Environ,
    Limits,
    Maps,
    Mounts,
    MountInfo,
    SmapsRollup,
    Stat,
    Statm,
    Status,
    Constant(&'static str),
}

use ProcessText as P;

/// The names.
pub const NAMES: &[(&str, ProcessText)] = &[
    ("auxv", P::Auxv),
    ("cgroup", P::Constant("0::/\n")),
    ("cmdline", P::CmdLine),
    ("comm", P::Comm),
    ("coredump_filter", P::Constant("00000033\n")),
    ("cpuset", P::Constant("/\n")),
    ("environ", P::Environ),
    ("gid_map", P::Constant("         0          0 4294967295\n")),
    ("io", P::Constant("rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n")),
    ("limits", P::Limits),
    ("loginuid", P::Constant("4294967295")),
    ("maps", P::Maps),
    ("mountinfo", P::MountInfo),
    ("mounts", P::Mounts),
    ("oom_adj", P::Constant("0\n")),
    ("oom_score", P::Constant("0\n")),
    ("oom_score_adj", P::Constant("0\n")),
    ("personality", P::Constant("00000000\n")),
    ("schedstat", P::Constant("0 0 0\n")),
    ("sessionid", P::Constant("4294967295")),
    ("setgroups", P::Constant("allow\n")),
    ("smaps_rollup", P::SmapsRollup),
    ("stat", P::Stat),
    ("statm", P::Statm),
    ("status", P::Status),
    ("uid_map", P::Constant("         0          0 4294967295\n")),
    ("wchan", P::Constant("0")),
];

/// The text now. `path` says which thread is meant.
#[must_use]
pub fn generate(kernel: &Kernel, space: &AddressSpace, path: &[u8], text: ProcessText) -> Vec<u8> {
    let identity = &kernel.process.identity;
    let tid = thread_of(path).unwrap_or(kernel.process.pid);
    match text {
        P::Auxv => identity.auxv.iter().flat_map(|(key, value)| [key.to_ne_bytes(), value.to_ne_bytes()]).flatten().collect(),
        P::CmdLine => zero_terminated(&identity.arguments),
        P::Comm => [name_of(kernel, tid), Vec::from(*b"\n")].concat(),
        P::Environ => zero_terminated(&identity.environment),
        P::Limits => limits(kernel).into_bytes(),
        P::Maps => maps(space),
        P::Mounts => mounts(kernel).into_bytes(),
        P::MountInfo => mount_info(kernel).into_bytes(),
        P::SmapsRollup => smaps_rollup(space).into_bytes(),
        P::Stat => stat(kernel, space, path, tid).into_bytes(),
        P::Statm => statm(space).into_bytes(),
        P::Status => status(kernel, space, tid).into_bytes(),
        P::Constant(text) => text.as_bytes().to_vec(),
    }
}

/// Which thread a path below /proc means: /proc/PID/task/TID or /proc/TID.
#[must_use]
pub fn thread_of(path: &[u8]) -> Option<Tid> {
    let components: Vec<&[u8]> = guest_path::components(path).collect();
    let id = match components.as_slice() {
        [_, _, b"task", tid, ..] => tid,
        [_, pid, ..] => pid,
        _ => return None,
    };
    std::str::from_utf8(id).ok()?.parse().ok()
}

fn zero_terminated(strings: &[Vec<u8>]) -> Vec<u8> {
    strings.iter().flat_map(|string| string.iter().copied().chain([0])).collect()
}

fn name_of(kernel: &Kernel, tid: Tid) -> Vec<u8> {
    let set = kernel.threads.peek(tid).map(|thread| thread.name.iter().copied().take_while(|byte| *byte != 0).collect::<Vec<u8>>());
    match set {
        Some(name) if !name.is_empty() => name,
        _ => guest_path::name(&kernel.process.identity.executable).iter().copied().take(15).collect(),
    }
}

fn maps(space: &AddressSpace) -> Vec<u8> {
    let mut text = Vec::new();
    for vma in space.vmas().iter() {
        let line = maps_line(vma);
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    text
}

fn maps_line(vma: &Vma) -> String {
    let bit = |bit, letter| if vma.protection.contains(bit) { letter } else { '-' };
    let (read, write, execute) = (bit(Protection::READ, 'r'), bit(Protection::WRITE, 'w'), bit(Protection::EXEC, 'x'));
    let sharing = if vma.is_private() { 'p' } else { 's' };
    let (offset, device, inode, name) = match &vma.backing {
        Backing::Anonymous => (0, (0, 0), 0, vma.label),
        // Pages of our own (the clock page) are nobody's file.
        Backing::File { .. } if !vma.label.is_empty() => (0, (0, 0), 0, vma.label),
        Backing::File { file, offset, name, .. } => {
            let status = super::host::attributes_of(file).unwrap_or_default();
            (*offset, status.device, status.inode, &**name)
        }
    };
    let (start, end, (major, minor)) = (vma.start, vma.end, device);
    let line = format!("{start:08x}-{end:08x} {read}{write}{execute}{sharing} {offset:08x} {major:02x}:{minor:02x} {inode} ");
    if name.is_empty() { line } else { format!("{line:<73}{}", name.replace('\n', "\\012")) }
}

/// Bytes that the process may be using: all of its private writable mappings. What is really resident the host knows, and a
/// guest must not: it would tell one request about the ones before it.
#[must_use]
pub fn resident_bytes(space: &AddressSpace) -> u64 {
    space.vmas().writable_private_bytes()
}

fn total_bytes(space: &AddressSpace) -> u64 {
    space.vmas().iter().map(Vma::length).fold(0, u64::saturating_add)
}

fn bytes_where(space: &AddressSpace, protection: Protection) -> u64 {
    space.vmas().iter().filter(|vma| vma.protection.contains(protection)).map(Vma::length).fold(0, u64::saturating_add)
}

fn smaps_rollup(space: &AddressSpace) -> String {
    let resident = resident_bytes(space) >> 10;
    format!(
        "00400000-7fffffffffff ---p 00000000 00:00 0                          [rollup]\nRss: {resident:>19} kB\nPss: {resident:>19} kB\nPrivate_Dirty: {resident:>9} kB\nAnonymous: {resident:>13} kB\nSwap:                   0 kB\n"
    )
}

fn statm(space: &AddressSpace) -> String {
    let pages = |bytes: u64| bytes / PAGE;
    let (total, resident, text) = (pages(total_bytes(space)), pages(resident_bytes(space)), pages(bytes_where(space, Protection::EXEC)));
    format!("{total} {resident} 0 {text} 0 {resident} 0\n")
}

fn state_letter(thread: Option<&Thread>) -> char {
    match thread.map(|thread| &thread.state) {
        Some(State::Blocked(_)) => 'S',
        _ => 'R',
    }
}

fn stat(kernel: &Kernel, space: &AddressSpace, path: &[u8], tid: Tid) -> String {
    let whole_process = !path.windows(6).any(|window| window == b"/task/");
    let thread = kernel.threads.peek(tid);
    let name = String::from_utf8_lossy(&name_of(kernel, tid)).into_owned();
    let used = match thread {
        Some(thread) if !whole_process => thread.cpu_time_ns / 10_000_000,
        _ => ticks(kernel),
    };
    let (state, ppid, group, threads) = (state_letter(thread), kernel.process.identity.ppid, kernel.process.pid, kernel.threads.len());
    let (size, resident) = (total_bytes(space), resident_bytes(space) / PAGE);
    let stack = space.vmas().iter().find(|vma| vma.label == "[stack]").map_or(0, |vma| vma.end);
    // Fields as in proc(5), from pid to exit_code; what we do not keep is 0.
    format!(
        "{tid} ({name}) {state} {ppid} {group} {group} 0 -1 4194304 0 0 0 0 {used} 0 0 0 20 0 {threads} 0 0 {size} {resident} 18446744073709551615 0 0 {stack} 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    )
}

fn status(kernel: &Kernel, space: &AddressSpace, tid: Tid) -> String {
    let process = &kernel.process;
    let (uid, gid) = (process.identity.uid, process.identity.gid);
    let thread = kernel.threads.peek(tid);
    let letter = state_letter(thread);
    let state = if letter == 'S' { "S (sleeping)" } else { "R (running)" };
    let name = String::from_utf8_lossy(&name_of(kernel, tid)).into_owned();
    let (size, resident) = (total_bytes(space) >> 10, resident_bytes(space) >> 10);
    let text = bytes_where(space, Protection::EXEC) >> 10;
    let mut status = String::new();
    let _ = write!(
        status,
        "Name:\t{name}\nUmask:\t{:04o}\nState:\t{state}\nTgid:\t{}\nNgid:\t0\nPid:\t{tid}\nPPid:\t{}\nTracerPid:\t0\n",
        process.umask, process.pid, process.identity.ppid
    );
    let _ = write!(status, "Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\nFDSize:\t64\nGroups:\t{gid}\n");
    let _ = write!(
        status,
        "VmPeak:\t{size:>8} kB\nVmSize:\t{size:>8} kB\nVmLck:\t       0 kB\nVmPin:\t       0 kB\nVmHWM:\t{resident:>8} kB\nVmRSS:\t{resident:>8} kB\nRssAnon:\t{resident:>8} kB\nRssFile:\t       0 kB\nRssShmem:\t       0 kB\nVmData:\t{resident:>8} kB\nVmStk:\t     132 kB\nVmExe:\t{text:>8} kB\nVmLib:\t       0 kB\nVmPTE:\t       0 kB\nVmSwap:\t       0 kB\n"
    );
    let _ = write!(
        status,
        "Threads:\t{}\nNoNewPrivs:\t{}\nSeccomp:\t0\nCpus_allowed:\t1\nCpus_allowed_list:\t0\nMems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n",
        kernel.threads.len(),
        u8::from(process.prctl.no_new_privs)
    );
    status
}

fn limits(kernel: &Kernel) -> String {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let shown = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
    let mut text = format!("{:<25} {:<20} {:<20} {:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    for ((name, unit), (soft, hard)) in NAMES.iter().zip(kernel.process.rlimits) {
        let _ = writeln!(text, "{name:<25} {:<20} {:<20} {unit:<10}", shown(soft), shown(hard));
    }
    text
}

/// A path in a mount table: blanks and backslashes are escaped (`getmntent(3)`).
fn escaped(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

fn mount_rows(kernel: &Kernel) -> Vec<(String, &'static str, &'static str)> {
    let mut rows = vec![("/".to_owned(), "tmpfs", "ro")];
    let granted = kernel.grants.mounts().filter(|(path, _)| *path != b"/");
    rows.extend(granted.map(|(path, access)| (escaped(path), "ext4", if access.write { "rw" } else { "ro" })));
    rows.extend(
        [("/proc", "proc"), ("/dev", "devtmpfs"), ("/sys", "sysfs"), ("/sys/fs/cgroup", "cgroup2")]
            .map(|(path, kind)| (path.to_owned(), kind, "rw")),
    );
    rows
}

fn mounts(kernel: &Kernel) -> String {
    mount_rows(kernel)
        .iter()
        .fold(String::new(), |text, (path, kind, options)| text + &format!("{kind} {path} {kind} {options},relatime 0 0\n"))
}

fn mount_info(kernel: &Kernel) -> String {
    let mut text = String::new();
    for (index, (path, kind, options)) in mount_rows(kernel).iter().enumerate() {
        let (id, parent) = (20 + index, if index == 0 { 1 } else { 20 });
        let _ = writeln!(text, "{id} {parent} 0:{id} / {path} {options},relatime - {kind} {kind} {options}");
    }
    text
}

/// /proc/PID/fdinfo/FD.
#[must_use]
pub fn descriptor_info(kernel: &Kernel, path: &[u8]) -> String {
    let fd = std::str::from_utf8(guest_path::name(path)).ok().and_then(|name| name.parse().ok()).unwrap_or(-1);
    let Ok(entry) = kernel.process.fds.entry(fd) else { return String::new() };
    let Ok(slot) = kernel.files.get(entry.file) else { return String::new() };
    let position = match &slot.file {
        File::Host(file) => file.position,
        File::Special(file) => file.position,
        _ => 0,
    };
    let close_on_exec = if entry.close_on_exec { linux_raw_sys::general::O_CLOEXEC } else { 0 };
    format!("pos:\t{position}\nflags:\t0{:o}\nmnt_id:\t20\nino:\t0\n", slot.flags | close_on_exec)
}
