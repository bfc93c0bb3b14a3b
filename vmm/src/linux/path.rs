//! The one resolver of guest paths.
//!
//! A walk takes one component at a time through the guest's tree of names: the host's directories below a mount (see
//! [`super::grants`]), the virtual directories above it, and our own /proc, /dev and /sys. The host's kernel never follows a
//! symbolic link for us: a link's text is walked in the guest's tree like any other path, so it leads where the guest could
//! have gone itself, and nowhere else. Every step is made from a descriptor onto a descriptor, so no other process can
//! change the meaning of a path between the check and the use. A run of components without links takes one call
//! (`openat2(2)` with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS).
//!
//! What no grant covers does not exist: looking for it gives ENOENT, which lets programs fall back as they do where a file is
//! missing (OpenSSL and perl give up on EACCES). Making or changing something there gives EACCES.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::Errno;
use super::Kernel;
use super::file::{File, FileId, special};
use super::grants::{Access, Grants, LINKS_MAX};
use super::guest_path::{self, components};
use super::host_path::{self, Step};
use super::thread::Tid;
use crate::clone_in_place::clone_in_place;
use crate::limits::PATH_MAX;

/// Longest file name (NAME_MAX); ENAMETOOLONG.
const NAME_MAX: usize = 255;
/// The directory descriptor that stands for the working directory (AT_FDCWD).
pub const AT_FDCWD: i32 = linux_raw_sys::general::AT_FDCWD;

/// An object in the guest's tree of names.
#[derive(Debug, Clone)]
pub enum Node {
    /// An object of the host that is no symbolic link: an `O_PATH` or open descriptor, and whether it is a directory.
    Host(Arc<OwnedFd>, bool),
    /// A symbolic link of the host, and where it leads.
    HostLink(Arc<OwnedFd>, Vec<u8>),
    /// Something of our own below /proc, /dev or /sys.
    Special(special::Node),
    /// A directory on the way to a mount.
    Virtual,
    /// A symbolic link on the way to a mount.
    VirtualLink(Vec<u8>),
    /// An open file that a name in /proc/self/fd leads to.
    Open(FileId),
}

/// An object and its canonical path.
#[derive(Debug, Clone)]
pub struct Place {
    /// Canonical path.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Node,
}

impl Place {
    /// Whether it is a directory.
    #[must_use]
    pub const fn is_directory(&self) -> bool {
        matches!(self.node, Node::Host(_, true) | Node::Virtual | Node::Special(special::Node::Directory))
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub const fn is_link(&self) -> bool {
        matches!(self.node, Node::HostLink(..) | Node::VirtualLink(_) | Node::Special(special::Node::Link(_)))
    }
}

/// A directory that is held: the working directory.
#[derive(Debug)]
pub struct Directory {
    /// Canonical path, as far as it could be walked.
    pub path: Vec<u8>,
    /// The host's directory, where there is one.
    pub handle: Option<Arc<OwnedFd>>,
}

clone_in_place!(Directory { path, handle });

impl Default for Directory {
    fn default() -> Self {
        Self { path: Vec::from(*b"/"), handle: None }
    }
}

impl Directory {
    /// The directory that a program starts in. It exists for the guest whether or not it may be read.
    #[must_use]
    pub fn first(grants: &Grants) -> Self {
        let walker = Walker { grants, process: None };
        let found = walker.root().and_then(|root| walker.walk_from(root, grants.working_directory(), Last::Follow)?.existing());
        match found {
            Ok(Place { path, node: Node::Host(handle, true) }) => Self { path, handle: Some(handle) },
            _ => Self { path: guest_path::fold(grants.working_directory()), handle: None },
        }
    }
}

/// What to do with a symbolic link that is the last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// Follow it.
    Follow,
    /// Keep it (O_NOFOLLOW, AT_SYMLINK_NOFOLLOW, and whatever makes or removes names).
    Keep,
}

/// Where a walk may go (`openat2(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scope {
    no_links: bool,
    no_magic_links: bool,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Bound {
    #[default]
    None,
    /// Leaving the start is an error.
    Beneath,
    /// The start is the root.
    InRoot,
}

impl Scope {
    /// From `resolve` of `struct open_how`.
    ///
    /// # Errors
    ///
    /// EINVAL for what is unknown or unsupported, EAGAIN for RESOLVE_CACHED (nothing is cached).
    pub fn from_resolve(resolve: u64) -> Result<Self, Errno> {
        use linux_raw_sys::general as abi;
        let has = |flag: u32| resolve & u64::from(flag) != 0;
        let known =
            abi::RESOLVE_NO_MAGICLINKS | abi::RESOLVE_NO_SYMLINKS | abi::RESOLVE_BENEATH | abi::RESOLVE_IN_ROOT | abi::RESOLVE_CACHED;
        if resolve & !u64::from(known) != 0 || has(abi::RESOLVE_BENEATH) && has(abi::RESOLVE_IN_ROOT) {
            return Err(Errno::INVAL);
        }
        if has(abi::RESOLVE_CACHED) {
            return Err(Errno::AGAIN);
        }
        let bound = match (has(abi::RESOLVE_BENEATH), has(abi::RESOLVE_IN_ROOT)) {
            (true, _) => Bound::Beneath,
            (_, true) => Bound::InRoot,
            _ => Bound::None,
        };
        // A bounded walk takes no magic link either: it would leave the bound without passing it.
        let no_magic_links = has(abi::RESOLVE_NO_MAGICLINKS) || bound != Bound::None;
        Ok(Self { no_links: has(abi::RESOLVE_NO_SYMLINKS), no_magic_links, bound })
    }
}

/// Where a walk ended.
#[derive(Debug, Clone)]
pub struct Found {
    /// The directory in which the last component was looked up.
    pub directory: Place,
    /// The last component; empty where the path ended in `/`, `.` or `..`, all of which name a directory by itself.
    pub name: Vec<u8>,
    /// What is there, if anything.
    pub place: Option<Place>,
    /// The path ended with a slash: it means a directory.
    pub slash: bool,
}

impl Found {
    /// What is there.
    ///
    /// # Errors
    ///
    /// ENOENT; ENOTDIR where a path with a slash at its end names something else than a directory.
    pub fn existing(self) -> Result<Place, Errno> {
        let place = self.place.ok_or(Errno::NOENT)?;
        if self.slash && !place.is_directory() { Err(Errno::NOTDIR) } else { Ok(place) }
    }

    /// The canonical path of what was looked for.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        match &self.place {
            Some(place) => place.path.clone(),
            None => guest_path::join(&self.directory.path, &self.name),
        }
    }
}

/// Walks paths on behalf of one thread.
#[derive(Debug, Clone, Copy)]
pub struct Walker<'a> {
    grants: &'a Grants,
    /// The process that walks; `None` while a program is being loaded: then there is no working directory and no /proc.
    process: Option<(&'a Kernel, Tid)>,
}

impl<'a> Walker<'a> {
    /// A walker for this thread.
    #[must_use]
    pub fn new(kernel: &'a Kernel, tid: Tid) -> Self {
        Self { grants: &kernel.grants, process: Some((kernel, tid)) }
    }

    fn kernel(&self) -> Result<&'a Kernel, Errno> {
        self.process.map(|(kernel, _)| kernel).ok_or(Errno::NOENT)
    }

    /// What the program may do with a canonical path.
    #[must_use]
    pub fn access(&self, path: &[u8]) -> Access {
        self.grants.access(path)
    }

    /// The guest's root directory.
    ///
    /// # Errors
    ///
    /// As `openat(2)`.
    pub fn root(&self) -> Result<Place, Errno> {
        let node = match self.grants.mount_at(b"/") {
            Some(mount) => match mount.open()? {
                Step::Object(handle, directory) => Node::Host(Arc::new(handle), directory),
                _ => Node::Virtual,
            },
            None => Node::Virtual,
        };
        Ok(Place { path: Vec::from(*b"/"), node })
    }

    /// The directory that a `dirfd` argument names.
    ///
    /// # Errors
    ///
    /// EBADF; ENOTDIR where it is no directory; ENOENT where the working directory has gone.
    pub fn start(&self, dirfd: i32) -> Result<Place, Errno> {
        if dirfd == AT_FDCWD {
            let cwd = &self.kernel()?.process.cwd;
            return match &cwd.handle {
                Some(handle) => Ok(Place { path: cwd.path.clone(), node: Node::Host(Arc::clone(handle), true) }),
                None => self.walk_from(self.root()?, &cwd.path, Last::Follow)?.existing(),
            };
        }
        let place = self.open_file(self.kernel()?.process.fds.get(dirfd)?)?;
        if place.is_directory() { Ok(place) } else { Err(Errno::NOTDIR) }
    }

    /// The place that an open file stands for.
    ///
    /// # Errors
    ///
    /// EBADF.
    pub fn open_file(&self, id: FileId) -> Result<Place, Errno> {
        Ok(match &self.kernel()?.files.get(id)?.file {
            File::Host(file) => Place { path: file.path().to_vec(), node: file.node() },
            File::Special(file) => Place { path: file.path().to_vec(), node: file.place_node() },
            _ => Place { path: Vec::new(), node: Node::Open(id) },
        })
    }

    /// Walk a path as a guest gave it, from `dirfd` where it is relative.
    ///
    /// # Errors
    ///
    /// ENOENT (also for the empty path), ENOTDIR, ELOOP, ENAMETOOLONG, EBADF, EACCES.
    pub fn walk(&self, dirfd: i32, path: &[u8], last: Last) -> Result<Found, Errno> {
        self.walk_in(dirfd, path, last, Scope::default())
    }

    /// As [`Walker::walk`], within a scope.
    ///
    /// # Errors
    ///
    /// As [`Walker::walk`]; EXDEV where the path leaves a RESOLVE_BENEATH scope.
    pub fn walk_in(&self, dirfd: i32, path: &[u8], last: Last, scope: Scope) -> Result<Found, Errno> {
        match (path.first(), scope.bound) {
            (None, _) => Err(Errno::NOENT),
            (Some(b'/'), Bound::Beneath) => Err(Errno::XDEV),
            (Some(b'/'), Bound::None) => self.walk_scoped(self.root()?, path, last, scope),
            _ => self.walk_scoped(self.start(dirfd)?, path, last, scope),
        }
    }

    /// As [`Walker::walk`], where the start is known.
    ///
    /// # Errors
    ///
    /// As [`Walker::walk`].
    pub fn walk_from(&self, start: Place, path: &[u8], last: Last) -> Result<Found, Errno> {
        self.walk_scoped(start, path, last, Scope::default())
    }

    fn walk_scoped(&self, start: Place, path: &[u8], last: Last, scope: Scope) -> Result<Found, Errno> {
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut walk = Walk::new(start, path, scope);
        while let Some(name) = walk.todo.pop() {
            if !walk.here.is_directory() {
                return Err(Errno::NOTDIR);
            }
            match name.as_slice() {
                b"." => walk.stay(),
                b".." => {
                    match walk.bound_at(&walk.here.path) {
                        Bound::None => walk.here = self.parent(&walk.here)?,
                        Bound::Beneath => return Err(Errno::XDEV),
                        Bound::InRoot => {}
                    }
                    walk.stay();
                }
                _ if name.len() > NAME_MAX => return Err(Errno::NAMETOOLONG),
                _ if self.descend(&mut walk, &name) => {}
                _ => self.step(&mut walk, name, last)?,
            }
        }
        let found = walk.end();
        if let Node::Host(handle, _) | Node::HostLink(handle, _) = &found.place.as_ref().unwrap_or(&found.directory).node {
            host_path::refuse_kernel_file_systems(handle)?;
        }
        Ok(found)
    }

    /// Take all but the last component in one call, where they are plain names on the host with no mount in between.
    fn descend(&self, walk: &mut Walk, name: &[u8]) -> bool {
        let Node::Host(handle, true) = &walk.here.node else { return false };
        let Some((_, between)) = walk.todo.split_first() else { return false };
        if between.iter().any(|name| matches!(name.as_slice(), b"." | b"..") || name.len() > NAME_MAX) {
            return false;
        }
        let names: Vec<&[u8]> = std::iter::once(name).chain(between.iter().rev().map(Vec::as_slice)).collect();
        let way = names.join(&b'/');
        let path = guest_path::join(&walk.here.path, &way);
        if self.grants.has_landmark_between(&walk.here.path, &path) {
            return false;
        }
        let Some(directory) = host_path::descend(handle, &way) else { return false };
        walk.here = Place { path, node: Node::Host(Arc::new(directory), true) };
        walk.todo.truncate(1);
        true
    }

    fn step(&self, walk: &mut Walk, name: Vec<u8>, last: Last) -> Result<(), Errno> {
        let child = self.child(&walk.here, &name)?;
        let is_last = walk.todo.is_empty();
        match child {
            Some(link) if link.is_link() && !(is_last && last == Last::Keep && !walk.slash) => self.follow(walk, link),
            None if !is_last => Err(Errno::NOENT),
            child if is_last => {
                walk.ended_at(name, child);
                Ok(())
            }
            Some(place) => {
                walk.here = place;
                Ok(())
            }
            None => Err(Errno::NOENT),
        }
    }

    fn follow(&self, walk: &mut Walk, link: Place) -> Result<(), Errno> {
        walk.links += 1;
        let is_magic = matches!(link.node, Node::Special(special::Node::Link(special::Link::Descriptor(_))));
        if walk.links > LINKS_MAX || walk.scope.no_links || walk.scope.no_magic_links && is_magic {
            return Err(Errno::LOOP);
        }
        let target = match link.node {
            Node::HostLink(_, target) | Node::VirtualLink(target) => target,
            Node::Special(special::Node::Link(special::Link::Descriptor(fd))) => {
                let place = self.open_file(self.kernel()?.process.fds.get(fd).map_err(|_| Errno::NOENT)?)?;
                walk.jump(guest_path::name(&link.path), place);
                return Ok(());
            }
            Node::Special(special::Node::Link(link)) => {
                let (kernel, tid) = self.process.ok_or(Errno::NOENT)?;
                special::link_target(kernel, tid, link)
            }
            _ => return Err(Errno::INVAL),
        };
        if target.is_empty() {
            return Err(Errno::NOENT);
        }
        if target.first() == Some(&b'/') {
            walk.here = match walk.scope.bound {
                Bound::None => self.root()?,
                Bound::Beneath => return Err(Errno::XDEV),
                Bound::InRoot => walk.start.clone(),
            };
        }
        walk.push(&target);
        Ok(())
    }

    /// The directory that holds a directory.
    fn parent(&self, place: &Place) -> Result<Place, Errno> {
        let path = guest_path::parent(&place.path);
        if path == b"/" { self.root() } else { self.walk_from(self.root()?, path, Last::Keep)?.existing() }
    }

    /// What a directory has under a name.
    ///
    /// # Errors
    ///
    /// As `openat(2)`, ENOENT aside.
    pub fn child(&self, directory: &Place, name: &[u8]) -> Result<Option<Place>, Errno> {
        let path = guest_path::join(&directory.path, name);
        let node = if Grants::is_ours(&path) {
            self.process.and_then(|(kernel, _)| special::lookup(kernel, &path)).map(Node::Special)
        } else if let Some(mount) = self.grants.mount_at(&path) {
            Self::host_node(mount.open()?)
        } else {
            let below = match &directory.node {
                Node::Host(handle, _) => Self::host_node(host_path::step(handle, name)?),
                _ => self.grants.link_at(&path).map(|target| Node::VirtualLink(target.to_vec())),
            };
            below.or_else(|| self.grants.is_on_the_way(&path).then_some(Node::Virtual))
        };
        Ok(node.map(|node| Place { path, node }))
    }

    fn host_node(step: Step) -> Option<Node> {
        match step {
            Step::Object(handle, directory) => Some(Node::Host(Arc::new(handle), directory)),
            Step::Link(handle, target) => Some(Node::HostLink(Arc::new(handle), target)),
            Step::Absent => None,
        }
    }

    /// The host directory and name behind a place where a name is to be made, changed or removed.
    ///
    /// # Errors
    ///
    /// EACCES where no write grant covers it; EBUSY for a directory that is a mount or on the way to one; EEXIST where the path
    /// names a directory by itself (`.`, `..`, `/`).
    pub fn holder(&self, found: &Found) -> Result<(Arc<OwnedFd>, Vec<u8>), Errno> {
        if found.name.is_empty() {
            return Err(Errno::EXIST);
        }
        let path = guest_path::join(&found.directory.path, &found.name);
        if Grants::is_ours(&path) || !self.access(&path).write {
            return Err(Errno::ACCESS);
        }
        if let Some(mount) = self.grants.mount_at(&path) {
            if mount.is_fixed() {
                return Err(Errno::BUSY);
            }
            let (directory, name) = mount.holder().ok_or(Errno::NOENT)?;
            return Ok((Arc::new(directory), name.to_vec()));
        }
        match &found.directory.node {
            Node::Host(handle, true) if found.place.as_ref().is_none_or(|place| !matches!(place.node, Node::Virtual)) => {
                Ok((Arc::clone(handle), found.name.clone()))
            }
            Node::Host(..) => Err(Errno::BUSY),
            _ => Err(Errno::ACCESS),
        }
    }

    /// What ENOENT becomes for a call that wanted to make or change something: EACCES where no grant covers the path at all.
    #[must_use]
    pub fn refusal(&self, path: &[u8], errno: Errno) -> Errno {
        if errno != Errno::NOENT {
            return errno;
        }
        let mut absolute = match self.process {
            Some((kernel, _)) if path.first() != Some(&b'/') => kernel.process.cwd.path.clone(),
            _ => Vec::new(),
        };
        absolute.push(b'/');
        absolute.extend_from_slice(path);
        let folded = guest_path::fold(&absolute);
        if self.access(&folded).any() || Grants::is_ours(&folded) { errno } else { Errno::ACCESS }
    }
}

impl Grants {
    /// Open a file for the loader, by its absolute guest path, on the terms of the program that is being loaded.
    ///
    /// # Errors
    ///
    /// As `open(2)` with O_RDONLY.
    pub fn open_host(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let walker = Walker { grants: self, process: None };
        let place = walker.walk_from(walker.root()?, path, Last::Follow)?.existing()?;
        match place.node {
            Node::Host(handle, _) if self.access(&place.path).read => host_path::open_object(&handle, rustix::fs::OFlags::RDONLY),
            _ => Err(Errno::ACCESS),
        }
    }
}

/// A walk under way.
struct Walk {
    start: Place,
    scope: Scope,
    here: Place,
    /// Components still to be taken, the next one last.
    todo: Vec<Vec<u8>>,
    links: usize,
    slash: bool,
    ended: Option<(Vec<u8>, Option<Place>)>,
}

impl Walk {
    fn new(start: Place, path: &[u8], scope: Scope) -> Self {
        let mut walk = Self { here: start.clone(), start, scope, todo: Vec::new(), links: 0, slash: false, ended: None };
        walk.push(path);
        walk
    }

    fn push(&mut self, path: &[u8]) {
        if self.todo.is_empty() {
            self.slash |= path.last() == Some(&b'/');
        }
        self.todo.extend(components(path).rev().map(<[u8]>::to_vec));
    }

    /// What going up from a directory means.
    fn bound_at(&self, path: &[u8]) -> Bound {
        if path == self.start.path { self.scope.bound } else { Bound::None }
    }

    /// The component named the directory where the walk is.
    fn stay(&mut self) {
        self.ended = None;
    }

    fn ended_at(&mut self, name: Vec<u8>, place: Option<Place>) {
        self.ended = Some((name, place));
    }

    /// A link led straight to an object.
    fn jump(&mut self, name: &[u8], place: Place) {
        if self.todo.is_empty() {
            self.ended = Some((name.to_vec(), Some(place)));
        } else {
            self.here = place;
        }
    }

    fn end(self) -> Found {
        let Self { here, slash, ended, .. } = self;
        match ended {
            Some((name, place)) => Found { directory: here, name, place, slash },
            None => Found { directory: here.clone(), name: Vec::new(), place: Some(here), slash },
        }
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
