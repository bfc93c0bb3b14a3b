//! Names of unix sockets.
use super::Errno;
use crate::linux::Kernel;
use crate::linux::thread::Tid;

/// A name on the host.
pub(super) struct HostName {
    /// Canonical guest path.
    pub(super) path: Vec<u8>,
}

impl HostName {
    pub(super) fn host_path(&self) -> Vec<u8> {
        Vec::new()
    }
}

pub(super) fn canonical(_kernel: &Kernel, _tid: Tid, name: &[u8]) -> Vec<u8> {
    name.to_vec()
}

pub(super) fn to_bind(_kernel: &mut Kernel, _tid: Tid, _name: &[u8]) -> Result<HostName, Errno> {
    Err(Errno::ACCESS)
}

pub(super) fn to_connect(_kernel: &mut Kernel, _tid: Tid, _name: &[u8]) -> Result<HostName, Errno> {
    Err(Errno::ACCESS)
}
