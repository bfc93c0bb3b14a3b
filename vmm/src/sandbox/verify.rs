//! `--verify-reset`: compare the whole VM with the snapshot.
//!
//! Everything is: every page of the address space (each private page must equal the snapshot's; a page may be private
//! without having been written, where a kick came between KVM's taking the page and the guest's store), the list of
//! mappings and the program break, the kernel's data (threads with their registers, signals, timers, descriptors, files,
//! epoll sets, futexes, working directory, limits, names), the extended state, and the snapshot's own memfd.

use std::fmt;

use rustix::io::Errno;

use super::Sandbox;
use crate::limits::PAGE;
use crate::memory::{Backing, MemoryImage, Pagemap, Vma};
use crate::platform::RunVmError;

/// What a reset may be made to forget, to test that [`Sandbox::verify`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// A real reset.
    Nothing,
    /// One written page.
    Page,
    /// The extended state.
    Register,
    /// The data segments.
    Segment,
    /// The descriptor table.
    Descriptor,
    /// The mappings.
    Mapping,
}

/// A difference to the snapshot: a bug of the highest severity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// What differs, and where.
    pub what: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "after a reset {} differs from the snapshot", self.what)
    }
}

fn mismatch(what: impl Into<String>) -> Mismatch {
    Mismatch { what: what.into() }
}

impl From<RunVmError> for Mismatch {
    fn from(error: RunVmError) -> Self {
        mismatch(format!("something that could not be run ({error})"))
    }
}

impl From<Errno> for Mismatch {
    fn from(errno: Errno) -> Self {
        mismatch(format!("something that could not be read ({errno})"))
    }
}

/// Where an XSAVE area says which components are not in their initial state. A processor may say of registers that are all zero that
/// they are in use or that they are not, and changes its mind with each switch of host threads; KVM writes out what they hold in any case.
const XSTATE_BV: std::ops::Range<usize> = 512..520;

impl Sandbox {
    /// Compare with the snapshot. To be called between [`Sandbox::reset`] and [`Sandbox::start_over`].
    ///
    /// # Errors
    ///
    /// The first difference.
    pub fn verify(&mut self) -> Result<(), Mismatch> {
        self.vm.finish_restore(&mut self.space)?;
        let Some(frozen) = &self.frozen else { return Ok(()) };
        if frozen.memory.blocks()? != frozen.memfd_blocks {
            return Err(mismatch("the snapshot's own memory"));
        }
        if let Some(side) = &self.caller
            && !self.space.shared_is_clear(side.address, &side.area)?
        {
            return Err(mismatch("the memory shared with the storage program"));
        }
        self.verify_mappings()?;
        self.verify_pages()?;
        let extended = self.vm.extended()?;
        let pairs = extended.iter().zip(&frozen.extended).enumerate();
        if let Some((at, (ours, theirs))) = pairs.filter(|(at, _)| !XSTATE_BV.contains(at)).find(|(_, (ours, theirs))| ours != theirs) {
            return Err(mismatch(format!("the extended state (x87, SSE, AVX; byte {at} of XSAVE: {ours:#x} instead of {theirs:#x})")));
        }
        if !self.vm.has_fresh_segments() {
            return Err(mismatch("a data segment"));
        }
        let theirs = frozen.kernel_text.get_or_init(|| format!("{:?}", frozen.kernel));
        let ours = format!("{:?}", self.kernel);
        match ours.bytes().zip(theirs.bytes()).position(|(a, b)| a != b) {
            Some(at) => Err(mismatch(format!("the kernel's state ({} instead of {})", around(&ours, at), around(theirs, at)))),
            None if ours.len() != theirs.len() => Err(mismatch("the kernel's state (its size)")),
            None => Ok(()),
        }
    }

    /// Of the pages that were written, the last whose content is another than the snapshot's: a program may write what is there.
    pub(super) fn last_changed_page(&self) -> Result<Option<u64>, Errno> {
        let Some(image) = self.space.image() else { return Ok(None) };
        let (mut now, mut then) = ([0; PAGE as usize], [0; PAGE as usize]);
        for page in self.space.memory().dirty().pages().iter().rev().map(|&page| u64::from(page)) {
            let Some(vma) = self.space.vmas().find(page * PAGE).filter(|vma| !vma.protection.is_empty()) else { continue };
            self.space.memory().read_bytes(page * PAGE, &mut now)?;
            pristine(image, vma, page * PAGE, &mut then)?;
            if now != then {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    fn verify_mappings(&self) -> Result<(), Mismatch> {
        let Some(image) = self.space.image() else { return Ok(()) };
        let describe = |vma: &Vma| {
            let (offset, private) = match &vma.backing {
                Backing::File { offset, shared, .. } => (*offset, !shared),
                Backing::Anonymous => (0, true),
            };
            let Vma { start, end, protection, wipe_on_fork, .. } = vma;
            format!("{start:x}-{end:x} {protection:?} private={private} {offset:x} wipe={wipe_on_fork} {}", name_of(vma))
        };
        let ours: Vec<String> = self.space.vmas().iter().map(describe).collect();
        let theirs: Vec<String> = image.vmas().iter().map(describe).collect();
        if let Some((a, b)) = ours.iter().zip(&theirs).find(|(a, b)| a != b) {
            return Err(mismatch(format!("the mapping {a} (it was {b})")));
        }
        if ours.len() != theirs.len() || self.space.brk() != image.brk() {
            return Err(mismatch("the list of mappings"));
        }
        Ok(())
    }

    fn verify_pages(&self) -> Result<(), Mismatch> {
        let Some(image) = self.space.image() else { return Ok(()) };
        let (pagemap, base) = (Pagemap::open()?, self.space.host_base());
        let (mut now, mut then) = ([0; PAGE as usize], [0; PAGE as usize]);
        for (start, end) in self.space.vmas().gaps(0, self.space.size()) {
            if let Some((page, _)) = pagemap.private_pages(base + start, base + end)?.first() {
                return Err(mismatch(format!("page {:#x} where nothing is mapped", page - base)));
            }
        }
        for vma in self.space.vmas().iter().filter(|vma| vma.is_private()) {
            for (start, end) in pagemap.private_pages(base + vma.start, base + vma.end)? {
                for address in (start - base..end - base).step_by(PAGE as usize) {
                    if vma.protection.is_empty() {
                        continue;
                    }
                    self.space.memory().read_bytes(address, &mut now)?;
                    pristine(image, vma, address, &mut then)?;
                    if let Some(at) = now.iter().zip(&then).position(|(a, b)| a != b) {
                        let known = if self.space.memory().dirty().contains(address / PAGE) { "" } else { " (in no dirty set)" };
                        return Err(mismatch(format!("byte {:#x} of {}{known}", address + at as u64, name_of(vma))));
                    }
                }
            }
        }
        Ok(())
    }
}

/// What a page of a mapping holds in the snapshot: the image's content, else the file's, else zeros.
fn pristine(image: &MemoryImage, vma: &Vma, address: u64, page: &mut [u8; PAGE as usize]) -> Result<(), Errno> {
    image.read_page(address, page);
    if let Backing::File { file, offset, .. } = &vma.backing
        && !image.holds(address)
    {
        let mut filled = 0;
        while filled < page.len() {
            match rustix::io::pread(file, &mut page[filled..], offset + (address - vma.start) + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
    }
    Ok(())
}

/// The text around a position, for a report.
fn around(text: &str, at: usize) -> String {
    String::from_utf8_lossy(&text.as_bytes()[at.saturating_sub(100)..text.len().min(at + 40)]).into_owned()
}

fn name_of(vma: &Vma) -> String {
    match &vma.backing {
        Backing::File { name, .. } => name.to_string(),
        Backing::Anonymous if vma.label.is_empty() => "anonymous memory".into(),
        Backing::Anonymous => vma.label.into(),
    }
}
