//! Listeners, client streams and host sockets as programs, and the host, use them.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};

use linux_raw_sys::general::*;
use linux_raw_sys::net as raw;

use super::socket_address::{Address, Family};
use super::stream_host::{StreamHandle, WaitKind};
use super::test_machine::{MAIN, Machine, Reply};
use crate::config::{NetRule, SandboxConfig};
use crate::linux::Errno;

const TCP: u64 = raw::SOCK_STREAM as u64;
const UDP: u64 = raw::SOCK_DGRAM as u64;
const INET: u64 = raw::AF_INET as u64;
const NONBLOCK: u64 = O_NONBLOCK as u64;

fn inet(text: &str) -> Address {
    Address::Inet(text.parse().expect("address"))
}

fn put_address(machine: &Machine, text: &str) -> u64 {
    machine.put(0x3000, &inet(text).encode(Family::Inet))
}

fn socket(machine: &mut Machine, kind: u64) -> u64 {
    machine.ok(__NR_socket, &[INET, kind, 0])
}

/// A listening socket and its port.
fn listener(machine: &mut Machine, kind: u64) -> (u64, u16) {
    let fd = socket(machine, kind);
    let at = put_address(machine, "127.0.0.1:0");
    machine.ok(__NR_bind, &[fd, at, 16]);
    machine.ok(__NR_listen, &[fd, 16]);
    (fd, local_port(machine, fd))
}

fn local_port(machine: &mut Machine, fd: u64) -> u16 {
    let (at, length) = (machine.base + 0x3100, machine.put(0x3200, &128_u32.to_ne_bytes()));
    machine.ok(__NR_getsockname, &[fd, at, length]);
    assert_eq!(machine.word(0x3200), 16);
    let bytes = machine.get(0x3100, 4);
    u16::from_be_bytes([bytes[2], bytes[3]])
}

fn client(machine: &mut Machine) -> StreamHandle {
    let id = machine.kernel.listeners()[0].id;
    machine.kernel.connect_stream(id, &inet("192.0.2.7:4711")).expect("queued")
}

fn write(machine: &mut Machine, fd: u64, bytes: &[u8]) -> Reply {
    let at = machine.put(0x1_0000, bytes);
    machine.call(__NR_write, &[fd, at, bytes.len() as u64])
}

fn read(machine: &mut Machine, fd: u64) -> Result<Vec<u8>, Errno> {
    let at = machine.base + 0x8_0000;
    match machine.call(__NR_read, &[fd, at, 65_536]) {
        Reply::Value(count) => Ok(machine.get(0x8_0000, count as usize)),
        Reply::Error(errno) => Err(errno),
        Reply::Sleeps => panic!("the read sleeps"),
    }
}

fn poll(machine: &mut Machine, fd: u64) -> u16 {
    let at = machine.put(0x3300, &[&(fd as i32).to_ne_bytes()[..], &0x2007_u16.to_ne_bytes(), &[0; 2]].concat());
    machine.ok(__NR_poll, &[at, 1, 0]);
    let bytes = machine.get(0x3300, 8);
    u16::from_ne_bytes([bytes[6], bytes[7]])
}

#[test]
fn a_client_of_the_host_is_served_in_memory() {
    let mut machine = Machine::with_network();
    let (fd, port) = listener(&mut machine, TCP);
    let listeners = machine.kernel.listeners();
    assert_eq!((listeners.len(), listeners[0].listening, &listeners[0].address), (1, true, &inet(&format!("127.0.0.1:{port}"))));
    let thread = machine.thread();
    let (address, length) = (machine.base + 0x3100, machine.put(0x3200, &128_u32.to_ne_bytes()));
    assert_eq!(machine.call_as(thread, __NR_accept4, &[fd, address, length, NONBLOCK]), Reply::Sleeps);
    assert_eq!(machine.kernel.waits_for_clients(), Some(WaitKind::Accept));
    let stream = client(&mut machine);
    assert!(!machine.kernel.stream_status(stream).accepted);
    assert_eq!(machine.kernel.stream_push(stream, b"GET /"), 5);
    let Reply::Value(connection) = machine.resume(thread) else { panic!("not accepted") };
    assert!(machine.kernel.stream_status(stream).accepted);
    assert_eq!(machine.get(0x3100, 16), inet("192.0.2.7:4711").encode(Family::Inet));
    assert_eq!(read(&mut machine, connection), Ok(b"GET /".to_vec()));
    assert_eq!(read(&mut machine, connection), Err(Errno::AGAIN));
    machine.kernel.stream_finish(stream);
    assert_eq!(poll(&mut machine, connection), 0x2005);
    assert_eq!(read(&mut machine, connection), Ok(Vec::new()));
    assert_eq!(write(&mut machine, connection, b"200 OK"), Reply::Value(6));
    machine.ok(__NR_shutdown, &[connection, 1]);
    let status = machine.kernel.stream_status(stream);
    assert_eq!((status.guest_finished, status.guest_closed, status.output_len), (true, false, 6));
    machine.ok(__NR_close, &[connection]);
    assert!(machine.kernel.stream_status(stream).guest_closed);
    assert_eq!(machine.kernel.stream_take(stream, 100), b"200 OK");
    machine.kernel.stream_release(stream);
    assert_eq!(machine.kernel.files.channels, super::channel::Channels::default());
}

#[test]
fn a_client_that_goes_away_is_a_reset() {
    let mut machine = Machine::with_network();
    let (fd, _) = listener(&mut machine, TCP | NONBLOCK);
    let stream = client(&mut machine);
    let connection = machine.ok(__NR_accept, &[fd, 0, 0]);
    machine.kernel.stream_push(stream, b"half");
    machine.kernel.stream_release(stream);
    assert_eq!(poll(&mut machine, connection) & 0x18, 0x18);
    assert_eq!(read(&mut machine, connection), Ok(b"half".to_vec()));
    assert_eq!(read(&mut machine, connection), Err(Errno::CONNRESET));
    assert_eq!(write(&mut machine, connection, b"x"), Reply::Error(Errno::PIPE));
    assert_ne!(machine.kernel.pending_signals(MAIN), 0);
    // A client that gives up in the queue is never accepted.
    let stream = client(&mut machine);
    machine.kernel.stream_release(stream);
    assert_eq!(machine.errno(__NR_accept, &[fd, 0, 0]), Errno::AGAIN);
}

#[test]
fn a_stream_takes_what_fits_and_goes_on_when_the_host_has_taken_it() {
    let mut machine = Machine::with_network();
    let (fd, _) = listener(&mut machine, TCP);
    let stream = client(&mut machine);
    let connection = machine.ok(__NR_accept4, &[fd, 0, 0, NONBLOCK]);
    let at = machine.put(0x1_0000, &[9; 2 << 20]);
    assert_eq!(machine.ok(__NR_write, &[connection, at, 2 << 20]), 1 << 20);
    assert_eq!(write(&mut machine, connection, b"x"), Reply::Error(Errno::AGAIN));
    assert_eq!(poll(&mut machine, connection), 0);
    assert_eq!(machine.kernel.stream_take(stream, 2 << 20).len(), 1 << 20);
    assert_eq!(poll(&mut machine, connection), 4);
}

#[test]
fn bytes_of_a_stream_can_be_thrown_away_unseen() {
    let mut machine = Machine::with_network();
    let (fd, _) = listener(&mut machine, TCP);
    let stream = client(&mut machine);
    let connection = machine.ok(__NR_accept, &[fd, 0, 0]);
    machine.kernel.stream_push(stream, b"skip this");
    assert_eq!(machine.ok(__NR_recvfrom, &[connection, 0, 5, u64::from(raw::MSG_TRUNC), 0, 0]), 5);
    assert_eq!(read(&mut machine, connection), Ok(b"this".to_vec()));
}

#[test]
fn which_call_waits_for_clients_is_seen_through_nested_sets() {
    let mut machine = Machine::with_network();
    let (fd, _) = listener(&mut machine, TCP);
    let (outer, inner) = (machine.ok(__NR_epoll_create1, &[0]), machine.ok(__NR_epoll_create1, &[0]));
    for (set, member) in [(outer, inner), (inner, fd)] {
        let at = machine.put(0x3400, &[&1_u32.to_ne_bytes()[..], &[0; 8]].concat());
        machine.ok(__NR_epoll_ctl, &[set, u64::from(EPOLL_CTL_ADD), member, at]);
    }
    assert_eq!(machine.kernel.waits_for_clients(), None);
    let at = machine.base;
    assert_eq!(machine.call(__NR_epoll_wait, &[outer, at, 8, u64::MAX]), Reply::Sleeps);
    assert_eq!(machine.kernel.waits_for_clients(), Some(WaitKind::Epoll));
    client(&mut machine);
    assert_eq!(machine.resume(MAIN), Reply::Value(1));
}

#[test]
fn a_busy_port_is_busy_at_bind() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut machine = Machine::with_network();
    let fd = socket(&mut machine, TCP);
    let at = put_address(&machine, &taken.local_addr().expect("address").to_string());
    assert_eq!(machine.errno(__NR_bind, &[fd, at, 16]), Errno::ADDRINUSE);
    assert_eq!(machine.kernel.bind_failures()[0].errno, Errno::ADDRINUSE);
    // And so is one that another socket of the program has.
    let (_, port) = listener(&mut machine, TCP);
    let at = put_address(&machine, &format!("0.0.0.0:{port}"));
    assert_eq!(machine.errno(__NR_bind, &[fd, at, 16]), Errno::ADDRINUSE);
}

#[test]
fn nothing_is_reached_without_a_grant() {
    let mut machine = Machine::new();
    let fd = socket(&mut machine, TCP);
    let at = put_address(&machine, "127.0.0.1:80");
    assert_eq!(machine.errno(__NR_bind, &[fd, at, 16]), Errno::ACCESS);
    assert_eq!(machine.errno(__NR_connect, &[fd, at, 16]), Errno::ACCESS);
    assert_eq!(machine.errno(__NR_listen, &[fd, 5]), Errno::ACCESS);
    let udp = socket(&mut machine, UDP);
    let bytes = machine.base;
    assert_eq!(machine.errno(__NR_sendto, &[udp, bytes, 1, 0, at, 16]), Errno::ACCESS);
    assert_eq!(machine.errno(__NR_connect, &[udp, at, 16]), Errno::ACCESS);
    let unix = machine.ok(__NR_socket, &[1, TCP, 0]);
    let name = machine.put(0x3000, b"\x01\0/run/docker.sock\0");
    assert!(matches!(machine.errno(__NR_connect, &[unix, name, 19]), Errno::NOENT | Errno::ACCESS));
    let name = machine.put(0x3000, b"\x01\0\0abstract");
    assert_eq!(machine.errno(__NR_connect, &[unix, name, 11]), Errno::ACCESS);
    for (domain, kind, errno) in [(16, 3, Errno::AFNOSUPPORT), (17, 3, Errno::PERM), (2, 3, Errno::PERM), (2, 5, Errno::SOCKTNOSUPPORT)] {
        assert_eq!(machine.errno(__NR_socket, &[domain, kind, 0]), errno);
    }
}

#[test]
fn a_mapped_address_needs_the_ipv4_grant() {
    let rule = NetRule { address: Some("127.0.0.1".parse().expect("address")), port: None };
    let mut machine = Machine::with(&SandboxConfig { connect: vec![rule], ..SandboxConfig::default() });
    let host = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = host.local_addr().expect("address").port();
    let fd = machine.ok(__NR_socket, &[u64::from(raw::AF_INET6), TCP, 0]);
    let at = machine.put(0x3000, &inet(&format!("[::ffff:127.0.0.1]:{port}")).encode(Family::Inet6));
    let reply = machine.call(__NR_connect, &[fd, at, 28]);
    assert_eq!(if reply == Reply::Sleeps { machine.settle(MAIN) } else { reply }, Reply::Value(0));
    let other = machine.ok(__NR_socket, &[u64::from(raw::AF_INET6), TCP, 0]);
    let at = machine.put(0x3000, &inet(&format!("[::ffff:127.0.0.2]:{port}")).encode(Family::Inet6));
    assert_eq!(machine.errno(__NR_connect, &[other, at, 28]), Errno::ACCESS);
}

#[test]
fn outgoing_tcp_speaks_with_the_host() {
    let host = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut machine = Machine::with_network();
    let fd = socket(&mut machine, TCP | NONBLOCK);
    let at = put_address(&machine, &host.local_addr().expect("address").to_string());
    match machine.call(__NR_connect, &[fd, at, 16]) {
        Reply::Value(0) | Reply::Error(Errno::INPROGRESS) => {}
        other => panic!("{other:?}"),
    }
    let (mut peer, from) = host.accept().expect("connection");
    assert_eq!(poll(&mut machine, fd), 4);
    assert_eq!(local_port(&mut machine, fd), from.port());
    assert!(matches!(machine.call(__NR_connect, &[fd, at, 16]), Reply::Error(Errno::ISCONN) | Reply::Value(0)));
    assert_eq!(write(&mut machine, fd, b"ping"), Reply::Value(4));
    let mut bytes = [0; 4];
    peer.read_exact(&mut bytes).expect("four bytes");
    assert_eq!((&bytes, read(&mut machine, fd)), (b"ping", Err(Errno::AGAIN)));
    peer.write_all(b"pong").expect("written");
    let at = machine.base;
    machine.ok(__NR_fcntl, &[fd, u64::from(F_SETFL), 0]);
    if machine.call(__NR_recvfrom, &[fd, at, 4, u64::from(raw::MSG_WAITALL), 0, 0]) == Reply::Sleeps {
        assert!(!machine.kernel.host_polls().is_empty());
        assert_eq!(machine.settle(MAIN), Reply::Value(4));
    }
    assert_eq!(machine.get(0, 4), b"pong");
    drop(peer);
    assert_eq!(machine.call(__NR_read, &[fd, at, 4]), Reply::Value(0));
    // In a fork the connection is lost, and says so.
    machine.kernel.files.after_fork();
    assert_eq!(machine.errno(__NR_write, &[fd, at, 4]), Errno::CONNRESET);
}

#[test]
fn a_refused_connection_is_refused() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("address");
    let mut machine = Machine::with_network();
    let fd = socket(&mut machine, TCP);
    let at = put_address(&machine, &free.to_string());
    let reply = machine.call(__NR_connect, &[fd, at, 16]);
    let reply = if reply == Reply::Sleeps { machine.settle(MAIN) } else { reply };
    assert_eq!(reply, Reply::Error(Errno::CONNREFUSED));
}

#[test]
fn a_program_that_connects_to_itself_stays_inside() {
    let mut machine = Machine::with(&SandboxConfig { listen: vec![NetRule { address: None, port: None }], ..SandboxConfig::default() });
    let (fd, port) = listener(&mut machine, TCP);
    let client = socket(&mut machine, TCP | NONBLOCK);
    let at = put_address(&machine, &format!("127.0.0.1:{port}"));
    machine.ok(__NR_connect, &[client, at, 16]);
    let server = machine.ok(__NR_accept4, &[fd, 0, 0, NONBLOCK]);
    assert_eq!(write(&mut machine, client, b"healthy?"), Reply::Value(8));
    assert_eq!(read(&mut machine, server), Ok(b"healthy?".to_vec()));
    machine.ok(__NR_close, &[client]);
    assert_eq!(poll(&mut machine, server), 0x2005);
    assert_eq!(read(&mut machine, server), Ok(Vec::new()));
    // As over TCP: the first write after the peer's close is accepted, the second one breaks.
    assert_eq!(write(&mut machine, server, b"yes"), Reply::Value(3));
    assert_eq!(write(&mut machine, server, b"yes"), Reply::Error(Errno::PIPE));
}

#[test]
fn udp_tells_where_a_message_came_from() {
    let host = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let mut machine = Machine::with_network();
    let fd = socket(&mut machine, UDP | NONBLOCK);
    let at = put_address(&machine, &host.local_addr().expect("address").to_string());
    let bytes = machine.put(0, b"query");
    assert_eq!(machine.errno(__NR_sendto, &[fd, bytes, 5, 0, 0, 0]), Errno::DESTADDRREQ);
    assert_eq!(machine.ok(__NR_sendto, &[fd, bytes, 5, 0, at, 16]), 5);
    let mut buffer = [0; 16];
    let (count, from) = host.recv_from(&mut buffer).expect("a message");
    assert_eq!(&buffer[..count], b"query");
    host.send_to(b"an answer", from).expect("sent");
    let (address, length) = (machine.base + 0x3100, machine.put(0x3200, &16_u32.to_ne_bytes()));
    let flags = u64::from(raw::MSG_TRUNC);
    assert_eq!(machine.ok(__NR_recvfrom, &[fd, bytes, 4, flags, address, length]), 9);
    assert_eq!((machine.get(0, 5), machine.word(0x3200)), (b"an ay".to_vec(), 16));
    assert_eq!(machine.get(0x3100, 16), inet(&host.local_addr().expect("address").to_string()).encode(Family::Inet));
    assert_eq!(machine.errno(__NR_recvfrom, &[fd, bytes, 4, 0, 0, 0]), Errno::AGAIN);
    // AF_UNSPEC dissolves a connection.
    machine.ok(__NR_connect, &[fd, at, 16]);
    assert_eq!(machine.ok(__NR_write, &[fd, bytes, 1]), 1);
    let unspecified = machine.put(0x3000, &[0; 16]);
    machine.ok(__NR_connect, &[fd, unspecified, 16]);
    assert_eq!(machine.errno(__NR_write, &[fd, bytes, 1]), Errno::DESTADDRREQ);
}

fn header(machine: &Machine, name: (u64, u32), segments: (u64, u64), control: (u64, u64)) -> u64 {
    let words = [name.0, u64::from(name.1), segments.0, segments.1, control.0, control.1, 0];
    machine.put(0x4000, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>())
}

#[test]
fn hostile_message_headers_get_errnos() {
    let mut machine = Machine::new();
    let at = machine.base;
    machine.ok(__NR_socketpair, &[1, UDP, 0, at]);
    let (one, other) = (u64::from(machine.word(0)), u64::from(machine.word(4)));
    let segment = machine.put(0x100, &[at.to_ne_bytes(), 4_u64.to_ne_bytes()].concat());
    for (name, segments, control, errno) in [
        ((at, u32::MAX), (segment, 1), (0, 0), Errno::INVAL),
        ((0, 0), (segment, 1025), (0, 0), Errno::MSGSIZE),
        ((0, 0), (segment, u64::MAX), (0, 0), Errno::MSGSIZE),
        ((0, 0), (1 << 46, 1), (0, 0), Errno::FAULT),
        ((0, 0), (segment, 1), (at, u64::MAX), Errno::NOBUFS),
        ((0, 0), (segment, 1), (1 << 46, 24), Errno::FAULT),
    ] {
        let message = header(&machine, name, segments, control);
        assert_eq!(machine.errno(__NR_sendmsg, &[one, message, 0]), errno);
    }
    let rights = machine.put(0x200, &[&20_u64.to_ne_bytes()[..], &1_u32.to_ne_bytes(), &1_u32.to_ne_bytes(), &[0; 8]].concat());
    let message = header(&machine, (0, 0), (segment, 1), (rights, 24));
    assert_eq!(machine.errno(__NR_sendmsg, &[one, message, 0]), Errno::OPNOTSUPP);
    let message = header(&machine, (0, 0), (segment, 1), (0, 0));
    assert_eq!(machine.ok(__NR_sendmsg, &[one, message, 0]), 4);
    let message = header(&machine, (at + 0x300, u32::MAX >> 1), (segment, 1), (at + 0x400, 100));
    assert_eq!(machine.ok(__NR_recvmsg, &[other, message, 0]), 4);
    assert_eq!((machine.word(0x4008), machine.long(0x4028), machine.word(0x4030)), (0, 0, 0));
}

#[test]
fn many_messages_are_counted() {
    let mut machine = Machine::new();
    let at = machine.base;
    machine.ok(__NR_socketpair, &[1, UDP | NONBLOCK, 0, at]);
    let (one, other) = (u64::from(machine.word(0)), u64::from(machine.word(4)));
    let segment = machine.put(0x100, &[at.to_ne_bytes(), 4_u64.to_ne_bytes()].concat());
    let entry: Vec<u8> = [0, 0, segment, 1, 0, 0, 0, 0].iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
    let messages = machine.put(0x4000, &entry.repeat(5));
    assert_eq!(machine.ok(__NR_sendmmsg, &[one, messages, 3, 0]), 3);
    assert_eq!(machine.word(0x4000 + 56), 4);
    let time = machine.put(0x200, &[0; 16]);
    assert_eq!(machine.ok(__NR_recvmmsg, &[other, messages, 5, 0, time]), 3);
    assert_eq!(machine.errno(__NR_recvmmsg, &[other, messages, 5, 0, 0]), Errno::AGAIN);
    let bad = machine.put(0x200, &[1_i64.to_ne_bytes(), 1_000_000_000_i64.to_ne_bytes()].concat());
    assert_eq!(machine.errno(__NR_recvmmsg, &[other, messages, 5, 0, bad]), Errno::INVAL);
    // More than IOV_MAX is cut down, not refused; the first bad header ends it.
    assert_eq!(machine.errno(__NR_sendmmsg, &[one, (64 << 30) - 64, u64::from(u32::MAX), 0]), Errno::FAULT);
}

#[test]
fn options_are_read_back_and_errors_are_told_once() {
    let mut machine = Machine::with_network();
    let (fd, _) = listener(&mut machine, TCP);
    let (value, length) = (machine.put(0x100, &1_u32.to_ne_bytes()), machine.put(0x200, &4_u32.to_ne_bytes()));
    machine.ok(__NR_setsockopt, &[fd, 6, 1, value, 4]);
    for (level, option, expected) in [(6, 1, 1), (1, 3, 1), (1, 30, 1), (1, 39, 2), (1, 38, 6), (1, 4, 0)] {
        machine.ok(__NR_getsockopt, &[fd, level, option, value, length]);
        assert_eq!(machine.word(0x100), expected);
    }
    assert_eq!(machine.errno(__NR_setsockopt, &[fd, 6, 1, value, u64::from(u32::MAX)]), Errno::INVAL);
    assert_eq!(machine.errno(__NR_setsockopt, &[fd, 1, 9, 1 << 46, 4]), Errno::FAULT);
    let stream = client(&mut machine);
    let connection = machine.ok(__NR_accept, &[fd, 0, 0]);
    machine.kernel.stream_release(stream);
    machine.ok(__NR_getsockopt, &[connection, 1, 4, value, length]);
    assert_eq!(machine.word(0x100), 104);
    machine.ok(__NR_getsockopt, &[connection, 1, 4, value, length]);
    assert_eq!(machine.word(0x100), 0);
}

#[test]
fn a_fork_is_a_clone_and_a_reset_brings_everything_back() {
    let mut machine = Machine::with_network();
    let (fd, _) = listener(&mut machine, TCP | NONBLOCK);
    let snapshot = machine.kernel.clone();
    let stream = client(&mut machine);
    let connection = machine.ok(__NR_accept, &[fd, 0, 0]);
    machine.ok(__NR_close, &[fd]);
    machine.kernel = snapshot;
    assert_eq!(machine.errno(__NR_read, &[connection, 0, 0]), Errno::BADF);
    assert_eq!(machine.errno(__NR_accept, &[fd, 0, 0]), Errno::AGAIN);
    assert!(machine.kernel.stream_status(stream).guest_closed);
}
