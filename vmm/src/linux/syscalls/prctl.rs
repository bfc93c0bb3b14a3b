//! prctl(2).

use linux_raw_sys::general::__NR_prctl;
use linux_raw_sys::prctl as pr;

use super::guest_api;
use crate::linux::table::{Arg, Entry, partial};
use crate::linux::{Answer, Call, Errno, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[partial(
    __NR_prctl,
    "prctl",
    &[Arg::Prctl, Arg::Hex, Arg::Hex, Arg::Hex, Arg::Hex],
    prctl,
    "what a user without privileges may ask for",
)];

/// Nanoseconds of PR_GET_TIMERSLACK by default.
const TIMER_SLACK_DEFAULT: u64 = 50_000;
/// Number of the last capability that a kernel of our release knows (CAP_CHECKPOINT_RESTORE).
const CAPABILITY_LAST: u64 = 40;

const fn flag(value: bool) -> Answer {
    Ok(Outcome::Return(value as u64))
}

/// A value that must be 0 or 1.
const fn boolean(value: u64) -> Result<bool, Errno> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Errno::INVAL),
    }
}

fn must_be_zero(values: &[u64]) -> Result<(), Errno> {
    if values.iter().all(|&value| value == 0) { Ok(()) } else { Err(Errno::INVAL) }
}

/// `int prctl(int option, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5)`
fn prctl(call: &mut Call<'_>) -> Answer {
    match call.uint(0) {
        pr::PR_SET_NAME => set_name(call),
        pr::PR_GET_NAME => {
            let name = call.thread().name;
            call.memory().write(call.args[1], &name)?;
            Ok(Outcome::OK)
        }
        pr::PR_SET_VMA => set_vma_name(call),
        pr::PR_CAPBSET_READ | pr::PR_CAPBSET_DROP | pr::PR_CAP_AMBIENT | pr::PR_GET_SECUREBITS | pr::PR_SET_SECUREBITS => {
            capabilities(call)
        }
        pr::PR_SET_KEEPCAPS | pr::PR_GET_KEEPCAPS => keep_capabilities(call),
        guest_api::PRCTL_VERSION => Ok(Outcome::Return(guest_api::VERSION)),
        pr::PR_GET_SECCOMP => Ok(Outcome::OK),
        // A kernel without seccomp; filters would have to be run on every call.
        pr::PR_SET_SECCOMP => Err(Errno::INVAL),
        _ => settings(call),
    }
}

/// The small settings, most of which are only remembered.
fn settings(call: &mut Call<'_>) -> Answer {
    let [_, first, second, third, fourth, _] = call.args;
    let option = call.uint(0);
    let state = &mut call.kernel.process.prctl;
    match option {
        pr::PR_SET_PDEATHSIG if first <= 64 => state.parent_death_signal = i32::try_from(first).map_err(|_| Errno::INVAL)?,
        pr::PR_GET_PDEATHSIG => {
            let signal = state.parent_death_signal;
            call.memory().write(first, &signal)?;
        }
        pr::PR_GET_DUMPABLE => return flag(!state.not_dumpable),
        pr::PR_SET_DUMPABLE => state.not_dumpable = !boolean(first)?,
        pr::PR_SET_NO_NEW_PRIVS => {
            must_be_zero(&[second, third, fourth, u64::from(first != 1)])?;
            state.no_new_privs = true;
        }
        pr::PR_GET_NO_NEW_PRIVS => {
            must_be_zero(&[first, second, third, fourth])?;
            return flag(state.no_new_privs);
        }
        pr::PR_SET_CHILD_SUBREAPER => state.child_subreaper = first != 0,
        pr::PR_GET_CHILD_SUBREAPER => {
            let value = i32::from(state.child_subreaper);
            call.memory().write(first, &value)?;
        }
        pr::PR_SET_TIMERSLACK => state.timer_slack = if first.cast_signed() <= 0 { 0 } else { first },
        pr::PR_GET_TIMERSLACK => return Ok(Outcome::Return(if state.timer_slack == 0 { TIMER_SLACK_DEFAULT } else { state.timer_slack })),
        pr::PR_SET_THP_DISABLE => {
            must_be_zero(&[second, third, fourth])?;
            state.thp_disable = first != 0;
        }
        pr::PR_GET_THP_DISABLE => {
            must_be_zero(&[first, second, third, fourth])?;
            return flag(state.thp_disable);
        }
        _ => return fixed(call),
    }
    Ok(Outcome::OK)
}

/// Settings that have one value here.
fn fixed(call: &Call<'_>) -> Answer {
    let [_, first, second, third, fourth, _] = call.args;
    match call.uint(0) {
        // PR_TIMING_STATISTICAL is 0 and the only one.
        pr::PR_GET_TIMING => Ok(Outcome::OK),
        pr::PR_SET_TIMING if first == 0 => Ok(Outcome::OK),
        pr::PR_GET_TSC => {
            call.memory().write(first, &pr::PR_TSC_ENABLE)?;
            Ok(Outcome::OK)
        }
        pr::PR_SET_TSC if first == u64::from(pr::PR_TSC_ENABLE) => Ok(Outcome::OK),
        pr::PR_MCE_KILL_GET => {
            must_be_zero(&[first, second, third, fourth])?;
            Ok(Outcome::Return(u64::from(pr::PR_MCE_KILL_DEFAULT)))
        }
        // Only used by a security module that a guest has not got; the others accept it from any process.
        pr::PR_SET_PTRACER => Ok(Outcome::OK),
        pr::PR_GET_SPECULATION_CTRL | pr::PR_SET_SPECULATION_CTRL => Err(Errno::NODEV),
        _ => Err(Errno::INVAL),
    }
}

/// PR_SET_NAME: at most 15 bytes of a string are taken, and no more than that many are read.
fn set_name(call: &mut Call<'_>) -> Answer {
    let mut name = [0; 16];
    for (offset, byte) in (0..15).zip(&mut name) {
        *byte = call.memory().read::<u8>(call.args[1].checked_add(offset).ok_or(Errno::FAULT)?)?;
        if *byte == 0 {
            break;
        }
    }
    call.thread().name = name;
    Ok(Outcome::OK)
}

/// PR_SET_VMA_ANON_NAME: accepted after the checks that Linux makes; maps do not show the name.
fn set_vma_name(call: &Call<'_>) -> Answer {
    let [_, option, address, length, name, _] = call.args;
    if option != u64::from(pr::PR_SET_VMA_ANON_NAME) || address % crate::limits::PAGE != 0 {
        return Err(Errno::INVAL);
    }
    if name != 0 {
        let name = call.memory().read_string(name, 80).map_err(|errno| if errno == Errno::NAMETOOLONG { Errno::INVAL } else { errno })?;
        let forbidden = |byte: &u8| !(0x20..0x7f).contains(byte) || b"[]\\$`".contains(byte);
        if name.iter().any(forbidden) {
            return Err(Errno::INVAL);
        }
    }
    let end = address.checked_add(length).ok_or(Errno::INVAL)?;
    if length == 0 || call.space.vmas().covers(address, end) { Ok(Outcome::OK) } else { Err(Errno::NOMEM) }
}

/// A user without capabilities.
fn capabilities(call: &Call<'_>) -> Answer {
    let [_, first, second, third, fourth, _] = call.args;
    match call.uint(0) {
        pr::PR_CAPBSET_READ if first <= CAPABILITY_LAST => Ok(Outcome::OK),
        pr::PR_CAP_AMBIENT => {
            must_be_zero(&[third, fourth])?;
            match u32::try_from(first) {
                Ok(pr::PR_CAP_AMBIENT_CLEAR_ALL) if second == 0 => Ok(Outcome::OK),
                Ok(pr::PR_CAP_AMBIENT_IS_SET | pr::PR_CAP_AMBIENT_LOWER) if second <= CAPABILITY_LAST => Ok(Outcome::OK),
                Ok(pr::PR_CAP_AMBIENT_RAISE) if second <= CAPABILITY_LAST => Err(Errno::PERM),
                _ => Err(Errno::INVAL),
            }
        }
        pr::PR_GET_SECUREBITS => Ok(Outcome::OK),
        pr::PR_CAPBSET_DROP | pr::PR_SET_SECUREBITS => Err(Errno::PERM),
        _ => Err(Errno::INVAL),
    }
}

fn keep_capabilities(call: &mut Call<'_>) -> Answer {
    if call.uint(0) == pr::PR_GET_KEEPCAPS {
        return flag(call.kernel.process.prctl.keep_capabilities);
    }
    call.kernel.process.prctl.keep_capabilities = boolean(call.args[1])?;
    Ok(Outcome::OK)
}
