//! Running another program in the same process: execve(2), execveat(2).

use linux_raw_sys::general::{__NR_execve, __NR_execveat, AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW};
use rustix::io::Errno;

use crate::limits::{PATH_MAX, STACK_BYTES};
use crate::linux::path::{Last, Walker};
use crate::linux::table::{Arg, Entry, full};
use crate::linux::{Answer, Call, Execute, Outcome};

/// The rows of this family.
pub(super) const ENTRIES: &[Entry] = &[
    full(__NR_execve, "execve", &[Arg::Path, Arg::Pointer, Arg::Pointer], execve),
    full(__NR_execveat, "execveat", &[Arg::Fd, Arg::Path, Arg::Pointer, Arg::Pointer, Arg::Hex], execveat),
];

/// Longest argument or environment string with its zero byte (MAX_ARG_STRLEN).
const STRING_MAX: usize = 128 << 10;
/// All of them together: a quarter of the stack, as Linux allows.
const TOTAL_MAX: usize = STACK_BYTES as usize / 4;

/// `int execve(const char *pathname, char *const argv[], char *const envp[])`
fn execve(call: &mut Call<'_>) -> Answer {
    let [path, arguments, environment, ..] = call.args;
    execute(call, AT_FDCWD, path, (arguments, environment), 0)
}

/// `int execveat(int dirfd, const char *pathname, char *const argv[], char *const envp[], int flags)`
fn execveat(call: &mut Call<'_>) -> Answer {
    let [_, path, arguments, environment, ..] = call.args;
    execute(call, call.int(0), path, (arguments, environment), call.uint(4))
}

fn execute(call: &mut Call<'_>, dirfd: i32, path: u64, (arguments, environment): (u64, u64), flags: u32) -> Answer {
    if flags & !(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::INVAL);
    }
    let path = call.memory().read_string(path, PATH_MAX)?;
    let walker = Walker::new(call.kernel, call.tid);
    let place = if path.is_empty() && flags & AT_EMPTY_PATH != 0 {
        walker.start(dirfd)?
    } else {
        let last = if flags & AT_SYMLINK_NOFOLLOW == 0 { Last::Follow } else { Last::Keep };
        walker.walk(dirfd, &path, last)?.existing()?
    };
    if place.is_directory() {
        return Err(Errno::ACCESS);
    }
    let mut total = 0;
    let mut arguments = read_strings(call, arguments, &mut total)?;
    let environment = read_strings(call, environment, &mut total)?;
    if arguments.is_empty() {
        // Linux has given such programs one empty argument since 5.18.
        arguments.push(Vec::new());
    }
    Ok(Outcome::Execute(Box::new(Execute { path: place.path, arguments, environment })))
}

/// An array of string pointers that ends with a null pointer; a null array is an empty one.
fn read_strings(call: &Call<'_>, array: u64, total: &mut usize) -> Result<Vec<Vec<u8>>, Errno> {
    let mut strings = Vec::new();
    let mut at = array;
    while at != 0 {
        let pointer: u64 = call.memory().read(at)?;
        if pointer == 0 {
            break;
        }
        let string = call
            .memory()
            .read_string(pointer, STRING_MAX)
            .map_err(|errno| if errno == Errno::NAMETOOLONG { Errno::TOOBIG } else { errno })?;
        *total = total.saturating_add(string.len() + 1 + size_of::<u64>());
        if *total > TOTAL_MAX {
            return Err(Errno::TOOBIG);
        }
        strings.push(string);
        at = at.checked_add(8).ok_or(Errno::FAULT)?;
    }
    Ok(strings)
}
