//! ioctl(2): the terminal of the standard streams, and what works on every descriptor.

use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl as request;
use rustix::termios::{ControlModes, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::linux::file::console::Console;
use crate::linux::file::{File, FileId};
use crate::linux::table::{Arg, Entry, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[partial(
    abi::__NR_ioctl,
    "ioctl",
    &[Arg::Fd, Arg::Hex, Arg::Pointer],
    ioctl,
    "FIONREAD, FIONBIO, FIOCLEX, FIONCLEX and a terminal's attributes, window size and foreground group; ENOTTY otherwise",
)];

/// `struct termios` of the kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct KernelTermios {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    line: u8,
    codes: [u8; 19],
}

const _: () = assert!(size_of::<KernelTermios>() == 36);

/// `c_cc` in the kernel's order.
const CODES: [SpecialCodeIndex; 17] = [
    SpecialCodeIndex::VINTR,
    SpecialCodeIndex::VQUIT,
    SpecialCodeIndex::VERASE,
    SpecialCodeIndex::VKILL,
    SpecialCodeIndex::VEOF,
    SpecialCodeIndex::VTIME,
    SpecialCodeIndex::VMIN,
    SpecialCodeIndex::VSWTC,
    SpecialCodeIndex::VSTART,
    SpecialCodeIndex::VSTOP,
    SpecialCodeIndex::VSUSP,
    SpecialCodeIndex::VEOL,
    SpecialCodeIndex::VREPRINT,
    SpecialCodeIndex::VDISCARD,
    SpecialCodeIndex::VWERASE,
    SpecialCodeIndex::VLNEXT,
    SpecialCodeIndex::VEOL2,
];

fn ioctl(call: &mut Call<'_>) -> Answer {
    let id = call.file(0)?;
    let (command, argument) = (call.uint(1), call.args[2]);
    let slot = call.kernel.files.get(id)?;
    if slot.flags & abi::O_PATH != 0 {
        return Err(Errno::BADF);
    }
    match command {
        request::FIOCLEX | request::FIONCLEX => {
            call.kernel.process.fds.entry_mut(call.int(0))?.close_on_exec = command == request::FIOCLEX;
            Ok(Outcome::OK)
        }
        request::FIONBIO => {
            let on = call.memory().read::<i32>(argument)? != 0;
            let slot = call.kernel.files.get_mut(id)?;
            slot.flags = slot.flags & !abi::O_NONBLOCK | if on { abi::O_NONBLOCK } else { 0 };
            Ok(Outcome::OK)
        }
        request::FIONREAD => {
            let count = unread(call, id)?;
            call.memory().write(argument, &count)?;
            Ok(Outcome::OK)
        }
        _ => match &slot.file {
            File::Console(console) if rustix::termios::isatty(console.descriptor()) => {
                let console = console.clone();
                terminal(call, &console, command, argument)
            }
            _ => Err(Errno::NOTTY),
        },
    }
}

/// Bytes that could be read at once.
fn unread(call: &Call<'_>, id: FileId) -> Result<i32, Errno> {
    let count = match &call.kernel.files.get(id)?.file {
        File::Host(file) if !file.is_directory() => file.size()?.saturating_sub(file.position),
        File::Console(console) => rustix::io::ioctl_fionread(console.descriptor())?,
        _ => call.kernel.files.readable_bytes(id).ok_or(Errno::NOTTY)? as u64,
    };
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

fn terminal(call: &mut Call<'_>, console: &Console, command: u32, argument: u64) -> Answer {
    let host = console.descriptor();
    match command {
        request::TCGETS => {
            let termios = to_kernel(&rustix::termios::tcgetattr(host)?);
            call.memory().write(argument, &termios)?;
        }
        request::TCSETS => set_attributes(call, console, argument, OptionalActions::Now)?,
        request::TCSETSW => set_attributes(call, console, argument, OptionalActions::Drain)?,
        request::TCSETSF => set_attributes(call, console, argument, OptionalActions::Flush)?,
        request::TIOCGWINSZ => {
            let size = rustix::termios::tcgetwinsize(host)?;
            call.memory().write(argument, &[size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel])?;
        }
        request::TIOCSWINSZ => {
            let [ws_row, ws_col, ws_xpixel, ws_ypixel] = call.memory().read::<[u16; 4]>(argument)?;
            rustix::termios::tcsetwinsize(host, Winsize { ws_row, ws_col, ws_xpixel, ws_ypixel })?;
        }
        // The guest's process group is in the foreground: there is no other one that it could know.
        request::TIOCGPGRP | request::TIOCGSID => {
            let group = call.kernel.process.pid;
            call.memory().write(argument, &group)?;
        }
        request::TIOCSPGRP => {
            if call.memory().read::<i32>(argument)? != call.kernel.process.pid {
                return Err(Errno::PERM);
            }
        }
        request::TCSBRK => rustix::termios::tcdrain(host)?,
        request::TCFLSH => {
            let queue = match argument {
                0 => rustix::termios::QueueSelector::IFlush,
                1 => rustix::termios::QueueSelector::OFlush,
                2 => rustix::termios::QueueSelector::IOFlush,
                _ => return Err(Errno::INVAL),
            };
            rustix::termios::tcflush(host, queue)?;
        }
        _ => return Err(Errno::NOTTY),
    }
    Ok(Outcome::OK)
}

fn set_attributes(call: &Call<'_>, console: &Console, argument: u64, when: OptionalActions) -> Result<(), Errno> {
    let wanted = call.memory().read::<KernelTermios>(argument)?;
    let mut termios = rustix::termios::tcgetattr(console.descriptor())?;
    termios.input_modes = InputModes::from_bits_retain(wanted.input);
    termios.output_modes = OutputModes::from_bits_retain(wanted.output);
    termios.control_modes = ControlModes::from_bits_retain(wanted.control);
    termios.local_modes = LocalModes::from_bits_retain(wanted.local);
    for (index, code) in CODES.into_iter().zip(wanted.codes) {
        termios.special_codes[index] = code;
    }
    rustix::termios::tcsetattr(console.descriptor(), when, &termios)
}

fn to_kernel(termios: &Termios) -> KernelTermios {
    let mut codes = [0; 19];
    for (slot, index) in codes.iter_mut().zip(CODES) {
        *slot = termios.special_codes[index];
    }
    KernelTermios {
        input: termios.input_modes.bits(),
        output: termios.output_modes.bits(),
        control: termios.control_modes.bits(),
        local: termios.local_modes.bits(),
        line: termios.line_discipline,
        codes,
    }
}
