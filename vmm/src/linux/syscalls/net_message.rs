//! Sending and receiving on sockets: `send(2)`, `recv(2)` and their relatives with messages.

use linux_raw_sys::{general, net as raw};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::net::{read_address, write_address};
use crate::limits::{IOV_MAX, SOCKET_ADDRESS_MAX};
use crate::linux::file::ops::{self, Received, RecvFlags, SendFlags, Step};
use crate::linux::file::socket_address::{Address, Family, Kind, Named};
use crate::linux::file::{File, FileId};
use crate::linux::table::{Arg, Entry, full, partial};
use crate::linux::{Answer, Attempt, Call, Errno, Outcome, Wait};
use crate::memory::Segment;

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(general::__NR_sendto, "sendto", &[Arg::Fd, Arg::Buffer, Arg::Uint, Arg::Hex, Arg::Pointer, Arg::Uint], sendto),
    full(general::__NR_recvfrom, "recvfrom", &[Arg::Fd, Arg::OutBuffer, Arg::Uint, Arg::Hex, Arg::Pointer, Arg::Pointer], recvfrom),
    partial(general::__NR_sendmsg, "sendmsg", &[Arg::Fd, Arg::Pointer, Arg::Hex], sendmsg, NO_RIGHTS),
    partial(general::__NR_recvmsg, "recvmsg", &[Arg::Fd, Arg::Pointer, Arg::Hex], recvmsg, "no control messages but SCM_CREDENTIALS"),
    partial(general::__NR_sendmmsg, "sendmmsg", &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Hex], sendmmsg, NO_RIGHTS),
    partial(
        general::__NR_recvmmsg,
        "recvmmsg",
        &[Arg::Fd, Arg::Pointer, Arg::Uint, Arg::Hex, Arg::Timespec],
        recvmmsg,
        "no control messages but SCM_CREDENTIALS",
    ),
];

const NO_RIGHTS: &str = "descriptors cannot be passed (SCM_RIGHTS)";
/// Most bytes of control messages (net.core.optmem_max); ENOBUFS.
const CONTROL_MAX: u64 = 20_480;
/// SCM_RIGHTS and SCM_CREDENTIALS.
const SCM_RIGHTS: u32 = 1;
const SCM_CREDENTIALS: u32 = 2;
/// MSG_FASTOPEN.
const MSG_FASTOPEN: u32 = 0x2000_0000;
/// MSG_WAITFORONE.
const MSG_WAITFORONE: u32 = 0x1_0000;
/// UDP_SEGMENT, which would make many packets of one message.
const UDP_SEGMENT: u32 = 103;

/// `struct user_msghdr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Header {
    name: u64,
    name_length: u32,
    padding: u32,
    segments: u64,
    segment_count: u64,
    control: u64,
    control_length: u64,
    flags: u32,
    padding_2: u32,
}

const HEADER_BYTES: u64 = 56;
/// `struct mmsghdr`: a header and the transferred length.
const MULTI_BYTES: u64 = 64;
const _: () = assert!(size_of::<Header>() as u64 == HEADER_BYTES);

fn send_flags(flags: u32) -> Result<SendFlags, Errno> {
    if flags & (raw::MSG_OOB | MSG_FASTOPEN) != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    Ok(SendFlags::from_bits_truncate(flags))
}

fn recv_flags(call: &Call<'_>, file: FileId, flags: u32) -> Result<RecvFlags, Errno> {
    let family = call.kernel.files.get(file)?.file.socket()?.family;
    if flags & raw::MSG_OOB != 0 {
        return Err(if family == Family::Unix { Errno::OPNOTSUPP } else { Errno::INVAL });
    }
    // Nothing is ever put on the error queue.
    if flags & raw::MSG_ERRQUEUE != 0 {
        return Err(Errno::AGAIN);
    }
    Ok(RecvFlags::from_bits_truncate(flags))
}

/// The file of argument 0, which has to be a socket.
fn socket(call: &Call<'_>) -> Result<FileId, Errno> {
    let file = call.file(0)?;
    call.kernel.files.get(file)?.file.socket()?;
    Ok(file)
}

/// A destination for this socket.
fn destination(call: &Call<'_>, file: FileId, address: u64, length: u32) -> Result<Option<Address>, Errno> {
    if address == 0 || length == 0 {
        return Ok(None);
    }
    let base = call.kernel.files.get(file)?.file.socket()?;
    match read_address(call, address, length)? {
        Named::Address(family, named) if family == base.family => Ok(Some(named)),
        Named::Address(Family::Inet, named) if base.family == Family::Inet6 => Ok(Some(named.seen_by(Family::Inet6))),
        // TCP never looks at the address, and AF_UNSPEC has always passed for AF_INET.
        _ if base.kind == Kind::Stream && base.family != Family::Unix => Ok(None),
        Named::Unspecified | Named::Address(..) => Err(Errno::AFNOSUPPORT),
    }
}

/// `ssize_t sendto(int fd, const void *buffer, size_t length, int flags, const struct sockaddr *address, socklen_t length)`.
fn sendto(call: &mut Call<'_>) -> Answer {
    let file = socket(call)?;
    let flags = send_flags(call.uint(3))?;
    let to = destination(call, file, call.args[4], call.uint(5))?;
    let segments = [Segment { address: call.args[1], length: call.args[2] }];
    Ok(answer(ops::send(call, file, &segments, flags, to.as_ref())?))
}

fn answer(step: Step<u64>) -> Outcome {
    match step {
        Step::Done(count) => Outcome::Return(count),
        Step::Block(wait) => Outcome::Block(wait),
    }
}

/// `ssize_t recvfrom(int fd, void *buffer, size_t length, int flags, struct sockaddr *address, socklen_t *length)`.
fn recvfrom(call: &mut Call<'_>) -> Answer {
    let file = socket(call)?;
    let flags = recv_flags(call, file, call.uint(3))?;
    let segments = [Segment { address: call.args[1], length: call.args[2] }];
    match ops::receive(call, file, &segments, flags)? {
        Step::Block(wait) => Ok(Outcome::Block(wait)),
        Step::Done(received) => {
            if call.args[4] != 0 {
                let source = source_bytes(call, file, &received)?;
                write_address(call, &source, call.args[4], call.args[5])?;
            }
            Ok(Outcome::Return(if flags.contains(RecvFlags::TRUNC) { received.full } else { received.count }))
        }
    }
}

/// The sender's address as the guest sees it; connected streams name none.
fn source_bytes(call: &Call<'_>, file: FileId, received: &Received) -> Result<Vec<u8>, Errno> {
    let family = call.kernel.files.get(file)?.file.socket()?.family;
    Ok(received.source.as_ref().filter(|source| **source != Address::Unnamed).map_or_else(Vec::new, |source| source.encode(family)))
}

/// `ssize_t sendmsg(int fd, const struct msghdr *message, int flags)`.
fn sendmsg(call: &mut Call<'_>) -> Answer {
    let file = socket(call)?;
    let flags = send_flags(call.uint(2))?;
    Ok(answer(send_message(call, file, call.args[1], flags)?))
}

fn read_header(call: &Call<'_>, address: u64) -> Result<(Header, Vec<Segment>), Errno> {
    let header: Header = call.memory().read(address)?;
    if header.name_length.cast_signed() < 0 && header.name != 0 {
        return Err(Errno::INVAL);
    }
    if header.segment_count > IOV_MAX as u64 {
        return Err(Errno::MSGSIZE);
    }
    let segments = call.memory().read_iovec(header.segments, header.segment_count)?;
    Ok((header, segments))
}

fn send_message(call: &mut Call<'_>, file: FileId, address: u64, flags: SendFlags) -> Result<Step<u64>, Errno> {
    let (header, segments) = read_header(call, address)?;
    // Unlike sendto, which refuses longer ones, sendmsg cuts the length down.
    let to = destination(call, file, header.name, header.name_length.min(SOCKET_ADDRESS_MAX as u32))?;
    check_control(call, file, &header)?;
    ops::send(call, file, &segments, flags, to.as_ref())
}

/// Look at every control message: descriptors cannot be passed, the rest is harmless or refused.
fn check_control(call: &mut Call<'_>, file: FileId, header: &Header) -> Result<(), Errno> {
    if header.control == 0 || header.control_length == 0 {
        return Ok(());
    }
    if header.control_length > CONTROL_MAX {
        return Err(Errno::NOBUFS);
    }
    let family = call.kernel.files.get(file)?.file.socket()?.family;
    let bytes = call.memory().read_vec(header.control, usize::try_from(header.control_length).map_err(|_| Errno::NOBUFS)?)?;
    let mut rest = bytes.as_slice();
    while let Some(head) = rest.first_chunk::<16>() {
        let [length, level_and_type] =
            [0, 8].map(|at| head.get(at..).and_then(|part| part.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word)));
        let length = usize::try_from(length).ok().filter(|&length| length >= 16 && length <= rest.len()).ok_or(Errno::INVAL)?;
        let (level, kind) = (level_and_type as u32, (level_and_type >> 32) as u32);
        if family == Family::Unix && level == raw::SOL_SOCKET && kind == SCM_RIGHTS {
            call.kernel.note("the program tried to pass a descriptor over a unix socket, which is not supported".into());
            return Err(Errno::OPNOTSUPP);
        }
        let credentials = family == Family::Unix && level == raw::SOL_SOCKET && kind == SCM_CREDENTIALS;
        let about_packets = family != Family::Unix && (level == raw::IPPROTO_IP as u32 || level == raw::IPPROTO_IPV6 as u32);
        let segmentation = level == raw::IPPROTO_UDP as u32 && kind == UDP_SEGMENT;
        if segmentation || !(credentials || about_packets) {
            return Err(Errno::INVAL);
        }
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(())
}

/// `ssize_t recvmsg(int fd, struct msghdr *message, int flags)`.
fn recvmsg(call: &mut Call<'_>) -> Answer {
    let file = socket(call)?;
    let flags = recv_flags(call, file, call.uint(2))?;
    match receive_message(call, file, call.args[1], flags)? {
        Step::Done(count) => Ok(Outcome::Return(count)),
        Step::Block(wait) => Ok(Outcome::Block(wait)),
    }
}

fn receive_message(call: &mut Call<'_>, file: FileId, address: u64, flags: RecvFlags) -> Result<Step<u64>, Errno> {
    let (header, segments) = read_header(call, address)?;
    let received = match ops::receive(call, file, &segments, flags)? {
        Step::Done(received) => received,
        Step::Block(wait) => return Ok(Step::Block(wait)),
    };
    if header.name != 0 {
        let source = source_bytes(call, file, &received)?;
        let room = source.len().min(header.name_length as usize);
        call.memory().write_bytes(header.name, source.get(..room).unwrap_or(&source))?;
        call.memory().write(field(address, 8)?, &(source.len() as u32))?;
    }
    let messages = matches!(call.kernel.files.get(file)?.file.socket()?.kind, Kind::Datagram | Kind::Packet);
    let mut out_flags = received.flags;
    if messages && received.full > received.count {
        out_flags |= raw::MSG_TRUNC;
    }
    let control = credentials(call, file)?;
    let control = if header.control == 0 { Vec::new() } else { control };
    let room = usize::try_from(header.control_length).unwrap_or(usize::MAX).min(control.len());
    if room < control.len() {
        out_flags |= raw::MSG_CTRUNC;
    }
    call.memory().write_bytes(header.control, control.get(..room).unwrap_or(&control))?;
    call.memory().write(field(address, 40)?, &(room as u64))?;
    call.memory().write(field(address, 48)?, &out_flags)?;
    Ok(Step::Done(if flags.contains(RecvFlags::TRUNC) && messages { received.full } else { received.count }))
}

fn field(address: u64, offset: u64) -> Result<u64, Errno> {
    address.checked_add(offset).ok_or(Errno::FAULT)
}

/// SCM_CREDENTIALS for a unix socket of this VM that asked for it: whoever sends is this same process.
fn credentials(call: &Call<'_>, file: FileId) -> Result<Vec<u8>, Errno> {
    let File::Pair(end) = &call.kernel.files.get(file)?.file else { return Ok(Vec::new()) };
    if !end.base.options.pass_credentials {
        return Ok(Vec::new());
    }
    let process = &call.kernel.process;
    let words = [28, 0, raw::SOL_SOCKET, SCM_CREDENTIALS, process.pid.cast_unsigned(), process.identity.uid, process.identity.gid, 0];
    Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
}

/// `int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)`.
fn sendmmsg(call: &mut Call<'_>) -> Answer {
    let file = socket(call)?;
    let flags = send_flags(call.uint(3))?;
    // More than that are not refused, but left for the next call.
    let count = u64::from(call.uint(2)).min(IOV_MAX as u64);
    for sent in 0..count {
        let at = field(call.args[1], sent * MULTI_BYTES)?;
        // Once something has been sent the call must end with that: errors and waits belong to the next one.
        let flags = if sent > 0 { flags | SendFlags::DONTWAIT } else { flags };
        match send_message(call, file, at, flags) {
            Ok(Step::Done(bytes)) => {
                call.progress = 0;
                let stored = field(at, HEADER_BYTES).and_then(|at| call.memory().write(at, &u32::try_from(bytes).unwrap_or(u32::MAX)));
                if let Err(errno) = stored {
                    return if sent > 0 { Ok(Outcome::Return(sent)) } else { Err(errno) };
                }
            }
            _ if sent > 0 => return Ok(Outcome::Return(sent)),
            Ok(Step::Block(wait)) => return Ok(Outcome::Block(wait)),
            Err(errno) => return Err(errno),
        }
    }
    Ok(Outcome::Return(count))
}

/// `int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout)`: the progress of the
/// call is the number of messages that it has received.
fn recvmmsg(call: &mut Call<'_>) -> Answer {
    let timeout = super::poll::read_timeout(call, call.args[4])?;
    let file = socket(call)?;
    let flags = recv_flags(call, file, call.uint(3))? - RecvFlags::WAITALL;
    let count = u64::from(call.uint(2)).min(IOV_MAX as u64);
    let mut received = call.progress;
    while received < count {
        let at = field(call.args[1], received * MULTI_BYTES)?;
        let hurry = received > 0 && call.uint(3) & MSG_WAITFORONE != 0;
        call.progress = 0;
        match receive_message(call, file, at, if hurry { flags | RecvFlags::DONTWAIT } else { flags }) {
            Ok(Step::Done(bytes)) => {
                received += 1;
                call.memory().write(field(at, HEADER_BYTES)?, &u32::try_from(bytes).unwrap_or(u32::MAX))?;
            }
            Ok(Step::Block(wait)) => return Ok(block_with_progress(call, received, wait, timeout)),
            Err(_) if received > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(Outcome::Return(received))
}

fn block_with_progress(call: &mut Call<'_>, received: u64, wait: Wait, timeout: Option<u64>) -> Outcome {
    if received > 0 && matches!(call.attempt, Attempt::Interrupted | Attempt::TimedOut) {
        return Outcome::Return(received);
    }
    call.progress = received;
    let deadline = [wait.deadline, call.deadline(timeout)].into_iter().flatten().min();
    Outcome::Block(Wait { deadline, ..wait })
}
