//! The plain data that the Python side hands over as JSON: what to run and what it may touch.

use serde::Deserialize;

/// One host path that appears inside the guest at another place (`--volume host:guest[:r|rw]`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Absolute path on the host.
    pub host: String,
    /// Absolute path in the guest.
    pub guest: String,
    /// Whether the guest may change what is below it.
    pub write: bool,
}

/// One network grant; an absent field means "any".
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct NetRule {
    /// An IPv4 or IPv6 address; IPv4-mapped IPv6 addresses match the IPv4 rule.
    pub address: Option<std::net::IpAddr>,
    /// A port, 1 to 65535.
    pub port: Option<u16>,
}

/// A program and its permissions. Deny by default: empty lists grant nothing.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct SandboxConfig {
    /// Absolute host path of the program file.
    pub program: String,
    /// `argv[0]` as the user typed it.
    pub name: String,
    /// `argv[1..]`.
    pub arguments: Vec<String>,
    /// Working directory of the guest (need not be readable).
    pub working_directory: String,
    /// The whole environment, in order.
    pub environment: Vec<(String, String)>,
    /// Absolute host paths that the guest may read, at the same place.
    pub read: Vec<String>,
    /// Absolute host paths that the guest may write.
    pub write: Vec<String>,
    /// Host paths that appear elsewhere in the guest.
    pub volumes: Vec<Volume>,
    /// Addresses that the guest may connect or send to.
    pub connect: Vec<NetRule>,
    /// Addresses that the guest may bind and listen on.
    pub listen: Vec<NetRule>,
    /// Most bytes of private writable memory that the program may have mapped.
    pub max_main_memory: u64,
    /// Size of the guest's address space in bytes.
    pub max_address_space: u64,
    /// What it is to the storage program, where there is one.
    #[serde(default)]
    pub gate: Option<Gate>,
    /// Print one strace-like line per system call on stderr.
    #[serde(default)]
    pub trace_system_calls: bool,
    /// Say more in the log.
    #[serde(default)]
    pub verbose: bool,
    /// Answer what calls can be inside the VM.
    #[serde(default)]
    pub fast_path: bool,
}

/// What a program is to the gate between request VMs and the storage program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Gate {
    /// It may call the storage program.
    Caller,
    /// It is the storage program.
    Storage {
        /// Request VMs that it shares memory with.
        lanes: usize,
    },
}

/// A storage program and its limits.
#[derive(Debug, Clone, Deserialize)]
pub struct StorageConfig {
    /// The program.
    pub sandbox: SandboxConfig,
    /// Longest time from a call to its answer, nanoseconds.
    pub max_call_time_ns: u64,
    /// Longest time from a start to the first wait, nanoseconds.
    pub boot_time_ns: u64,
    /// Each request VM has one of its own.
    #[serde(default)]
    pub one_to_one: bool,
}

/// What is spoken with clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1, a run for each request.
    #[default]
    Http,
    /// Bytes, a run for each connection.
    Tcp,
}

/// What is expected of clients, and done for them.
#[derive(Debug, Clone, Deserialize)]
pub struct ClientConfig {
    /// What is spoken.
    pub protocol: Protocol,
    /// Connections begin with a preface of the PROXY protocol.
    pub proxy_protocol: bool,
    /// Tell the program who the client is, in Forwarded and X-Forwarded-For.
    pub proxy_headers: bool,
    /// Add Server-Timing and kvmserver-vm to responses.
    pub server_timing: bool,
    /// How much of a request's body is waited for before a VM is given to it, bytes; the rest is streamed.
    pub request_buffer: usize,
    /// How much of a response may wait for its client, bytes; then the VM waits with it.
    pub response_buffer: usize,
    /// How much of requests and responses may wait in the worker's connections for their clients, bytes.
    pub connection_memory: usize,
    /// Longest head of a request, bytes.
    pub max_header_size: usize,
    /// Longest body of a request, bytes.
    pub max_body_size: u64,
    /// Longest time from the first byte of a request (or the start of the connection) to the end of its head, nanoseconds.
    pub header_timeout_ns: u64,
    /// Longest time from the end of the head until as much of the body is here as is waited for, and behind that longest time in
    /// which nothing comes of it although the program has read all that came, nanoseconds.
    pub body_timeout_ns: u64,
    /// Longest time between requests, nanoseconds.
    pub idle_timeout_ns: u64,
    /// Longest time in which a client takes nothing of its response, nanoseconds.
    pub write_timeout_ns: u64,
    /// Longest time that a request waits for a VM, nanoseconds.
    pub queue_time_ns: u64,
}

/// How a worker process serves; see `_vmm.pyi`.
#[derive(Debug, Clone, Deserialize)]
pub struct ServeConfig {
    /// Request VMs in this process, 1 to 1024.
    pub threads: usize,
    /// Whether a VM is reset after each request.
    pub ephemeral: bool,
    /// Compare the whole VM with the snapshot after each reset.
    pub verify_reset: bool,
    /// Longest run of one request.
    pub max_request_time_ns: u64,
    /// Most bytes of memory one request may write.
    pub max_request_memory: u64,
    /// Above this many written bytes a reset gives the memory back instead of copying.
    pub limit_request_memory: u64,
    /// Most pages that stay mapped and are copied back at a reset.
    pub hot_pages: usize,
    /// Longest wait for a request without going to sleep, nanoseconds; 0 for none.
    #[serde(default)]
    pub busy_poll_ns: u64,
    /// How long running requests may go on after a drain was asked for.
    pub drain_time_ns: u64,
    /// The socket to the supervisor; see `_vmm.pyi`.
    pub control_fd: i32,
    /// The worker's number, for its messages.
    pub worker: u32,
    /// The number of its first VM, among those of all workers.
    #[serde(default)]
    pub first_vm: usize,
    /// Descriptors of sockets that listen instead of the program's own.
    #[serde(default)]
    pub listen_fds: Vec<i32>,
    /// What is expected of clients, and done for them.
    pub clients: ClientConfig,
    /// Requests that each VM answers in memory before it serves, one character a byte: they show which pages every request
    /// writes.
    #[serde(default)]
    pub prime: Vec<String>,
    /// The storage program, where there is one: what is needed to start it again.
    #[serde(default)]
    pub storage: Option<StorageConfig>,
}
