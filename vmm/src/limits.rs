//! Every bound on what a guest may make the host hold or do, with its unit and the errno it gives.

/// Page size, bytes.
pub const PAGE: u64 = 4096;
/// Size of one page-table entry's range and of the unit in which guest-physical space is handed out, bytes.
pub const BLOCK: u64 = 2 << 20;
/// Threads of a guest; `clone` answers EAGAIN. V8, Go and the JVM start a few dozen.
pub const THREADS_MAX: usize = 1024;
/// Open descriptors of a process (RLIMIT_NOFILE); EMFILE.
pub const FDS_MAX: usize = 4096;
/// Open file descriptions of a VM (ENFILE).
pub const FILES_MAX: usize = 8192;
/// Bytes of all files in /dev/shm of a VM; ENOSPC.
pub const SHM_BYTES_MAX: usize = 64 << 20;
/// Files in /dev/shm of a VM; ENOSPC.
pub const SHM_FILES_MAX: usize = 1024;
/// Capacity of a pipe or socketpair direction, bytes, as Linux's default.
pub const PIPE_BYTES: usize = 64 << 10;
/// Capacity of each direction of a client stream, bytes: what a guest may write before the host takes it.
pub const STREAM_BYTES: usize = 1 << 20;
/// Segments of one readv/writev (UIO_MAXIOV); EINVAL.
pub const IOV_MAX: usize = 1024;
/// Longest path with its terminator (PATH_MAX); ENAMETOOLONG.
pub const PATH_MAX: usize = 4096;
/// Bytes that one read or write moves (MAX_RW_COUNT).
pub const RW_BYTES_MAX: u64 = 0x7fff_f000;
/// VMAs of a process (vm.max_map_count); ENOMEM.
pub const VMAS_MAX: usize = 65_530;
/// Members of one epoll set; ENOSPC.
pub const EPOLL_MEMBERS_MAX: usize = 4096;
/// Depth of nested epoll sets; ELOOP.
pub const EPOLL_DEPTH_MAX: usize = 5;
/// Queued signals of a process (RLIMIT_SIGPENDING); EAGAIN.
pub const SIGNALS_MAX: usize = 1024;
/// POSIX timers of a process; EAGAIN.
pub const TIMERS_MAX: usize = 256;
/// A thread's time slice while others can run, nanoseconds.
pub const SLICE_NS: u64 = 10_000_000;
/// Size of the main thread's stack, bytes (RLIMIT_STACK).
pub const STACK_BYTES: u64 = 8 << 20;
/// Messages that a datagram or packet channel holds, as net.unix.max_dgram_qlen is set by distributions; EAGAIN.
pub const CHANNEL_MESSAGES_MAX: usize = 512;
/// Members of all epoll sets of a VM together (fs.epoll.max_user_watches); ENOSPC.
pub const EPOLL_MEMBERS_TOTAL_MAX: usize = 65_536;
/// Writes of at most this many bytes to a pipe are never split (PIPE_BUF).
pub const PIPE_ATOMIC_BYTES: usize = 4096;
/// Most connections that wait for an accept (net.core.somaxconn).
pub const BACKLOG_MAX: u32 = 4096;
/// Longest socket address that a guest may name (`struct sockaddr_storage`), bytes; EINVAL.
pub const SOCKET_ADDRESS_MAX: usize = 128;
