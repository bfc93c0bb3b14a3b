//! Which files a program needs before its first own instruction: itself, its interpreters, and the libraries that the
//! dynamic loader will open. These are readable without any permission, so the list is exact in names and generous in
//! variants (a library and its `glibc-hwcaps` builds), but never a directory.
//!
//! The search is that of `ld.so(8)` for glibc and of musl's loader, without what the environment can add
//! (LD_LIBRARY_PATH, LD_PRELOAD: those need a permission) and without /etc/ld.so.preload. All of it happens on the host before
//! the program runs; file contents are untrusted all the same.

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{self, Dyn64};
use object::read::elf::Dyn as _;
use rustix::fs::{Mode, OFlags};

use super::elf::{Elf, ReadAt};
use super::ld_cache::LdCache;
use super::script;

/// Most files in the answer; the largest desktop programs need a few hundred.
const FILES_MAX: usize = 4096;
/// Largest dynamic section that is read, bytes.
const DYNAMIC_BYTES_MAX: u64 = 1 << 20;
/// Longest string of a dynamic section, bytes: a list of search directories.
const STRING_BYTES_MAX: usize = 64 << 10;
const LE: LittleEndian = LittleEndian;

/// Directories that glibc's loader searches by itself, on any distribution.
const GLIBC_DIRECTORIES: [&str; 6] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"];
/// Directories that musl's loader searches where it has no path file.
const MUSL_DIRECTORIES: [&str; 3] = ["/lib", "/usr/local/lib", "/usr/lib"];
const MUSL_PATH_FILE: &str = "/etc/ld-musl-x86_64.path";
/// Names that musl's loader answers itself.
const MUSL_BUILT_IN: [&str; 7] = ["libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."];
const HWCAPS: [&str; 3] = ["glibc-hwcaps/x86-64-v2", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v4"];

/// The files that starting `program` (an absolute host path) needs, under every name the guest may use for them: the
/// program, the interpreters of scripts, the ELF interpreter, ld.so.cache or musl's path file, and all libraries it is linked
/// against. What does not exist or is no program is left out; the loader says so later.
#[must_use]
pub fn implicit_files(program: &Path) -> Vec<PathBuf> {
    let mut found = Found::default();
    let mut at = program.to_path_buf();
    // As deep as scripts nest, and the program at the end.
    for _ in 0..=script::NESTED_MAX {
        let Some(file) = found.add(&at) else { break };
        let mut head = [0; script::HEAD_BYTES];
        let length = file.read_at(0, &mut head).unwrap_or(0);
        match script::parse(head.get(..length).unwrap_or_default()) {
            None => {
                found.add_program(&at, &file);
                break;
            }
            Some(Ok(interpreter)) => {
                let next = PathBuf::from(std::ffi::OsStr::from_bytes(&interpreter.path));
                // `env` runs what its argument names: that program is needed as well.
                if let Some(argument) = interpreter.argument.filter(|_| next.file_name().is_some_and(|name| name == "env"))
                    && let Some(target) = env_target(&argument)
                {
                    found.add_dynamic_program(&target);
                }
                at = next;
            }
            Some(Err(script::NoInterpreter)) => break,
        }
    }
    found.files
}

/// What `#!/usr/bin/env name` or `#!/usr/bin/env -S name -x` runs, by way of the host's PATH.
fn env_target(argument: &[u8]) -> Option<PathBuf> {
    let text = std::str::from_utf8(argument).ok()?;
    let text = text.strip_prefix("-S").unwrap_or(text);
    let name = text.split_ascii_whitespace().find(|word| !word.contains('=') && !word.starts_with('-'))?;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_absolute() && candidate.is_file())
}

#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    known: BTreeSet<PathBuf>,
}

/// How one kind of dynamic loader searches.
struct Search {
    musl: bool,
    cache: LdCache,
    directories: Vec<PathBuf>,
}

/// A library (or the program) whose needs have to be looked up.
struct Pending {
    needed: Vec<String>,
    /// DT_RPATH of this object and of those that needed it, nearest first.
    rpath: Vec<PathBuf>,
    /// DT_RUNPATH of this object alone.
    runpath: Vec<PathBuf>,
}

impl Found {
    /// Note a regular file under the given name and under its real one, and open it; `None` where it cannot be read.
    fn add(&mut self, path: &Path) -> Option<OwnedFd> {
        let file = open(path)?;
        for name in [Some(path.to_path_buf()), path.canonicalize().ok()].into_iter().flatten() {
            if self.files.len() < FILES_MAX && self.known.insert(name.clone()) {
                self.files.push(name);
            }
        }
        Some(file)
    }

    fn add_dynamic_program(&mut self, path: &Path) {
        if let Some(file) = self.add(path) {
            self.add_program(path, &file);
        }
    }

    /// The interpreter and the libraries of a program that is already in the list.
    fn add_program(&mut self, path: &Path, file: &OwnedFd) {
        let Ok(parsed) = Elf::parse(file) else { return };
        let interpreter = parsed.interpreter.as_deref().map(|path| PathBuf::from(std::ffi::OsStr::from_bytes(path)));
        let Some(interpreter) = interpreter else { return };
        self.add(&interpreter);
        let musl = interpreter.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-musl-"));
        let search = if musl { self.musl_search() } else { self.glibc_search() };
        // $ORIGIN of a program is where its file really is; of a library, where the loader found it.
        let real = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let mut queue = VecDeque::from([pending(file, &parsed, &real, Vec::new())]);
        let mut seen = BTreeSet::new();
        while let Some(object) = queue.pop_front() {
            for name in &object.needed {
                // Like the loaders: a name that is loaded already is not searched again.
                if seen.len() >= FILES_MAX
                    || !seen.insert(name.clone())
                    || (musl && MUSL_BUILT_IN.iter().any(|built_in| name.starts_with(built_in)))
                {
                    continue;
                }
                for library in search.find(name, &object) {
                    let Some(file) = self.add(&library) else { continue };
                    if let Ok(parsed) = Elf::parse(&file) {
                        queue.push_back(pending(&file, &parsed, &library, object.rpath.clone()));
                    }
                }
            }
        }
    }

    fn glibc_search(&mut self) -> Search {
        let path = Path::new("/etc/ld.so.cache");
        let cache = self.add(path).map(|file| LdCache::read(&file)).unwrap_or_default();
        Search { musl: false, cache, directories: GLIBC_DIRECTORIES.iter().map(PathBuf::from).collect() }
    }

    fn musl_search(&mut self) -> Search {
        let text = self
            .add(Path::new(MUSL_PATH_FILE))
            .and_then(|file| file.read_exact_at(0, usize::try_from(file.size().ok()?.min(1 << 16)).ok()?).ok()?);
        let directories = match text {
            Some(text) => text
                .split(|&byte| byte == b'\n' || byte == b':')
                .filter(|name| name.starts_with(b"/"))
                .map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name)))
                .collect(),
            None => MUSL_DIRECTORIES.iter().map(PathBuf::from).collect(),
        };
        Search { musl: true, cache: LdCache::default(), directories }
    }
}

impl Search {
    /// All files that the loader may open for `name`, in any order: the first directory that has it, with its variants.
    fn find(&self, name: &str, object: &Pending) -> Vec<PathBuf> {
        if name.contains('/') {
            return if name.starts_with('/') { vec![PathBuf::from(name)] } else { Vec::new() };
        }
        let own = object.rpath.iter().chain(&object.runpath).map(PathBuf::as_path);
        if let Some(files) = own.map(|directory| self.in_directory(directory, name)).find(|files| !files.is_empty()) {
            return files;
        }
        let cached = self.cache.find(name);
        if !cached.is_empty() {
            return cached;
        }
        self.directories.iter().map(|directory| self.in_directory(directory, name)).find(|files| !files.is_empty()).unwrap_or_default()
    }

    fn in_directory(&self, directory: &Path, name: &str) -> Vec<PathBuf> {
        let variants = HWCAPS.iter().filter(|_| !self.musl).map(|variant| directory.join(variant).join(name));
        // A library for another processor is passed over by the loader, which goes on searching.
        variants.chain([directory.join(name)]).filter(|file| open(file).is_some_and(|file| Elf::parse(&file).is_ok())).collect()
    }
}

/// Open a regular file for reading, without waiting for a FIFO.
fn open(path: &Path) -> Option<OwnedFd> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty()).ok()?;
    let status = rustix::fs::fstat(&file).ok()?;
    (rustix::fs::FileType::from_raw_mode(status.st_mode) == rustix::fs::FileType::RegularFile).then_some(file)
}

/// What an object's dynamic section asks for; nothing where it is damaged. `path` gives $ORIGIN.
fn pending(file: &OwnedFd, parsed: &Elf, path: &Path, inherited: Vec<PathBuf>) -> Pending {
    let mut object = Pending { needed: Vec::new(), rpath: Vec::new(), runpath: Vec::new() };
    let entries = dynamic_entries(file, parsed).unwrap_or_default();
    let strings = entries.iter().find(|(tag, _)| *tag == elf::DT_STRTAB).and_then(|&(_, address)| parsed.file_offset(address));
    let text = |value| strings.and_then(|strings| string(file, strings.checked_add(value)?));
    let origin = path.parent().unwrap_or(Path::new("/"));
    for &(tag, value) in &entries {
        match tag {
            elf::DT_NEEDED if object.needed.len() < FILES_MAX => object.needed.extend(text(value)),
            elf::DT_RPATH => object.rpath = text(value).map_or_else(Vec::new, |list| directories(&list, origin)),
            elf::DT_RUNPATH => object.runpath = text(value).map_or_else(Vec::new, |list| directories(&list, origin)),
            _ => {}
        }
    }
    if object.runpath.is_empty() {
        object.rpath.extend(inherited);
    } else {
        // DT_RUNPATH switches DT_RPATH off, also that of the objects above.
        object.rpath.clear();
    }
    object
}

fn dynamic_entries(file: &OwnedFd, parsed: &Elf) -> Option<Vec<(elf::DynamicTag, u64)>> {
    let (offset, size) = parsed.dynamic?;
    let count = usize::try_from(size.min(DYNAMIC_BYTES_MAX)).ok()? / size_of::<Dyn64<LittleEndian>>();
    let bytes = file.read_exact_at(offset, count * size_of::<Dyn64<LittleEndian>>()).ok()??;
    let (entries, _) = object::pod::slice_from_bytes::<Dyn64<LittleEndian>>(&bytes, count).ok()?;
    Some(entries.iter().map(|entry| (entry.tag(LE), entry.val(LE))).take_while(|(tag, _)| *tag != elf::DT_NULL).collect())
}

/// A zero-terminated string of the file.
fn string(file: &OwnedFd, offset: u64) -> Option<String> {
    let mut bytes = Vec::new();
    while bytes.len() < STRING_BYTES_MAX {
        let mut piece = [0; 512];
        let length = file.read_at(offset.checked_add(bytes.len() as u64)?, &mut piece).ok()?;
        let piece = piece.get(..length)?;
        match piece.iter().position(|&byte| byte == 0) {
            Some(end) => {
                bytes.extend_from_slice(piece.get(..end)?);
                return String::from_utf8(bytes).ok();
            }
            None if piece.is_empty() => return None,
            None => bytes.extend_from_slice(piece),
        }
    }
    None
}

/// The directories of a DT_RPATH or DT_RUNPATH list with `$ORIGIN` and `$LIB` replaced.
fn directories(list: &str, origin: &Path) -> Vec<PathBuf> {
    let origin = origin.to_string_lossy();
    let mut all = Vec::new();
    for entry in list.split(':').filter(|entry| !entry.is_empty()) {
        let entry = entry.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin);
        // What $LIB stands for was decided when the loader was built: Debian's word, and everybody else's.
        for lib in ["lib/x86_64-linux-gnu", "lib64"] {
            let directory = PathBuf::from(entry.replace("${LIB}", lib).replace("$LIB", lib));
            if directory.is_absolute() && !directory.to_string_lossy().contains('$') && !all.contains(&directory) {
                all.push(directory);
            }
        }
    }
    all
}

#[cfg(test)]
#[path = "libraries_tests.rs"]
mod tests;
