//! Socket options: which ones there are, what they hold, and which of them a host socket is told (`socket(7)`, `tcp(7)`,
//! `ip(7)`, `ipv6(7)`). What is not in these tables does not exist: ENOPROTOOPT.

use std::os::fd::OwnedFd;
use std::time::Duration;

use linux_raw_sys::net as raw;
use rustix::net::sockopt;

use super::Errno;
use super::socket_address::{Family, Kind};
use super::socket_base::SocketBase;

const LEVEL_SOCKET: u32 = raw::SOL_SOCKET;
const LEVEL_IP: u32 = raw::IPPROTO_IP as u32;
const LEVEL_TCP: u32 = raw::IPPROTO_TCP as u32;
const LEVEL_IPV6: u32 = raw::IPPROTO_IPV6 as u32;
/// SO_INCOMING_CPU.
const SO_INCOMING_CPU: u32 = 49;
/// SO_COOKIE.
const SO_COOKIE: u32 = 57;
/// SO_BUSY_POLL.
const SO_BUSY_POLL: u32 = 46;
/// The default size of a socket's buffers as `getsockopt` shows it (net.core.rmem_default), bytes.
const BUFFER_DEFAULT: u32 = 212_992;
/// The smallest and largest that can be set, doubled as Linux does it, bytes.
const BUFFER_RANGE: (u32, u32) = (2304, 425_984);

/// An integer option that is remembered, and applied to a host socket where [`apply_number`] knows it.
struct Number {
    level: u32,
    option: u32,
    default: u32,
    range: (u32, u32),
}

const fn number(level: u32, option: u32, default: u32, range: (u32, u32)) -> Number {
    Number { level, option, default, range }
}

const SWITCH: (u32, u32) = (0, 1);
const ANY: (u32, u32) = (0, u32::MAX);

const TCP_NODELAY: u32 = raw::TCP_NODELAY;
const TCP_MAXSEG: u32 = raw::TCP_MAXSEG;
const TCP_CORK: u32 = raw::TCP_CORK;
const TCP_KEEPIDLE: u32 = raw::TCP_KEEPIDLE;
const TCP_KEEPINTVL: u32 = raw::TCP_KEEPINTVL;
const TCP_KEEPCNT: u32 = raw::TCP_KEEPCNT;
const TCP_QUICKACK: u32 = raw::TCP_QUICKACK;
const TCP_USER_TIMEOUT: u32 = raw::TCP_USER_TIMEOUT;
const IP_TOS: u32 = raw::IP_TOS;
const IP_TTL: u32 = raw::IP_TTL;
const IPV6_UNICAST_HOPS: u32 = raw::IPV6_UNICAST_HOPS;
const IPV6_TCLASS: u32 = raw::IPV6_TCLASS;

/// The integer options below the socket level.
const NUMBERS: &[Number] = &[
    number(LEVEL_TCP, TCP_NODELAY, 0, SWITCH),
    number(LEVEL_TCP, TCP_MAXSEG, 65_483, (88, 65_535)),
    number(LEVEL_TCP, TCP_CORK, 0, SWITCH),
    number(LEVEL_TCP, TCP_KEEPIDLE, 7200, (1, 32_767)),
    number(LEVEL_TCP, TCP_KEEPINTVL, 75, (1, 32_767)),
    number(LEVEL_TCP, TCP_KEEPCNT, 9, (1, 127)),
    number(LEVEL_TCP, raw::TCP_SYNCNT, 6, (1, 127)),
    number(LEVEL_TCP, raw::TCP_LINGER2, 60, ANY),
    number(LEVEL_TCP, raw::TCP_DEFER_ACCEPT, 0, ANY),
    number(LEVEL_TCP, raw::TCP_WINDOW_CLAMP, 0, ANY),
    number(LEVEL_TCP, TCP_QUICKACK, 1, SWITCH),
    number(LEVEL_TCP, TCP_USER_TIMEOUT, 0, (0, i32::MAX as u32)),
    number(LEVEL_TCP, raw::TCP_FASTOPEN, 0, ANY),
    number(LEVEL_TCP, raw::TCP_NOTSENT_LOWAT, u32::MAX, ANY),
    number(LEVEL_IP, IP_TOS, 0, (0, 255)),
    number(LEVEL_IP, IP_TTL, 64, (1, 255)),
    number(LEVEL_IP, raw::IP_RECVERR, 0, SWITCH),
    number(LEVEL_IP, raw::IP_PKTINFO, 0, SWITCH),
    number(LEVEL_IP, raw::IP_RECVTTL, 0, SWITCH),
    number(LEVEL_IP, raw::IP_RECVTOS, 0, SWITCH),
    number(LEVEL_IP, raw::IP_MTU_DISCOVER, 1, (0, 5)),
    number(LEVEL_IP, raw::IP_BIND_ADDRESS_NO_PORT, 0, SWITCH),
    number(LEVEL_IP, raw::IP_MULTICAST_TTL, 1, (0, 255)),
    number(LEVEL_IP, raw::IP_MULTICAST_LOOP, 1, SWITCH),
    number(LEVEL_IPV6, IPV6_UNICAST_HOPS, 64, (0, 255)),
    number(LEVEL_IPV6, raw::IPV6_MULTICAST_HOPS, 1, (0, 255)),
    number(LEVEL_IPV6, raw::IPV6_MULTICAST_LOOP, 1, SWITCH),
    number(LEVEL_IPV6, raw::IPV6_MTU_DISCOVER, 1, (0, 5)),
    number(LEVEL_IPV6, raw::IPV6_RECVERR, 0, SWITCH),
    number(LEVEL_IPV6, raw::IPV6_RECVPKTINFO, 0, SWITCH),
    number(LEVEL_IPV6, raw::IPV6_RECVHOPLIMIT, 0, SWITCH),
    number(LEVEL_IPV6, raw::IPV6_RECVTCLASS, 0, SWITCH),
    number(LEVEL_IPV6, IPV6_TCLASS, 0, (0, 255)),
];

/// What a socket is besides its base, for options that ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// SO_ACCEPTCONN.
    pub listening: bool,
    /// SO_PEERCRED: process, user and group of whoever made the other end.
    pub peer: [u32; 3],
    /// SO_COOKIE.
    pub cookie: u64,
}

/// `setsockopt(2)` with a value as the guest's bytes.
///
/// # Errors
///
/// ENOPROTOOPT, EINVAL, EDOM, EPERM, EOPNOTSUPP.
pub fn set(base: &mut SocketBase, level: u32, option: u32, value: &[u8]) -> Result<(), Errno> {
    if level == LEVEL_SOCKET {
        return set_socket(base, option, value);
    }
    check_level(base, level)?;
    if level == LEVEL_IPV6 && option == raw::IPV6_V6ONLY {
        base.options.v6_only = integer(value)? != 0;
        return Ok(());
    }
    if level == LEVEL_TCP && option == raw::TCP_CONGESTION {
        return if value.starts_with(b"cubic") { Ok(()) } else { Err(Errno::NOENT) };
    }
    let known = find(level, option)?;
    // IP options may come as a single byte.
    let mut number = match value {
        [byte] if level == LEVEL_IP => i32::from(*byte),
        _ => integer(value)?,
    };
    if known.range == SWITCH {
        number = i32::from(number != 0);
    } else if number == -1 && level != LEVEL_TCP {
        number = known.default.cast_signed();
    }
    let number = number.cast_unsigned();
    if number < known.range.0 || number > known.range.1 {
        return Err(Errno::INVAL);
    }
    let numbers = &mut base.options.numbers;
    match numbers.iter_mut().find(|entry| (entry.0, entry.1) == (level, option)) {
        Some(entry) => entry.2 = number,
        None => numbers.push((level, option, number)),
    }
    Ok(())
}

/// `getsockopt(2)`: the value's bytes. SO_ERROR is the caller's, who has to fetch it from the right place.
///
/// # Errors
///
/// ENOPROTOOPT, EOPNOTSUPP.
pub fn get(base: &SocketBase, facts: Facts, level: u32, option: u32) -> Result<Vec<u8>, Errno> {
    if level == LEVEL_SOCKET {
        return get_socket(base, facts, option);
    }
    check_level(base, level)?;
    if level == LEVEL_IPV6 && option == raw::IPV6_V6ONLY {
        return Ok(u32::from(base.options.v6_only).to_ne_bytes().to_vec());
    }
    if level == LEVEL_TCP && option == raw::TCP_CONGESTION {
        return Ok(b"cubic\0\0\0\0\0\0\0\0\0\0\0".to_vec());
    }
    let known = find(level, option)?;
    Ok(value_of(base, known).to_ne_bytes().to_vec())
}

fn value_of(base: &SocketBase, known: &Number) -> u32 {
    base.options.numbers.iter().find(|entry| (entry.0, entry.1) == (known.level, known.option)).map_or(known.default, |entry| entry.2)
}

fn find(level: u32, option: u32) -> Result<&'static Number, Errno> {
    NUMBERS.iter().find(|known| known.level == level && known.option == option).ok_or(Errno::NOPROTOOPT)
}

fn check_level(base: &SocketBase, level: u32) -> Result<(), Errno> {
    match (level, base.family, base.kind) {
        (_, Family::Unix, _) => Err(Errno::OPNOTSUPP),
        (LEVEL_TCP, _, Kind::Stream) | (LEVEL_IP, ..) | (LEVEL_IPV6, Family::Inet6, _) => Ok(()),
        _ => Err(Errno::NOPROTOOPT),
    }
}

fn integer(value: &[u8]) -> Result<i32, Errno> {
    value.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)).ok_or(Errno::INVAL)
}

fn set_socket(base: &mut SocketBase, option: u32, value: &[u8]) -> Result<(), Errno> {
    let number = integer(value)?;
    let on = number != 0;
    let options = &mut base.options;
    match option {
        raw::SO_REUSEADDR => options.reuse_address = on,
        raw::SO_REUSEPORT if base.family != Family::Unix => options.reuse_port = on,
        raw::SO_KEEPALIVE => options.keep_alive = on,
        raw::SO_BROADCAST => options.broadcast = on,
        raw::SO_OOBINLINE => options.inline_urgent = on,
        raw::SO_DONTROUTE => options.dont_route = on,
        raw::SO_PASSCRED if base.family == Family::Unix => options.pass_credentials = on,
        raw::SO_TIMESTAMP_OLD | raw::SO_TIMESTAMPNS_OLD | raw::SO_TIMESTAMP_NEW | raw::SO_TIMESTAMPNS_NEW => options.timestamp = on,
        raw::SO_PRIORITY if (0..=6).contains(&number) => options.priority = number.cast_unsigned(),
        raw::SO_RCVLOWAT => options.receive_low_water = if number < 0 { i32::MAX.cast_unsigned() } else { number.cast_unsigned().max(1) },
        raw::SO_RCVBUF => options.receive_buffer = Some(buffer_size(number)),
        raw::SO_SNDBUF => options.send_buffer = Some(buffer_size(number)),
        raw::SO_LINGER => {
            let seconds = integer(value.get(4..).unwrap_or_default())?;
            options.linger = (on, seconds.cast_unsigned());
        }
        raw::SO_RCVTIMEO_OLD | raw::SO_RCVTIMEO_NEW => options.receive_timeout = timeout(value)?,
        raw::SO_SNDTIMEO_OLD | raw::SO_SNDTIMEO_NEW => options.send_timeout = timeout(value)?,
        // Only a hint of where packets are worked on; there is one CPU.
        SO_INCOMING_CPU => {}
        raw::SO_PRIORITY
        | raw::SO_MARK
        | raw::SO_BINDTODEVICE
        | raw::SO_SNDBUFFORCE
        | raw::SO_RCVBUFFORCE
        | SO_BUSY_POLL
        | raw::SO_DEBUG => {
            return Err(Errno::PERM);
        }
        // Sent pages would be referred to after a reset.
        raw::SO_ZEROCOPY => return Err(Errno::OPNOTSUPP),
        _ => return Err(Errno::NOPROTOOPT),
    }
    Ok(())
}

/// Linux doubles what is asked for, for its own overhead.
fn buffer_size(asked: i32) -> u32 {
    asked.max(0).cast_unsigned().saturating_mul(2).clamp(BUFFER_RANGE.0, BUFFER_RANGE.1)
}

fn timeout(value: &[u8]) -> Result<u64, Errno> {
    let word = |at: usize| value.get(at..).and_then(|rest| rest.first_chunk()).map(|bytes| i64::from_ne_bytes(*bytes)).ok_or(Errno::INVAL);
    let (seconds, micros) = (word(0)?, word(8)?);
    if !(0..1_000_000).contains(&micros) {
        return Err(Errno::DOM);
    }
    // A negative time does not wait; 0 waits for ever. The shortest wait that we know stands for the former.
    let Ok(seconds) = u64::try_from(seconds) else { return Ok(1) };
    Ok(seconds.saturating_mul(1_000_000_000).saturating_add(micros.cast_unsigned() * 1000))
}

fn get_socket(base: &SocketBase, facts: Facts, option: u32) -> Result<Vec<u8>, Errno> {
    let options = &base.options;
    let number = match option {
        raw::SO_REUSEADDR => u32::from(options.reuse_address),
        raw::SO_REUSEPORT => u32::from(options.reuse_port),
        raw::SO_KEEPALIVE => u32::from(options.keep_alive),
        raw::SO_BROADCAST => u32::from(options.broadcast),
        raw::SO_OOBINLINE => u32::from(options.inline_urgent),
        raw::SO_DONTROUTE => u32::from(options.dont_route),
        raw::SO_PASSCRED => u32::from(options.pass_credentials),
        raw::SO_TIMESTAMP_OLD | raw::SO_TIMESTAMPNS_OLD | raw::SO_TIMESTAMP_NEW | raw::SO_TIMESTAMPNS_NEW => u32::from(options.timestamp),
        raw::SO_PRIORITY => options.priority,
        raw::SO_RCVLOWAT => options.receive_low_water,
        raw::SO_SNDLOWAT => 1,
        raw::SO_RCVBUF => options.receive_buffer.unwrap_or(BUFFER_DEFAULT),
        raw::SO_SNDBUF => options.send_buffer.unwrap_or(BUFFER_DEFAULT),
        raw::SO_TYPE => match base.kind {
            Kind::Stream => 1,
            Kind::Datagram => 2,
            Kind::Packet => 5,
        },
        raw::SO_ACCEPTCONN => u32::from(facts.listening),
        raw::SO_PROTOCOL => base.protocol,
        raw::SO_DOMAIN => u32::from(base.family.number()),
        raw::SO_MARK | raw::SO_DEBUG | raw::SO_ZEROCOPY | SO_INCOMING_CPU | SO_BUSY_POLL => 0,
        raw::SO_LINGER => return Ok([u32::from(options.linger.0).to_ne_bytes(), options.linger.1.to_ne_bytes()].concat()),
        raw::SO_RCVTIMEO_OLD | raw::SO_RCVTIMEO_NEW => return Ok(timeval(options.receive_timeout)),
        raw::SO_SNDTIMEO_OLD | raw::SO_SNDTIMEO_NEW => return Ok(timeval(options.send_timeout)),
        raw::SO_PEERCRED => return Ok(facts.peer.iter().flat_map(|word| word.to_ne_bytes()).collect()),
        SO_COOKIE => return Ok(facts.cookie.to_ne_bytes().to_vec()),
        _ => return Err(Errno::NOPROTOOPT),
    };
    Ok(number.to_ne_bytes().to_vec())
}

fn timeval(nanoseconds: u64) -> Vec<u8> {
    [(nanoseconds / 1_000_000_000).to_ne_bytes(), (nanoseconds % 1_000_000_000 / 1000).to_ne_bytes()].concat()
}

/// Tell a host socket what was set. A hint that the host does not take is no reason to fail: the guest reads back its own value.
pub fn apply_all(host: &OwnedFd, base: &SocketBase) {
    let options = &base.options;
    if base.family != Family::Unix {
        let _ = sockopt::set_socket_broadcast(host, options.broadcast);
        let _ = sockopt::set_socket_keepalive(host, options.keep_alive);
        let _ = sockopt::set_socket_oobinline(host, options.inline_urgent);
        let _ = sockopt::set_socket_reuseaddr(host, options.reuse_address);
        let _ = sockopt::set_socket_reuseport(host, options.reuse_port);
        // Time spent lingering would be ours: only the abortive form is passed on.
        let _ = sockopt::set_socket_linger(host, (options.linger == (true, 0)).then_some(Duration::ZERO));
    }
    if let Some(bytes) = options.receive_buffer {
        let _ = sockopt::set_socket_recv_buffer_size(host, bytes as usize / 2);
    }
    if let Some(bytes) = options.send_buffer {
        let _ = sockopt::set_socket_send_buffer_size(host, bytes as usize / 2);
    }
    for &(level, option, value) in &options.numbers {
        apply_number(host, level, option, value);
    }
}

fn apply_number(host: &OwnedFd, level: u32, option: u32, value: u32) {
    let seconds = Duration::from_secs(u64::from(value));
    let byte = u8::try_from(value).unwrap_or(u8::MAX);
    let _ = match (level, option) {
        (LEVEL_TCP, TCP_NODELAY) => sockopt::set_tcp_nodelay(host, value != 0),
        (LEVEL_TCP, TCP_CORK) => sockopt::set_tcp_cork(host, value != 0),
        (LEVEL_TCP, TCP_KEEPIDLE) => sockopt::set_tcp_keepidle(host, seconds),
        (LEVEL_TCP, TCP_KEEPINTVL) => sockopt::set_tcp_keepintvl(host, seconds),
        (LEVEL_TCP, TCP_KEEPCNT) => sockopt::set_tcp_keepcnt(host, value),
        (LEVEL_TCP, TCP_QUICKACK) => sockopt::set_tcp_quickack(host, value != 0),
        (LEVEL_TCP, TCP_USER_TIMEOUT) => sockopt::set_tcp_user_timeout(host, value),
        (LEVEL_IP, IP_TOS) => sockopt::set_ip_tos(host, byte),
        (LEVEL_IP, IP_TTL) => sockopt::set_ip_ttl(host, value),
        (LEVEL_IPV6, IPV6_UNICAST_HOPS) => sockopt::set_ipv6_unicast_hops(host, Some(byte)),
        (LEVEL_IPV6, IPV6_TCLASS) => sockopt::set_ipv6_tclass(host, value),
        _ => Ok(()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { listening: false, peer: [1, 2, 3], cookie: 9 };

    fn tcp() -> SocketBase {
        SocketBase::new(Family::Inet, Kind::Stream, 6)
    }

    fn get_number(base: &SocketBase, level: u32, option: u32) -> i32 {
        integer(&get(base, FACTS, level, option).expect("option")).expect("four bytes")
    }

    #[test]
    fn what_is_set_is_read_back() {
        let mut base = tcp();
        for (level, option, value) in
            [(LEVEL_SOCKET, raw::SO_KEEPALIVE, 1), (LEVEL_TCP, TCP_NODELAY, 1), (LEVEL_TCP, TCP_KEEPIDLE, 30), (LEVEL_IP, IP_TOS, 16)]
        {
            set(&mut base, level, option, &i32::to_ne_bytes(value)).expect("allowed");
            assert_eq!(get_number(&base, level, option), value);
        }
        assert_eq!(get_number(&base, LEVEL_SOCKET, raw::SO_TYPE), 1);
        assert_eq!(get_number(&base, LEVEL_SOCKET, raw::SO_DOMAIN), 2);
    }

    #[test]
    fn buffers_are_doubled_and_bounded() {
        let mut base = tcp();
        for (asked, shown) in [(4096, 8192), (1, 2304), (i32::MAX, 425_984), (-5, 2304)] {
            set(&mut base, LEVEL_SOCKET, raw::SO_RCVBUF, &i32::to_ne_bytes(asked)).expect("allowed");
            assert_eq!(get_number(&base, LEVEL_SOCKET, raw::SO_RCVBUF), shown);
        }
    }

    #[test]
    fn short_values_and_unknown_options_are_refused() {
        let mut base = tcp();
        assert_eq!(set(&mut base, LEVEL_SOCKET, raw::SO_KEEPALIVE, &[1]), Err(Errno::INVAL));
        assert_eq!(set(&mut base, LEVEL_SOCKET, raw::SO_LINGER, &[1, 0, 0, 0]), Err(Errno::INVAL));
        assert_eq!(set(&mut base, LEVEL_SOCKET, 9999, &[0; 4]), Err(Errno::NOPROTOOPT));
        assert_eq!(set(&mut base, LEVEL_IPV6, raw::IPV6_V6ONLY, &[0; 4]), Err(Errno::NOPROTOOPT));
        assert_eq!(set(&mut base, LEVEL_TCP, TCP_KEEPIDLE, &[0; 4]), Err(Errno::INVAL));
        assert_eq!(set(&mut base, LEVEL_SOCKET, raw::SO_ZEROCOPY, &[1, 0, 0, 0]), Err(Errno::OPNOTSUPP));
        let mut udp = SocketBase::new(Family::Inet6, Kind::Datagram, 17);
        assert_eq!(set(&mut udp, LEVEL_TCP, TCP_NODELAY, &[0; 4]), Err(Errno::NOPROTOOPT));
    }

    #[test]
    fn timeouts_survive_the_round_trip() {
        let mut base = tcp();
        let value = timeval(1_500_000_000);
        set(&mut base, LEVEL_SOCKET, raw::SO_RCVTIMEO_OLD, &value).expect("allowed");
        assert_eq!((base.options.receive_timeout, get(&base, FACTS, LEVEL_SOCKET, raw::SO_RCVTIMEO_OLD)), (1_500_000_000, Ok(value)));
        let bad = [5_i64.to_ne_bytes(), 1_000_000_i64.to_ne_bytes()].concat();
        assert_eq!(set(&mut base, LEVEL_SOCKET, raw::SO_RCVTIMEO_OLD, &bad), Err(Errno::DOM));
    }
}
