//! What every socket has, whatever carries its bytes: family, type, addresses, pending error, options.

use super::Errno;
use super::socket_address::{Address, Family, Kind};

/// The common part of all sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketBase {
    /// Address family.
    pub family: Family,
    /// Type.
    pub kind: Kind,
    /// IPPROTO_* number, as SO_PROTOCOL shows it.
    pub protocol: u32,
    /// Its own address (`getsockname(2)`).
    pub local: Address,
    /// The other side's address (`getpeername(2)`).
    pub peer: Address,
    /// SO_ERROR: reported once, by the next call that transfers data or asks.
    pub error: Option<Errno>,
    /// Options that were set.
    pub options: SocketOptions,
}

impl SocketBase {
    /// A socket without addresses.
    #[must_use]
    pub fn new(family: Family, kind: Kind, protocol: u32) -> Self {
        Self { family, kind, protocol, local: Address::Unnamed, peer: Address::Unnamed, error: None, options: SocketOptions::default() }
    }

    /// A socket on the accepting side of a connection to this one: it inherits the options (`socket(7)`).
    #[must_use]
    pub fn accepted(&self, local: Address, peer: Address) -> Self {
        let Self { family, kind, protocol, options, .. } = self;
        Self { family: *family, kind: *kind, protocol: *protocol, local, peer, error: None, options: options.clone() }
    }
}

/// Values of socket options; all are plain numbers that a program may read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketOptions {
    /// SO_REUSEADDR.
    pub reuse_address: bool,
    /// SO_REUSEPORT.
    pub reuse_port: bool,
    /// SO_KEEPALIVE.
    pub keep_alive: bool,
    /// SO_BROADCAST.
    pub broadcast: bool,
    /// SO_OOBINLINE.
    pub inline_urgent: bool,
    /// SO_PASSCRED.
    pub pass_credentials: bool,
    /// SO_DONTROUTE.
    pub dont_route: bool,
    /// SO_TIMESTAMP family: remembered, no control messages are made.
    pub timestamp: bool,
    /// SO_LINGER: on, seconds.
    pub linger: (bool, u32),
    /// SO_PRIORITY.
    pub priority: u32,
    /// SO_RCVLOWAT.
    pub receive_low_water: u32,
    /// SO_RCVBUF as `getsockopt` shows it (twice what was set), bytes; `None` while it is the default.
    pub receive_buffer: Option<u32>,
    /// SO_SNDBUF, likewise.
    pub send_buffer: Option<u32>,
    /// SO_RCVTIMEO, nanoseconds; 0 waits for ever.
    pub receive_timeout: u64,
    /// SO_SNDTIMEO, nanoseconds; 0 waits for ever.
    pub send_timeout: u64,
    /// IPV6_V6ONLY.
    pub v6_only: bool,
    /// Other options at levels IPPROTO_TCP, IPPROTO_IP and IPPROTO_IPV6 that were set: level, option, value.
    pub numbers: Vec<(u32, u32, u32)>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            reuse_address: false,
            reuse_port: false,
            keep_alive: false,
            broadcast: false,
            inline_urgent: false,
            pass_credentials: false,
            dont_route: false,
            timestamp: false,
            linger: (false, 0),
            priority: 0,
            receive_low_water: 1,
            receive_buffer: None,
            send_buffer: None,
            receive_timeout: 0,
            send_timeout: 0,
            v6_only: false,
            numbers: Vec::new(),
        }
    }
}
