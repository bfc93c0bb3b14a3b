#![expect(unsafe_code, reason = "raw copies on base + pointer, and iovecs of guest memory for host calls")]
//! The one door to guest bytes.
//!
//! UNSAFETY: every address is checked against the reservation, without wrap-around, before it becomes `base + address`;
//! the reservation lives as long as this value. Bytes are only moved by recoverable copies or by the host kernel, so a
//! page that is absent, protected or cut off by a truncation gives EFAULT. Every write is recorded in the dirty set, and
//! there is no other way to get a writable pointer.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::mirror::Mirror;
use super::{DirtySet, access};
use crate::limits::{IOV_MAX, PAGE};

/// A piece of guest memory that a system call names: address and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub address: u64,
    /// Length, bytes.
    pub length: u64,
}

/// The guest's memory as the host sees it.
#[derive(Debug)]
pub struct GuestMemory {
    base: *mut u8,
    size: u64,
    dirty: RefCell<DirtySet>,
    /// Written pages at which the host stops writing more: the run is over then.
    written_max: Cell<u64>,
}

/// Host writes are counted after each piece of this many bytes.
const PIECE: usize = 1 << 20;
/// Bytes copied between two guests at once: few enough pages for the processor to look for their translations together.
const TRANSFER_PIECE: u64 = 16 << 10;

/// Start and length of the pieces of a copy.
fn pieces(length: u64) -> impl DoubleEndedIterator<Item = (u64, u64)> {
    (0..length.div_ceil(TRANSFER_PIECE)).map(move |piece| {
        let start = piece * TRANSFER_PIECE;
        (start, TRANSFER_PIECE.min(length - start))
    })
}

// SAFETY: the pointer is to a reservation that belongs to this value's owner alone; it has no thread affinity.
unsafe impl Send for GuestMemory {}

impl GuestMemory {
    /// The bytes of a mirror. The owner of both declares this value before the mirror, so that it is dropped first.
    pub(super) fn over(mirror: &Mirror, size: u64) -> Self {
        access::install_fault_handler();
        Self { base: mirror.base(), size, dirty: RefCell::new(DirtySet::new(size)), written_max: Cell::new(u64::MAX) }
    }

    /// Size of the guest's address space in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The pages written by the host or reported by KVM since they were last pristine.
    pub fn dirty(&self) -> Ref<'_, DirtySet> {
        self.dirty.borrow()
    }

    /// As [`GuestMemory::dirty`], to change the set: the run loop adds what the dirty ring says, reset removes.
    pub fn dirty_mut(&self) -> RefMut<'_, DirtySet> {
        self.dirty.borrow_mut()
    }

    /// From now on the host's own writes stop when more than `pages` pages are written, so that one system call cannot use
    /// much more memory than a run may have. Whoever set this ends the run.
    pub fn limit_written(&self, pages: u64) {
        self.written_max.set(pages);
    }

    fn is_over(&self) -> bool {
        self.dirty.borrow().pages().len() as u64 > self.written_max.get()
    }

    /// The host address of a guest range that lies inside the address space, for mapping calls. Not for loads or stores.
    ///
    /// # Errors
    ///
    /// EFAULT where the range wraps around or leaves the address space.
    pub(crate) fn host_address(&self, address: u64, length: u64) -> Result<*mut u8, Errno> {
        let end = address.checked_add(length).ok_or(Errno::FAULT)?;
        if end > self.size {
            return Err(Errno::FAULT);
        }
        let offset = usize::try_from(address).map_err(|_| Errno::FAULT)?;
        Ok(self.base.wrapping_add(offset))
    }

    /// Copy guest bytes into `buffer`.
    ///
    /// # Errors
    ///
    /// EFAULT where any byte cannot be read; the buffer's content is then unspecified.
    pub fn read_bytes(&self, address: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        if self.read_some(address, buffer) == buffer.len() { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// Copy as many guest bytes as can be read; returns how many.
    pub fn read_some(&self, address: u64, buffer: &mut [u8]) -> usize {
        let Ok(from) = self.host_address(address, buffer.len() as u64) else {
            return self.clamp(address, buffer.len()).map_or(0, |n| self.read_some(address, &mut buffer[..n]));
        };
        // SAFETY: `from` is inside the reservation for the whole length, `buffer` is ours.
        unsafe { access::copy(buffer.as_mut_ptr(), from, buffer.len()) }
    }

    /// Copy bytes to the guest.
    ///
    /// # Errors
    ///
    /// EFAULT where any byte cannot be written; a part may have been.
    pub fn write_bytes(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if self.write_some(address, bytes) == bytes.len() { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// Copy as many bytes to the guest as can be written; returns how many.
    pub fn write_some(&self, address: u64, bytes: &[u8]) -> usize {
        let Ok(to) = self.host_address(address, bytes.len() as u64) else {
            return self.clamp(address, bytes.len()).map_or(0, |n| self.write_some(address, &bytes[..n]));
        };
        let mut done = 0;
        for piece in bytes.chunks(PIECE) {
            // SAFETY: `to` is inside the reservation for the whole length, `piece` is ours.
            let copied = unsafe { access::copy(to.wrapping_add(done), piece.as_ptr(), piece.len()) };
            self.dirty.borrow_mut().insert_range(address + done as u64, copied as u64);
            done += copied;
            if copied < piece.len() || self.is_over() {
                break;
            }
        }
        done
    }

    /// Store zeros over a guest range.
    ///
    /// # Errors
    ///
    /// EFAULT where any byte cannot be written; a part may have been.
    pub fn write_zeros(&self, address: u64, length: u64) -> Result<(), Errno> {
        let to = self.host_address(address, length)?;
        let wanted = usize::try_from(length).map_err(|_| Errno::FAULT)?;
        let mut done = 0;
        while done < wanted {
            let piece = PIECE.min(wanted - done);
            // SAFETY: `to` is inside the reservation for the whole length.
            let stored = unsafe { access::zero(to.wrapping_add(done), piece) };
            self.dirty.borrow_mut().insert_range(address + done as u64, stored as u64);
            done += stored;
            if stored < piece || self.is_over() {
                break;
            }
        }
        if done == wanted { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// As [`GuestMemory::write_zeros`], for memory that no reset restores: the pages do not count as written.
    pub(super) fn zero_unrecorded(&self, address: u64, length: u64) -> Result<(), Errno> {
        let to = self.host_address(address, length)?;
        let length = usize::try_from(length).map_err(|_| Errno::FAULT)?;
        // SAFETY: `to` is inside the reservation for the whole length.
        if unsafe { access::zero(to, length) } == length { Ok(()) } else { Err(Errno::FAULT) }
    }

    /// Copy bytes of another guest to memory that no reset restores: the pages do not count as written.
    ///
    /// # Errors
    ///
    /// EFAULT where any byte cannot be read there or written here; a part may have been copied.
    pub fn copy_unrecorded_from(&self, to: u64, other: &Self, from: u64, length: u64) -> Result<(), Errno> {
        pieces(length).try_for_each(
            |(start, length)| {
                if self.copy_piece(to, other, from, start, length)? == length { Ok(()) } else { Err(Errno::FAULT) }
            },
        )
    }

    /// Copy bytes of another guest here, from the end to the start: of what was copied the other way just before, the end is still in
    /// the processor's cache, and the start will be when the next call comes.
    ///
    /// # Errors
    ///
    /// As for [`GuestMemory::copy_unrecorded_from`].
    pub fn copy_back_from(&self, to: u64, other: &Self, from: u64, length: u64) -> Result<(), Errno> {
        pieces(length).rev().try_for_each(|(start, length)| {
            let copied = self.copy_piece(to, other, from, start, length)?;
            self.dirty.borrow_mut().insert_range(to + start, copied);
            if copied == length && !self.is_over() { Ok(()) } else { Err(Errno::FAULT) }
        })
    }

    /// The `length` bytes at `start` of a copy; how many were copied.
    fn copy_piece(&self, to: u64, other: &Self, from: u64, start: u64, length: u64) -> Result<u64, Errno> {
        let (to, from) = (to.checked_add(start).ok_or(Errno::FAULT)?, from.checked_add(start).ok_or(Errno::FAULT)?);
        let (target, source) = (self.host_address(to, length)?, other.host_address(from, length)?);
        let length = usize::try_from(length).map_err(|_| Errno::FAULT)?;
        // The exit has forgotten all translations; let the processor look for several at a time.
        access::prefetch_pages(target, length);
        access::prefetch_pages(source, length);
        // SAFETY: both pointers are inside their reservations for the whole length, and the reservations are different.
        Ok(unsafe { access::copy(target, source, length) } as u64)
    }

    /// The guest moved `[from, from + length)` to `to`: what was written there is now written here.
    pub(super) fn move_dirty(&self, from: u64, to: u64, length: u64) {
        let mut dirty = self.dirty.borrow_mut();
        for at in (0..length).step_by(PAGE as usize) {
            if dirty.contains((from + at) / PAGE) {
                dirty.insert((to + at) / PAGE);
            }
        }
    }

    fn clamp(&self, address: u64, length: usize) -> Option<usize> {
        let room = usize::try_from(self.size.checked_sub(address)?).ok()?;
        (room < length && room > 0).then_some(room)
    }

    /// Read a struct (once: copy, then validate the copy).
    ///
    /// # Errors
    ///
    /// EFAULT.
    pub fn read<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read_bytes(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Write a struct without padding (the bound sees to it).
    ///
    /// # Errors
    ///
    /// EFAULT.
    pub fn write<T: IntoBytes + Immutable>(&self, address: u64, value: &T) -> Result<(), Errno> {
        self.write_bytes(address, value.as_bytes())
    }

    /// Read `length` bytes into a vector; the caller has bounded `length`.
    ///
    /// # Errors
    ///
    /// EFAULT.
    pub fn read_vec(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        self.host_address(address, length as u64)?;
        let mut bytes = vec![0; length];
        self.read_bytes(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Read a string that ends with a zero byte, without it; `longest` counts the zero byte.
    ///
    /// # Errors
    ///
    /// EFAULT, or ENAMETOOLONG where no zero byte is among the first `longest` bytes.
    pub fn read_string(&self, address: u64, longest: usize) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        while string.len() < longest {
            let at = address.checked_add(string.len() as u64).ok_or(Errno::FAULT)?;
            // Never across a page boundary in one copy: the string may end just before an unmapped page.
            let chunk = ((PAGE - at % PAGE) as usize).min(longest - string.len()).min(256);
            let mut buffer = [0_u8; 256];
            let buffer = &mut buffer[..chunk];
            self.read_bytes(at, buffer)?;
            if let Some(end) = memchr::memchr(0, buffer) {
                string.extend_from_slice(&buffer[..end]);
                return Ok(string);
            }
            string.extend_from_slice(buffer);
        }
        Err(Errno::NAMETOOLONG)
    }

    /// Read an array of `struct iovec`, as `readv(2)` takes it.
    ///
    /// # Errors
    ///
    /// EINVAL for more than 1,024 segments or lengths that add up past `i64::MAX`, EFAULT for the array itself. The
    /// segments are checked when they are used.
    pub fn read_iovec(&self, address: u64, count: u64) -> Result<Vec<Segment>, Errno> {
        let count = usize::try_from(count).ok().filter(|&count| count <= IOV_MAX).ok_or(Errno::INVAL)?;
        let mut segments = Vec::with_capacity(count);
        let mut total = 0_u64;
        for index in 0..count {
            let at = address.checked_add(index as u64 * 16).ok_or(Errno::FAULT)?;
            let [address, length] = self.read::<[u64; 2]>(at)?;
            total = total.checked_add(length).filter(|&total| i64::try_from(total).is_ok()).ok_or(Errno::INVAL)?;
            segments.push(Segment { address, length });
        }
        Ok(segments)
    }

    /// Copy `bytes` out over the segments, beginning `skip` bytes into them; returns how many bytes were copied.
    ///
    /// # Errors
    ///
    /// EFAULT only where nothing at all could be copied and something was to be.
    pub fn scatter(&self, segments: &[Segment], skip: u64, bytes: &[u8]) -> Result<usize, Errno> {
        let mut done = 0;
        for segment in skipped(segments, skip) {
            if done == bytes.len() {
                break;
            }
            let piece = usize::try_from(segment.length).unwrap_or(usize::MAX).min(bytes.len() - done);
            let copied = self.write_some(segment.address, &bytes[done..done + piece]);
            done += copied;
            if copied < piece {
                return if done == 0 { Err(Errno::FAULT) } else { Ok(done) };
            }
        }
        Ok(done)
    }

    /// Collect at most `most` bytes from the segments, beginning `skip` bytes into them.
    ///
    /// # Errors
    ///
    /// EFAULT only where nothing at all could be copied and something was to be.
    pub fn gather(&self, segments: &[Segment], skip: u64, most: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        for segment in skipped(segments, skip) {
            if bytes.len() == most {
                break;
            }
            let piece = usize::try_from(segment.length).unwrap_or(usize::MAX).min(most - bytes.len());
            let start = bytes.len();
            bytes.resize(start + piece, 0);
            let copied = self.read_some(segment.address, &mut bytes[start..]);
            bytes.truncate(start + copied);
            if copied < piece {
                return if bytes.is_empty() { Err(Errno::FAULT) } else { Ok(bytes) };
            }
        }
        Ok(bytes)
    }

    /// Let a host call read from the segments (`write(2)` and relatives): at most `most` bytes of them.
    ///
    /// # Errors
    ///
    /// EFAULT where a segment leaves the address space, and what the call answers.
    pub fn with_readable<T>(
        &self,
        segments: &[Segment],
        most: u64,
        call: impl FnOnce(&[IoSlice<'_>]) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut slices = Vec::with_capacity(segments.len());
        for segment in limited(segments, most) {
            let pointer = self.host_address(segment.address, segment.length)?;
            let length = usize::try_from(segment.length).map_err(|_| Errno::FAULT)?;
            // SAFETY: an IoSlice is handed to the kernel only, which copies from it and reports EFAULT; its bytes are never looked
            // at from Rust. The range is inside the reservation.
            slices.push(IoSlice::new(unsafe { std::slice::from_raw_parts(pointer, length) }));
        }
        call(&slices)
    }

    /// Let a host call write into the segments (`read(2)` and relatives): at most `most` bytes. `call` answers how many bytes
    /// it wrote, in order; those pages count as written, all of them where it failed.
    ///
    /// # Errors
    ///
    /// EFAULT where a segment leaves the address space, and what the call answers.
    pub fn with_writable(
        &self,
        segments: &[Segment],
        most: u64,
        call: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let most = self.affordable(segments, most);
        let mut slices = Vec::with_capacity(segments.len());
        for segment in limited(segments, most) {
            let pointer = self.host_address(segment.address, segment.length)?;
            let length = usize::try_from(segment.length).map_err(|_| Errno::FAULT)?;
            // SAFETY: an IoSliceMut is handed to the kernel only, which copies into it and reports EFAULT; its bytes are never looked
            // at from Rust. The range is inside the reservation.
            slices.push(IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(pointer, length) }));
        }
        let answer = call(&mut slices);
        drop(slices);
        let written = match answer {
            Ok(count) => count as u64,
            // The kernel may have stored something before it met a bad page.
            Err(Errno::FAULT) => most,
            Err(_) => 0,
        };
        for segment in limited(segments, written) {
            self.dirty.borrow_mut().insert_range(segment.address, segment.length);
        }
        answer
    }
}

impl GuestMemory {
    /// How much of `most` bytes may be written into the segments before the limit on written pages is passed by one page.
    fn affordable(&self, segments: &[Segment], most: u64) -> u64 {
        let dirty = self.dirty.borrow();
        let mut left = self.written_max.get().saturating_add(1).saturating_sub(dirty.pages().len() as u64);
        if most / PAGE + 2 * segments.len() as u64 <= left {
            return most;
        }
        let mut bytes = 0;
        for segment in limited(segments, most) {
            let end = segment.address.saturating_add(segment.length);
            let mut at = segment.address;
            while at < end {
                if !dirty.contains(at / PAGE) {
                    if left == 0 {
                        return bytes;
                    }
                    left -= 1;
                }
                let next = (at - at % PAGE).saturating_add(PAGE).min(end);
                bytes += next - at;
                at = next;
            }
        }
        bytes
    }
}

fn skipped(segments: &[Segment], skip: u64) -> impl Iterator<Item = Segment> {
    let mut skip = skip;
    segments.iter().filter_map(move |segment| {
        let cut = skip.min(segment.length);
        skip -= cut;
        (segment.length > cut).then(|| Segment { address: segment.address.wrapping_add(cut), length: segment.length - cut })
    })
}

fn limited(segments: &[Segment], most: u64) -> impl Iterator<Item = Segment> {
    let mut left = most;
    segments.iter().filter_map(move |segment| {
        let length = segment.length.min(left);
        left -= length;
        (length > 0).then_some(Segment { address: segment.address, length })
    })
}
