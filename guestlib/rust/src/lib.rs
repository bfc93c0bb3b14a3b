// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a program inside kvmserver can ask of it: calls from request VMs to the storage program.
//!
//! Copy this crate. In a request VM:
//!
//! ```no_run
//! let answer = kvmserverguest::call("count", 4096)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! and in the storage program:
//!
//! ```no_run
//! let mut count = 0;
//! kvmserverguest::serve(|_request| {
//!     count += 1;
//!     Ok(count.to_string().into_bytes())
//! })?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! The meaning is that of kvmserverguest.h. Every failure is an [`std::io::Error`] that was made of the errno listed there;
//! outside kvmserver its kind is [`ErrorKind::Unsupported`], as where there is no storage program.
//!
//! [`call`] and [`serve`] exchange *messages*: a request is what stands in the buffer before the zero bytes at its end, the
//! result is the length of the answer. [`remote_resume`] and [`Storage::wait_paused`] exchange the bare buffer.

use std::convert::Infallible;
use std::ffi::{c_char, c_int, c_void};
use std::io::{Error, ErrorKind, Result};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

/// Longest buffer of a call, bytes.
pub const BUFFER_MAX: usize = 16 << 20;

const EIO: i32 = 5;
const EBUSY: i32 = 16;
const EBADMSG: i32 = 74;
const EMSGSIZE: i32 = 90;
const RTLD_NOW: c_int = 2;

// In the C library that std is linked with.
extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

struct Library {
    available: unsafe extern "C" fn() -> c_int,
    remote_resume: unsafe extern "C" fn(*mut c_void, isize) -> isize,
    storage_wait_paused: unsafe extern "C" fn(*mut *mut c_void, isize) -> isize,
    shared_buffer: unsafe extern "C" fn(usize) -> *mut c_void,
}

impl Library {
    fn load() -> Option<Self> {
        // SAFETY: both names end in a zero byte. The types are those of kvmserverguest.h; a null pointer is no function.
        unsafe {
            let library = NonNull::new(dlopen(b"libkvmserverguest.so\0".as_ptr().cast(), RTLD_NOW))?;
            let symbol = |name: &'static [u8]| NonNull::new(dlsym(library.as_ptr(), name.as_ptr().cast()));
            Some(Self {
                available: std::mem::transmute(symbol(b"kvmserverguest_available\0")?),
                remote_resume: std::mem::transmute(symbol(b"kvmserverguest_remote_resume\0")?),
                storage_wait_paused: std::mem::transmute(symbol(b"kvmserverguest_storage_wait_paused\0")?),
                shared_buffer: std::mem::transmute(symbol(b"kvmserverguest_shared_buffer\0")?),
            })
        }
    }
}

fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(Library::load).as_ref()
}

fn inside() -> Result<&'static Library> {
    let outside = || Error::new(ErrorKind::Unsupported, "not inside kvmserver");
    library().filter(|_| available() > 0).ok_or_else(outside)
}

fn checked(result: isize) -> Result<usize> {
    let errno = |_| Error::from_raw_os_error(i32::try_from(result.unsigned_abs()).unwrap_or(EBADMSG));
    usize::try_from(result).map_err(errno)
}

/// The version of the host's interface (at least 1), or 0 outside kvmserver.
pub fn available() -> i32 {
    // SAFETY: as declared in kvmserverguest.h.
    library().map_or(0, |library| unsafe { (library.available)() })
}

/// In a request VM: what the storage program's [`serve`] answers to a message of at most `capacity` bytes either way (a longer
/// request is its own capacity). The whole request VM stands still meanwhile.
///
/// # Errors
///
/// [`ErrorKind::InvalidInput`] for a request that ends in a zero byte; EMSGSIZE where the answer is longer; EIO where the
/// handler failed; and those of [`remote_resume`].
pub fn call(request: impl AsRef<[u8]>, capacity: usize) -> Result<Vec<u8>> {
    let request = request.as_ref();
    if request.ends_with(&[0]) {
        return Err(Error::new(ErrorKind::InvalidInput, "a request cannot end in a zero byte"));
    }
    let mut buffer = request.to_vec();
    buffer.resize(capacity.max(request.len()), 0);
    let length = remote_resume(&mut buffer)?;
    if length > buffer.len() {
        return Err(Error::from_raw_os_error(EBADMSG));
    }
    buffer.truncate(length);
    Ok(buffer)
}

/// In a request VM: let the storage program see and change the buffer; its result.
///
/// # Errors
///
/// As kvmserverguest.h lists; the buffer's content is unspecified then.
pub fn remote_resume(buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the buffer is ours for the duration of the call.
    unsafe { remote_resume_raw(NonNull::from(buffer)) }
}

/// As [`remote_resume`], for a buffer in shared memory.
///
/// # Errors
///
/// As [`remote_resume`].
///
/// # Safety
///
/// The buffer may be read and written, and nothing else refers to it meanwhile.
pub unsafe fn remote_resume_raw(buffer: NonNull<[u8]>) -> Result<usize> {
    let length = isize::try_from(buffer.len()).unwrap_or(isize::MAX);
    // SAFETY: the caller's promise.
    checked(unsafe { (inside()?.remote_resume)(buffer.as_ptr().cast(), length) })
}

/// In a request VM: zeroed memory that the storage program can reach too, so that calls with it copy nothing. It is never given
/// back. It is no reference, since the storage program may read and write it at any time.
///
/// # Errors
///
/// [`ErrorKind::OutOfMemory`] where none is left.
pub fn shared_buffer(length: usize) -> Result<NonNull<[u8]>> {
    // SAFETY: as declared in kvmserverguest.h.
    let address = unsafe { (inside()?.shared_buffer)(length) };
    let address = NonNull::new(address.cast::<u8>()).ok_or_else(|| Error::from(ErrorKind::OutOfMemory))?;
    Ok(NonNull::slice_from_raw_parts(address, length))
}

/// In the storage program: answer every message with what `handler` returns, one at a time, for ever. An error of the handler
/// is printed and given to the caller as EIO; a panic ends the program, unless the caller of this function catches it.
///
/// # Errors
///
/// Where there is nothing to wait for: EPERM in a request VM, [`ErrorKind::Unsupported`] outside kvmserver, EBUSY
/// where [`Storage::take`] was called before.
pub fn serve(mut handler: impl FnMut(&[u8]) -> Result<Vec<u8>>) -> Result<Infallible> {
    let mut storage = Storage::take().ok_or_else(|| Error::from_raw_os_error(EBUSY))?;
    let mut result = 0;
    loop {
        let buffer = storage.wait_paused(result)?;
        let length = buffer.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        result = match handler(&buffer[..length]) {
            Ok(answer) => match buffer.get_mut(..answer.len()) {
                Some(place) => {
                    place.copy_from_slice(&answer);
                    answer.len() as isize
                }
                None => -EMSGSIZE as isize,
            },
            Err(error) => {
                eprintln!("kvmserverguest: {error}");
                -EIO as isize
            }
        };
    }
}

/// The right to wait for calls. There is only one in a program: the buffer of a call is valid until anybody waits again.
#[derive(Debug)]
pub struct Storage(());

impl Storage {
    /// The right to wait for calls, or `None` where somebody has it already.
    pub fn take() -> Option<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        (!TAKEN.swap(true, Ordering::Relaxed)).then_some(Self(()))
    }

    /// Give `result` to the caller that waits (ignored the first time); the buffer of the next call.
    ///
    /// A buffer in the memory that a request VM shares with this program can change while it is read, if that VM's request
    /// was given up meanwhile: check a copy of what must not change.
    ///
    /// # Errors
    ///
    /// EPERM in a request VM, [`ErrorKind::Unsupported`] outside kvmserver.
    pub fn wait_paused(&mut self, result: isize) -> Result<&mut [u8]> {
        let mut buffer = std::ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        let length = checked(unsafe { (inside()?.storage_wait_paused)(&mut buffer, result) })?;
        if buffer.is_null() || length == 0 {
            return Ok(&mut []);
        }
        // SAFETY: the host mapped these bytes until the next wait, which needs `self` again.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.cast(), length) })
    }
}
