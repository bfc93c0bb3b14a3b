//! /proc, /dev and /sys: what the generated files say about the whole system, and the tables of their names.
//! `special_process.rs` has the files about a process.

use super::special_process as process;
use crate::limits::{FDS_MAX, PIPE_BYTES, THREADS_MAX, VMAS_MAX};
use crate::linux::Kernel;
use crate::linux::syscalls::system::{HOST_NAME, RELEASE, VERSION};
use crate::memory::AddressSpace;

/// Ticks of `times(2)` and /proc a second (USER_HZ).
pub const TICKS_PER_SECOND: u64 = 100;

/// A generated text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// The same for everybody and for ever.
    Constant(&'static str),
    /// The same, and one line.
    Line(&'static str),
    /// A number from limits.rs.
    Number(u64),
    /// /proc/cpuinfo.
    CpuInfo,
    /// /proc/meminfo.
    MemInfo,
    /// Memory of the machine in bytes, as cgroup v2 writes a limit.
    MemoryLimit,
    /// Memory in use in bytes.
    MemoryCurrent,
    /// /proc/stat.
    Stat,
    /// /proc/uptime.
    Uptime,
    /// /proc/version.
    Version,
    /// A version 4 UUID, new at each reading.
    Uuid,
    /// A version 4 UUID, the same while the VM lives.
    BootId,
    /// One of /proc/PID/fdinfo.
    DescriptorInfo,
    /// One of /proc/PID.
    Process(process::ProcessText),
}

impl Text {
    /// Whether writing to it has an effect.
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        matches!(self, Self::Process(process::ProcessText::Comm))
    }
}

const NO_LIMIT: Text = Text::Constant("max\n");
const ONE_CPU: Text = Text::Constant("0\n");
const CPU_MASK: Text = Text::Constant("1\n");

/// Texts at fixed paths.
const FIXED: &[(&str, Text)] = &[
    ("/proc/cpuinfo", Text::CpuInfo),
    ("/proc/meminfo", Text::MemInfo),
    ("/proc/stat", Text::Stat),
    ("/proc/uptime", Text::Uptime),
    ("/proc/loadavg", Text::Constant("0.00 0.00 0.00 1/1 1\n")),
    ("/proc/version", Text::Version),
    ("/proc/filesystems", Text::Constant("nodev\tsysfs\nnodev\ttmpfs\nnodev\tproc\nnodev\tcgroup2\nnodev\tdevtmpfs\n\text4\n")),
    ("/proc/cmdline", Text::Constant("\n")),
    ("/proc/devices", Text::Constant("Character devices:\n  1 mem\n  5 /dev/tty\n\nBlock devices:\n")),
    ("/proc/diskstats", Text::Constant("")),
    ("/proc/partitions", Text::Constant("major minor  #blocks  name\n\n")),
    ("/proc/swaps", Text::Constant("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")),
    ("/proc/modules", Text::Constant("")),
    ("/proc/sys/kernel/hostname", Text::Line(HOST_NAME)),
    ("/proc/sys/kernel/domainname", Text::Constant("(none)\n")),
    ("/proc/sys/kernel/ostype", Text::Constant("Linux\n")),
    ("/proc/sys/kernel/osrelease", Text::Line(RELEASE)),
    ("/proc/sys/kernel/version", Text::Line(VERSION)),
    ("/proc/sys/kernel/pid_max", Text::Constant("32768\n")),
    ("/proc/sys/kernel/threads-max", Text::Number(THREADS_MAX as u64)),
    ("/proc/sys/kernel/ngroups_max", Text::Constant("65536\n")),
    ("/proc/sys/kernel/cap_last_cap", Text::Constant("40\n")),
    ("/proc/sys/kernel/randomize_va_space", Text::Constant("2\n")),
    ("/proc/sys/kernel/yama/ptrace_scope", Text::Constant("1\n")),
    ("/proc/sys/kernel/perf_event_paranoid", Text::Constant("4\n")),
    ("/proc/sys/kernel/seccomp/actions_avail", Text::Constant("\n")),
    ("/proc/sys/kernel/core_pattern", Text::Constant("core\n")),
    ("/proc/sys/kernel/shmmax", Text::Constant("18446744073692774399\n")),
    ("/proc/sys/kernel/random/uuid", Text::Uuid),
    ("/proc/sys/kernel/random/boot_id", Text::BootId),
    ("/proc/sys/kernel/random/entropy_avail", Text::Constant("256\n")),
    ("/proc/sys/kernel/random/poolsize", Text::Constant("256\n")),
    ("/proc/sys/vm/overcommit_memory", Text::Constant("1\n")),
    ("/proc/sys/vm/max_map_count", Text::Number(VMAS_MAX as u64)),
    ("/proc/sys/vm/mmap_min_addr", Text::Constant("65536\n")),
    ("/proc/sys/vm/nr_hugepages", Text::Constant("0\n")),
    ("/proc/sys/vm/swappiness", Text::Constant("60\n")),
    ("/proc/sys/vm/legacy_va_layout", Text::Constant("0\n")),
    ("/proc/sys/net/core/somaxconn", Text::Constant("4096\n")),
    ("/proc/sys/net/core/rmem_max", Text::Constant("212992\n")),
    ("/proc/sys/net/core/wmem_max", Text::Constant("212992\n")),
    ("/proc/sys/net/core/rmem_default", Text::Constant("212992\n")),
    ("/proc/sys/net/core/wmem_default", Text::Constant("212992\n")),
    ("/proc/sys/net/ipv4/ip_local_port_range", Text::Constant("32768\t60999\n")),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", Text::Constant("1024\n")),
    ("/proc/sys/net/ipv4/tcp_fastopen", Text::Constant("1\n")),
    ("/proc/sys/net/ipv4/tcp_max_syn_backlog", Text::Constant("1024\n")),
    ("/proc/sys/net/ipv4/tcp_keepalive_time", Text::Constant("7200\n")),
    ("/proc/sys/net/ipv4/tcp_rmem", Text::Constant("4096\t131072\t6291456\n")),
    ("/proc/sys/net/ipv4/tcp_wmem", Text::Constant("4096\t16384\t4194304\n")),
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", Text::Constant("0\n")),
    ("/proc/sys/net/ipv6/bindv6only", Text::Constant("0\n")),
    ("/proc/sys/fs/file-max", Text::Number(FDS_MAX as u64)),
    ("/proc/sys/fs/nr_open", Text::Number(FDS_MAX as u64)),
    ("/proc/sys/fs/pipe-max-size", Text::Number(16 * PIPE_BYTES as u64)),
    ("/proc/sys/fs/inotify/max_user_watches", Text::Constant("0\n")),
    ("/proc/sys/fs/aio-max-nr", Text::Constant("0\n")),
    ("/proc/sys/crypto/fips_enabled", Text::Constant("0\n")),
    (
        "/proc/pressure/cpu",
        Text::Constant("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    ),
    (
        "/proc/pressure/memory",
        Text::Constant("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
    ),
    ("/sys/devices/system/cpu/online", ONE_CPU),
    ("/sys/devices/system/cpu/possible", ONE_CPU),
    ("/sys/devices/system/cpu/present", ONE_CPU),
    ("/sys/devices/system/cpu/offline", Text::Constant("\n")),
    ("/sys/devices/system/cpu/isolated", Text::Constant("\n")),
    ("/sys/devices/system/cpu/kernel_max", ONE_CPU),
    ("/sys/devices/system/cpu/cpu0/topology/core_id", ONE_CPU),
    ("/sys/devices/system/cpu/cpu0/topology/physical_package_id", ONE_CPU),
    ("/sys/devices/system/cpu/cpu0/topology/thread_siblings", CPU_MASK),
    ("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list", ONE_CPU),
    ("/sys/devices/system/cpu/cpu0/topology/core_siblings", CPU_MASK),
    ("/sys/devices/system/cpu/cpu0/topology/core_siblings_list", ONE_CPU),
    ("/sys/devices/system/node/online", ONE_CPU),
    ("/sys/devices/system/node/possible", ONE_CPU),
    ("/sys/devices/system/node/has_cpu", ONE_CPU),
    ("/sys/devices/system/node/has_memory", ONE_CPU),
    ("/sys/devices/system/node/node0/cpulist", ONE_CPU),
    ("/sys/devices/system/node/node0/cpumap", CPU_MASK),
    ("/sys/devices/system/node/node0/distance", Text::Constant("10\n")),
    ("/sys/kernel/mm/transparent_hugepage/enabled", Text::Constant("always [madvise] never\n")),
    ("/sys/kernel/mm/transparent_hugepage/defrag", Text::Constant("always defer defer+madvise [madvise] never\n")),
    ("/sys/kernel/mm/transparent_hugepage/shmem_enabled", Text::Constant("always within_size advise [never] deny force\n")),
    ("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", Text::Constant("2097152\n")),
    ("/sys/fs/cgroup/cgroup.controllers", Text::Constant("cpu memory pids\n")),
    ("/sys/fs/cgroup/cgroup.procs", Text::Constant("")),
    ("/sys/fs/cgroup/cpu.max", Text::Constant("100000 100000\n")),
    ("/sys/fs/cgroup/cpuset.cpus.effective", ONE_CPU),
    ("/sys/fs/cgroup/memory.max", Text::MemoryLimit),
    ("/sys/fs/cgroup/memory.high", NO_LIMIT),
    ("/sys/fs/cgroup/memory.current", Text::MemoryCurrent),
    ("/sys/fs/cgroup/memory.swap.max", Text::Constant("0\n")),
    ("/sys/fs/cgroup/memory.stat", Text::Constant("inactive_file 0\n")),
    ("/sys/fs/cgroup/pids.max", Text::Number(THREADS_MAX as u64)),
];

/// Names below /proc/PID/net.
const NETWORK: &[(&str, Text)] = &[
    (
        "dev",
        Text::Constant(
            "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n",
        ),
    ),
    ("if_inet6", Text::Constant("00000000000000000000000000000001 01 80 10 80       lo\n")),
    ("route", Text::Constant("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n")),
    ("tcp", Text::Constant("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n")),
    (
        "tcp6",
        Text::Constant(
            "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n",
        ),
    ),
    (
        "udp",
        Text::Constant(
            "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n",
        ),
    ),
    ("unix", Text::Constant("Num       RefCount Protocol Flags    Type St Inode Path\n")),
];

/// The text at a fixed path.
#[must_use]
pub fn fixed(path: &str) -> Option<Text> {
    FIXED.iter().find(|(name, _)| *name == path).map(|(_, text)| *text)
}

/// All fixed paths.
pub fn fixed_names() -> impl Iterator<Item = &'static str> {
    FIXED.iter().map(|(name, _)| *name)
}

/// The text of a name below /proc/PID.
#[must_use]
pub fn of_process(name: &str) -> Option<Text> {
    process::NAMES.iter().find(|(known, _)| *known == name).map(|(_, text)| Text::Process(*text))
}

/// All names of texts below /proc/PID.
pub fn process_names() -> impl Iterator<Item = &'static str> {
    process::NAMES.iter().map(|(name, _)| *name)
}

/// The text of a name below /proc/PID/net.
#[must_use]
pub fn of_network(name: &str) -> Option<Text> {
    NETWORK.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// All names below /proc/PID/net.
pub fn network_names() -> impl Iterator<Item = &'static str> {
    NETWORK.iter().map(|(name, _)| *name)
}

/// The text now.
#[must_use]
pub fn generate(kernel: &Kernel, space: &AddressSpace, path: &[u8], text: Text) -> Vec<u8> {
    match text {
        Text::Constant(text) => text.as_bytes().to_vec(),
        Text::Line(line) => format!("{line}\n").into_bytes(),
        Text::Number(number) => format!("{number}\n").into_bytes(),
        Text::CpuInfo => cpu_info().into_bytes(),
        Text::MemInfo => memory_info(kernel, space).into_bytes(),
        Text::MemoryLimit => format!("{}\n", memory_total(kernel)).into_bytes(),
        Text::MemoryCurrent => format!("{}\n", process::resident_bytes(space)).into_bytes(),
        Text::Stat => statistics(kernel).into_bytes(),
        Text::Uptime => uptime(kernel).into_bytes(),
        Text::Version => format!("Linux version {RELEASE} (kvmserver) {VERSION}\n").into_bytes(),
        Text::Uuid => uuid(random()).into_bytes(),
        Text::BootId => uuid(boot_seed(kernel)).into_bytes(),
        Text::DescriptorInfo => process::descriptor_info(kernel, path).into_bytes(),
        Text::Process(text) => process::generate(kernel, space, path, text),
    }
}

fn memory_total(kernel: &Kernel) -> u64 {
    kernel.grants.max_main_memory.max(16 << 20)
}

/// The host's first processor, as the only one. What the VM hides (protection keys, AMX) is left out of the flags.
fn cpu_info() -> String {
    let host = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut text = String::new();
    for line in host.lines().take_while(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or("").trim();
        match name {
            "processor" | "core id" | "apicid" | "initial apicid" | "physical id" => text.push_str(&format!("{name}\t: 0\n")),
            "siblings" | "cpu cores" => text.push_str(&format!("{name}\t: 1\n")),
            "flags" => {
                let flags = line.split(':').nth(1).unwrap_or("").split_whitespace();
                let shown: Vec<&str> = flags.filter(|flag| !flag.starts_with("amx_") && !matches!(*flag, "pku" | "ospke")).collect();
                text.push_str(&format!("flags\t\t: {}\n", shown.join(" ")));
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text.push('\n');
    text
}

fn memory_info(kernel: &Kernel, space: &AddressSpace) -> String {
    let total = memory_total(kernel) >> 10;
    let used = (process::resident_bytes(space) >> 10).min(total);
    let free = total - used;
    let mut text = String::new();
    let lines: [(&str, u64); 18] = [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", used),
        ("Inactive", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", used),
        ("Mapped", 0),
        ("Shmem", 0),
        ("CommitLimit", total),
        ("Committed_AS", used),
        ("Hugepagesize", 2048),
    ];
    for (name, kilobytes) in lines {
        text.push_str(&format!("{:<15} {kilobytes:>8} kB\n", format!("{name}:")));
    }
    text
}

/// Processor time of the whole process, in ticks.
pub(super) fn ticks(kernel: &Kernel) -> u64 {
    let nanoseconds = kernel.threads.iter().fold(0_u64, |sum, thread| sum.saturating_add(thread.cpu_time_ns));
    nanoseconds / (1_000_000_000 / TICKS_PER_SECOND)
}

fn statistics(kernel: &Kernel) -> String {
    let busy = ticks(kernel);
    let up = kernel.clock.monotonic() / (1_000_000_000 / TICKS_PER_SECOND);
    let idle = up.saturating_sub(busy);
    let booted = kernel.clock.realtime().saturating_sub(kernel.clock.monotonic()) / 1_000_000_000;
    format!(
        "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0\nintr 0\nctxt 0\nbtime {booted}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n"
    )
}

fn uptime(kernel: &Kernel) -> String {
    let hundredths = |nanoseconds: u64| (nanoseconds / 1_000_000_000, nanoseconds / 10_000_000 % 100);
    let up = kernel.clock.monotonic();
    let busy = ticks(kernel).saturating_mul(1_000_000_000 / TICKS_PER_SECOND);
    let ((up, up_part), (idle, idle_part)) = (hundredths(up), hundredths(up.saturating_sub(busy)));
    format!("{up}.{up_part:02} {idle}.{idle_part:02}\n")
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // Sixteen bytes never come short once the host's generator is seeded, and it is long before we run.
    let _ = super::host::retry(|| rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty()));
    bytes
}

/// Sixteen bytes that stay the same while this process of ours lives and tell nothing about the host.
fn boot_seed(kernel: &Kernel) -> [u8; 16] {
    static SEED: std::sync::OnceLock<[u8; 16]> = std::sync::OnceLock::new();
    let _ = kernel;
    *SEED.get_or_init(random)
}

fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hexadecimal: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hexadecimal[range].concat();
    format!("{}-{}-{}-{}-{}\n", part(0..4), part(4..6), part(6..8), part(8..10), part(10..16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_four() {
        let text = uuid([0xff; 16]);
        assert_eq!(text, "ffffffff-ffff-4fff-bfff-ffffffffffff\n");
    }

    #[test]
    fn one_processor_is_shown() {
        let text = cpu_info();
        assert_eq!(text.lines().filter(|line| line.starts_with("processor")).count(), 1);
        assert!(!text.contains(" pku"));
    }

    #[test]
    fn tables_name_each_path_once() {
        let mut names: Vec<&str> = fixed_names().collect();
        let before = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
