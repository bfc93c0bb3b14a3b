//! `bind(2)` and `listen(2)`.
//!
//! A stream socket that is bound becomes a [`Listener`]: the host socket is bound at once, so that EADDRINUSE and port 0 behave
//! as natively, but never listens before the host decides to. A datagram socket is simply bound on the host.

use std::sync::Arc;

use rustix::net::sockopt;

use super::socket::{Progress, Socket, bind_host, from_host, open_host};
use super::socket_address::{Address, Family, Kind, Named};
use super::socket_base::SocketBase;
use super::stream::Listener;
use super::stream_host::BindFailure;
use super::{Errno, File, FileId, Files, socket_path};
use crate::linux::Kernel;
use crate::linux::thread::Tid;

/// How many failures to bind are remembered for the operator.
const FAILURES_MAX: usize = 8;

/// `bind(2)`.
///
/// # Errors
///
/// EACCES without a grant, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EINVAL.
pub fn bind(kernel: &mut Kernel, tid: Tid, file: FileId, named: Named) -> Result<(), Errno> {
    let File::Socket(socket) = &kernel.files.get(file)?.file else { return Err(Errno::INVAL) };
    if socket.bound.is_some() || socket.progress != Progress::Fresh {
        return Err(Errno::INVAL);
    }
    let address = match named {
        Named::Address(family, address) if family == socket.base.family => address,
        Named::Address(..) => return Err(Errno::AFNOSUPPORT),
        Named::Unspecified => return Err(Errno::INVAL),
    };
    match (socket.base.family, socket.base.kind) {
        (Family::Unix, kind) => bind_unix(kernel, tid, file, &address, kind),
        (_, Kind::Stream) => bind_stream(kernel, file, &address),
        _ => bind_datagram(kernel, file, &address),
    }
}

/// Whether binding leads nowhere that an implicit bind would not: any address, any port.
fn is_wildcard(address: &Address) -> bool {
    address.canonical().is_some_and(|address| address.ip().is_unspecified() && address.port() == 0)
}

fn may_listen(kernel: &mut Kernel, address: &Address) -> bool {
    let Some(canonical) = address.canonical() else { return false };
    let allowed = kernel.grants.may_listen(canonical);
    if !allowed && !is_wildcard(address) {
        kernel.note(format!("the program may not listen on {canonical}"));
        remember_failure(&mut kernel.files, address, Errno::ACCESS);
    }
    allowed
}

fn bind_stream(kernel: &mut Kernel, file: FileId, address: &Address) -> Result<(), Errno> {
    let allowed = may_listen(kernel, address);
    // A wildcard bind may precede a connect; should the socket listen, its address is checked then.
    if !allowed && !is_wildcard(address) {
        return Err(Errno::ACCESS);
    }
    let base = kernel.files.get(file)?.file.socket()?.clone();
    check_conflict(&kernel.files, &base, address, false)?;
    match bound_host(&base, address) {
        Ok((host, local)) => {
            let listener = Listener::new(SocketBase { local, ..base }, Some(Arc::new(host)));
            become_listener(kernel, file, listener)
        }
        Err(errno) => {
            remember_failure(&mut kernel.files, address, errno);
            Err(errno)
        }
    }
}

fn bound_host(base: &SocketBase, address: &Address) -> Result<(std::os::fd::OwnedFd, Address), Errno> {
    let host = open_host(base)?;
    // A restarted server must not wait for connections of its predecessor to time out; other VMs never listen here.
    sockopt::set_socket_reuseaddr(&host, true)?;
    bind_host(&host, address)?;
    let local = from_host(&rustix::net::getsockname(&host)?);
    Ok((host, local))
}

fn become_listener(kernel: &mut Kernel, file: FileId, listener: Listener) -> Result<(), Errno> {
    kernel.files.changes += 1;
    kernel.files.get_mut(file)?.file = File::Listener(listener);
    Ok(())
}

fn remember_failure(files: &mut Files, address: &Address, errno: Errno) {
    if files.bind_failures.len() < FAILURES_MAX {
        files.bind_failures.push(BindFailure { address: address.clone(), errno });
    }
}

/// Sockets of this VM on the same port: the host cannot judge them, because none of its sockets listens.
fn check_conflict(files: &Files, base: &SocketBase, address: &Address, listens: bool) -> Result<(), Errno> {
    let Some(wanted) = address.canonical().filter(|wanted| wanted.port() != 0) else { return Ok(()) };
    let conflicts = |other: &Listener| {
        let Some(taken) = other.base.local.canonical() else { return false };
        let only_v6 = |base: &SocketBase| base.family == Family::Inet6 && base.options.v6_only;
        let same_family = wanted.is_ipv4() == taken.is_ipv4();
        let overlap = if same_family {
            wanted.ip() == taken.ip() || wanted.ip().is_unspecified() || taken.ip().is_unspecified()
        } else {
            // A dual-stack wildcard covers IPv4 too.
            (wanted.is_ipv6() && wanted.ip().is_unspecified() && !only_v6(base))
                || (taken.is_ipv6() && taken.ip().is_unspecified() && !only_v6(&other.base))
        };
        let shares_port = base.options.reuse_port && other.base.options.reuse_port;
        let shares_address = base.options.reuse_address && other.base.options.reuse_address && !other.listening && !listens;
        overlap && wanted.port() == taken.port() && !shares_port && !shares_address
    };
    let taken =
        files.iter().any(|(_, slot)| matches!(&slot.file, File::Listener(other) if (!listens || other.listening) && conflicts(other)));
    if taken { Err(Errno::ADDRINUSE) } else { Ok(()) }
}

fn bind_datagram(kernel: &mut Kernel, file: FileId, address: &Address) -> Result<(), Errno> {
    if !is_wildcard(address) && !may_listen(kernel, address) {
        return Err(Errno::ACCESS);
    }
    let File::Socket(socket) = &mut kernel.files.get_mut(file)?.file else { return Err(Errno::INVAL) };
    let host = socket.host()?;
    bind_host(&host, address)?;
    socket.bound = Some(address.clone());
    socket.learn_local();
    Ok(())
}

fn bind_unix(kernel: &mut Kernel, tid: Tid, file: FileId, address: &Address, kind: Kind) -> Result<(), Errno> {
    let Address::Unix(name) = address else { return Err(Errno::ACCESS) };
    let place = socket_path::to_bind(kernel, tid, name)?;
    let base = kernel.files.get(file)?.file.socket()?.clone();
    let host = open_host(&base)?;
    bind_host(&host, &Address::Unix(place.host_path()))?;
    let base = SocketBase { local: Address::Unix(name.clone()), ..base };
    if kind == Kind::Datagram {
        let File::Socket(socket) = &mut kernel.files.get_mut(file)?.file else { return Err(Errno::INVAL) };
        *socket = Socket { host: Some(Arc::new(host)), ..Socket::new(base) };
        return Ok(());
    }
    let mut listener = Listener::new(base, Some(Arc::new(host)));
    listener.path = Some(place.path);
    become_listener(kernel, file, listener)
}

/// `listen(2)`.
///
/// # Errors
///
/// EACCES without a grant, EADDRINUSE, EINVAL, EOPNOTSUPP.
pub fn listen(kernel: &mut Kernel, tid: Tid, file: FileId, backlog: u32) -> Result<(), Errno> {
    let base = kernel.files.get(file)?.file.socket()?.clone();
    if base.kind == Kind::Datagram {
        return Err(Errno::OPNOTSUPP);
    }
    if let File::Socket(socket) = &kernel.files.get(file)?.file {
        if socket.progress != Progress::Fresh || base.family == Family::Unix {
            return Err(Errno::INVAL);
        }
        // Listening without a bind takes any free port.
        let any = Address::any(base.family);
        bind(kernel, tid, file, Named::Address(base.family, any))?;
    }
    let base = kernel.files.listener(file)?.base.clone();
    let already = kernel.files.listener(file)?.listening;
    if !already {
        if base.family != Family::Unix && !may_listen(kernel, &base.local) {
            return Err(Errno::ACCESS);
        }
        check_conflict(&kernel.files, &base, &base.local, true)?;
    }
    kernel.files.changes += 1;
    let listener = kernel.files.listener(file)?;
    listener.listening = true;
    listener.backlog = backlog;
    Ok(())
}
