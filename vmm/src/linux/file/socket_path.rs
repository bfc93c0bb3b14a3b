//! Names of unix sockets: resolved like every other path, below the grants. Connecting asks for the right to write, as Linux
//! does of the socket's file; abstract names belong to the host's network namespace and are refused.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use linux_raw_sys::general::AT_FDCWD;
use rustix::fs::FileType;

use super::Errno;
use crate::linux::Kernel;
use crate::linux::path::{Last, Node, Walker};
use crate::linux::thread::Tid;

/// A socket's place on the host, held by a descriptor so that nobody can put something else there.
pub(super) struct HostName {
    /// Canonical path in the guest.
    pub(super) path: Vec<u8>,
    handle: Arc<OwnedFd>,
    /// The name in the directory `handle`; none where `handle` is the socket itself.
    name: Option<Vec<u8>>,
}

impl HostName {
    /// A path by which host calls reach exactly this place.
    pub(super) fn host_path(&self) -> Vec<u8> {
        let mut path = format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into_bytes();
        if let Some(name) = &self.name {
            path.push(b'/');
            path.extend(name);
        }
        path
    }
}

fn refuse_abstract(kernel: &mut Kernel, name: &[u8]) -> Result<(), Errno> {
    if name.first() == Some(&0) {
        kernel.note("the program may not use abstract unix sockets".into());
        return Err(Errno::ACCESS);
    }
    Ok(())
}

/// The path by which two programs of this VM mean the same socket; what cannot be resolved means itself.
pub(super) fn canonical(kernel: &Kernel, tid: Tid, name: &[u8]) -> Vec<u8> {
    Walker::new(kernel, tid).walk(AT_FDCWD, name, Last::Follow).map_or_else(|_| name.to_vec(), |found| found.path())
}

/// Where a new socket's name would be made.
///
/// # Errors
///
/// EADDRINUSE where something is there, EACCES without a grant, and as `openat(2)`.
pub(super) fn to_bind(kernel: &mut Kernel, tid: Tid, name: &[u8]) -> Result<HostName, Errno> {
    refuse_abstract(kernel, name)?;
    let walker = Walker::new(kernel, tid);
    let found = walker.walk(AT_FDCWD, name, Last::Keep)?;
    if found.place.is_some() {
        return Err(Errno::ADDRINUSE);
    }
    let path = found.path();
    let (handle, name) = walker.holder(&found)?;
    Ok(HostName { path, handle, name: Some(name) })
}

/// The socket that a name leads to.
///
/// # Errors
///
/// ECONNREFUSED where it is no socket, EACCES without a grant, and as `openat(2)`.
pub(super) fn to_connect(kernel: &mut Kernel, tid: Tid, name: &[u8]) -> Result<HostName, Errno> {
    refuse_abstract(kernel, name)?;
    let walker = Walker::new(kernel, tid);
    let place = walker.walk(AT_FDCWD, name, Last::Follow).and_then(crate::linux::path::Found::existing)?;
    let Node::Host(handle, _) = place.node else { return Err(Errno::CONNREFUSED) };
    if !walker.access(&place.path).write {
        kernel.note(format!("the program may not connect to {}", place.path.escape_ascii()));
        return Err(Errno::ACCESS);
    }
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&handle)?.st_mode);
    if kind != FileType::Socket {
        return Err(Errno::CONNREFUSED);
    }
    Ok(HostName { path: place.path, handle, name: None })
}
