//! File-system calls as a program makes them, on real files, without a virtual machine: through the table, with guest memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as abi;

use crate::config::SandboxConfig;
use crate::limits::PAGE;
use crate::linux::clock::Clock;
use crate::linux::file::Files;
use crate::linux::futex::FutexTable;
use crate::linux::grants::Grants;
use crate::linux::path::Directory;
use crate::linux::process::{Identity, Process};
use crate::linux::thread::{Thread, Threads};
use crate::linux::{Attempt, Call, Errno, Kernel, Outcome, table};
use crate::memory::{AddressSpace, Backing, MapRequest, Placement, Protection};

const PID: i32 = 2;
const AREA: u64 = 64 << 10;
const CWD: u64 = abi::AT_FDCWD as i64 as u64;

/// A directory of the host that goes away with the test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::temp_dir().join(format!("calls-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&base).expect("directory");
        Self(base)
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process with some memory and no program.
struct Guest {
    kernel: Kernel,
    space: AddressSpace,
    area: u64,
    used: u64,
}

impl Guest {
    fn new(place: &Place, read: bool, write: bool) -> Self {
        let granted = |wanted| if wanted { vec![place.text()] } else { Vec::new() };
        let config = SandboxConfig {
            read: granted(read),
            write: granted(write),
            working_directory: place.text(),
            max_main_memory: 1 << 30,
            ..SandboxConfig::default()
        };
        let grants = Arc::new(Grants::new(&config, Vec::new()).expect("grants"));
        let process = Process::new(PID, Directory::first(&grants), 0o022, Arc::new(Identity::default()), 0);
        let kernel = Kernel {
            process,
            threads: Threads::new(Thread { tid: PID, ..Thread::default() }),
            files: Files::default(),
            futexes: FutexTable::default(),
            clock: Clock::default(),
            grants,
            role: crate::linux::gate::Role::Alone,
            notes: Vec::new(),
        };
        Self::with(kernel)
    }

    fn with(kernel: Kernel) -> Self {
        let mut space = AddressSpace::new(4 << 30, 1 << 30).expect("an address space");
        let protection = Protection::READ | Protection::WRITE;
        let request = MapRequest { placement: Placement::Anywhere, length: AREA, protection, backing: Backing::Anonymous, label: "" };
        let area = space.map(request).expect("memory");
        Self { kernel, space, area, used: 0 }
    }

    /// Another VM that was forked from this one.
    fn fork(&self) -> Self {
        let mut kernel = self.kernel.clone();
        kernel.files.after_fork();
        Self::with(kernel)
    }

    fn attempt(&mut self, number: u32, args: [u64; 6], attempt: Attempt) -> Result<Outcome, Errno> {
        let mut call = Call {
            kernel: &mut self.kernel,
            space: &mut self.space,
            tid: PID,
            number: number as usize,
            args,
            attempt,
            saved_deadline: None,
            progress: 0,
        };
        let entry = table::table()[number as usize].expect("in the table");
        (entry.handler)(&mut call)
    }

    fn call(&mut self, number: u32, args: &[u64]) -> Result<u64, Errno> {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        match self.attempt(number, all, Attempt::First)? {
            Outcome::Return(value) => Ok(value),
            other => panic!("{other:?}"),
        }
    }

    /// Bytes in guest memory.
    fn put(&mut self, bytes: &[u8]) -> u64 {
        let address = self.area + self.used;
        self.used += (bytes.len() as u64).next_multiple_of(16);
        assert!(self.used <= AREA / 2);
        self.space.memory().write_bytes(address, bytes).expect("memory");
        address
    }

    fn path(&mut self, text: &str) -> u64 {
        self.put(format!("{text}\0").as_bytes())
    }

    fn buffer(&self) -> u64 {
        self.area + AREA / 2
    }

    fn open(&mut self, path: &str, flags: u32) -> Result<u64, Errno> {
        let path = self.path(path);
        self.call(abi::__NR_openat, &[CWD, path, u64::from(flags), 0o666])
    }

    fn write(&mut self, fd: u64, bytes: &[u8]) -> Result<u64, Errno> {
        let address = self.put(bytes);
        self.call(abi::__NR_write, &[fd, address, bytes.len() as u64])
    }

    fn read(&mut self, fd: u64, most: u64) -> Result<String, Errno> {
        let buffer = self.buffer();
        let count = self.call(abi::__NR_read, &[fd, buffer, most])?;
        Ok(String::from_utf8_lossy(&self.space.memory().read_vec(buffer, count as usize)?).into_owned())
    }

    fn seek(&mut self, fd: u64, offset: i64, whence: u32) -> Result<u64, Errno> {
        self.call(abi::__NR_lseek, &[fd, offset as u64, u64::from(whence)])
    }
}

const CREATE: u32 = abi::O_RDWR | abi::O_CREAT;

#[test]
fn t10_t11_what_a_read_grant_refuses() {
    let place = Place::new();
    std::fs::write(place.0.join("file"), "kept").expect("file");
    let mut guest = Guest::new(&place, true, false);
    for flags in [abi::O_WRONLY, abi::O_RDWR, abi::O_TRUNC, CREATE, abi::O_WRONLY | abi::O_TRUNC] {
        assert_eq!(guest.open("file", flags), Err(Errno::ACCESS), "{flags:o}");
    }
    assert_eq!(guest.open("new", CREATE), Err(Errno::ACCESS));
    assert_eq!(guest.open("new", abi::O_RDONLY | abi::O_CREAT), Err(Errno::ACCESS));
    assert_eq!(guest.open(".", abi::O_TMPFILE | abi::O_RDWR), Err(Errno::ACCESS));
    let path = guest.path("file");
    for (number, args) in [
        (abi::__NR_truncate, [path, 0, 0]),
        (abi::__NR_unlink, [path, 0, 0]),
        (abi::__NR_chmod, [path, 0o777, 0]),
        (abi::__NR_utime, [path, 0, 0]),
        (abi::__NR_chown, [path, 0, 0]),
        (abi::__NR_mkdir, [path, 0, 0]),
    ] {
        assert!(guest.call(number, &args).is_err(), "{number}");
    }
    let fd = guest.open("file", abi::O_RDONLY).expect("readable");
    assert_eq!(guest.call(abi::__NR_ftruncate, &[fd, 0]), Err(Errno::INVAL));
    assert_eq!(guest.read(fd, 100).as_deref(), Ok("kept"));
    assert_eq!(std::fs::read_to_string(place.0.join("file")).expect("file"), "kept");
}

#[test]
fn outside_every_grant_nothing_is_there_and_nothing_can_be_made() {
    let place = Place::new();
    let mut guest = Guest::new(&place, true, true);
    assert_eq!(guest.open("/etc/passwd", abi::O_RDONLY), Err(Errno::NOENT));
    assert_eq!(guest.open("/etc/passwd", abi::O_WRONLY), Err(Errno::ACCESS));
    assert_eq!(guest.open("/no-such-directory/x", CREATE), Err(Errno::ACCESS));
    assert_eq!(guest.open("/new", CREATE), Err(Errno::ACCESS));
    let (path, made) = (guest.path("/opt"), guest.path("/"));
    assert_eq!(guest.call(abi::__NR_mkdir, &[path, 0o777]), Err(Errno::ACCESS));
    assert_eq!(guest.call(abi::__NR_mkdir, &[made, 0o777]), Err(Errno::EXIST));
}

#[test]
fn the_library_for_guests_is_there_without_any_grant_and_cannot_be_changed() {
    let place = Place::new();
    let mut guest = Guest::new(&place, false, false);
    for path in ["/usr/lib/libkvmserverguest.so", "/usr/lib64/libkvmserverguest.so"] {
        let fd = guest.open(path, abi::O_RDONLY).expect("readable");
        assert!(guest.read(fd, 4).expect("an ELF file").contains("ELF"));
        assert_eq!(guest.open(path, abi::O_RDWR), Err(Errno::ACCESS));
        let name = guest.path(path);
        assert_eq!(guest.call(abi::__NR_unlink, &[name]), Err(Errno::ACCESS));
    }
}

#[test]
fn a_write_grant_alone_does_not_read() {
    let place = Place::new();
    std::fs::write(place.0.join("file"), "kept").expect("file");
    let mut guest = Guest::new(&place, false, true);
    assert_eq!(guest.open("file", abi::O_RDONLY), Err(Errno::ACCESS));
    assert_eq!(guest.open("file", abi::O_RDWR), Err(Errno::ACCESS));
    let fd = guest.open("new", abi::O_WRONLY | abi::O_CREAT | abi::O_EXCL).expect("made");
    assert_eq!(guest.write(fd, b"text"), Ok(4));
    assert_eq!(guest.read(fd, 4), Err(Errno::BADF));
    assert_eq!(guest.open("new", abi::O_WRONLY | abi::O_CREAT | abi::O_EXCL), Err(Errno::EXIST));
    let (old, new) = (guest.path("file"), guest.path("moved"));
    assert_eq!(guest.call(abi::__NR_rename, &[old, new]), Ok(0));
}

#[test]
fn the_mask_applies_and_set_user_id_does_not() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let mut guest = Guest::new(&place, true, true);
    guest.call(abi::__NR_umask, &[0o027]).expect("umask");
    guest.open("file", CREATE).expect("made");
    let path = guest.path("directory");
    guest.call(abi::__NR_mkdir, &[path, 0o777]).expect("made");
    let mode = |name: &str| std::fs::metadata(place.0.join(name)).expect("there").permissions().mode() & 0o7777;
    assert_eq!((mode("file"), mode("directory")), (0o640, 0o750));
    let path = guest.path("file");
    guest.call(abi::__NR_chmod, &[path, 0o6755]).expect("changed");
    assert_eq!(mode("file"), 0o755);
}

#[test]
fn k13_n7_a_fork_has_its_own_offsets() {
    let place = Place::new();
    std::fs::write(place.0.join("file"), "abcdef").expect("file");
    let mut guest = Guest::new(&place, true, false);
    let fd = guest.open("file", abi::O_RDONLY).expect("opened");
    assert_eq!(guest.read(fd, 2).as_deref(), Ok("ab"));
    let mut fork = guest.fork();
    assert_eq!(fork.read(fd, 2).as_deref(), Ok("cd"));
    assert_eq!(guest.read(fd, 2).as_deref(), Ok("cd"));
    assert_eq!(fork.open("file", abi::O_RDONLY), guest.open("file", abi::O_RDONLY));
}

#[test]
fn duplicates_share_an_offset_and_append_appends() {
    let place = Place::new();
    let mut guest = Guest::new(&place, true, true);
    let fd = guest.open("file", CREATE | abi::O_APPEND).expect("made");
    let twin = guest.call(abi::__NR_dup, &[fd]).expect("dup");
    assert_eq!((guest.write(fd, b"one"), guest.write(twin, b"two")), (Ok(3), Ok(3)));
    guest.seek(twin, 0, abi::SEEK_SET).expect("seek");
    assert_eq!(guest.write(fd, b"three"), Ok(5));
    assert_eq!(guest.seek(twin, 0, abi::SEEK_CUR), Ok(11));
    assert_eq!(std::fs::read_to_string(place.0.join("file")).expect("file"), "onetwothree");
    // N12: F_DUPFD really duplicates; unknown commands are refused.
    assert_eq!(guest.call(abi::__NR_fcntl, &[fd, u64::from(abi::F_DUPFD), 40]), Ok(40));
    assert_eq!(guest.call(abi::__NR_fcntl, &[fd, 999, 0]), Err(Errno::INVAL));
    assert_eq!(guest.call(abi::__NR_dup2, &[fd, 50]), Ok(50));
    assert_eq!(guest.call(abi::__NR_close_range, &[40, 60, 0]), Ok(0));
    assert_eq!(guest.call(abi::__NR_close, &[50]), Err(Errno::BADF));
}

fn record(kind: u32, start: i64, length: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&(kind as i16).to_ne_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&start.to_ne_bytes());
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

#[test]
fn n10_locks_hold_between_virtual_machines() {
    let place = Place::new();
    let mut one = Guest::new(&place, true, true);
    let fd = one.open("file", CREATE).expect("made");
    let mut other = one.fork();
    let (exclusive, unlock) = (u64::from(abi::LOCK_EX | abi::LOCK_NB), u64::from(abi::LOCK_UN));
    assert_eq!(one.call(abi::__NR_flock, &[fd, exclusive]), Ok(0));
    assert_eq!(other.call(abi::__NR_flock, &[fd, exclusive]), Err(Errno::WOULDBLOCK));
    let waits = other.attempt(abi::__NR_flock, [fd, u64::from(abi::LOCK_EX), 0, 0, 0, 0], Attempt::First);
    assert!(matches!(waits, Ok(Outcome::Block(_))));
    assert_eq!(one.call(abi::__NR_flock, &[fd, unlock]), Ok(0));
    assert_eq!(other.call(abi::__NR_flock, &[fd, exclusive]), Ok(0));
    assert_eq!(other.call(abi::__NR_close, &[fd]), Ok(0));
    assert_eq!(one.call(abi::__NR_flock, &[fd, exclusive]), Ok(0));
}

#[test]
fn n10_record_locks_belong_to_a_process_or_a_description() {
    let place = Place::new();
    let mut one = Guest::new(&place, true, true);
    let fd = one.open("file", CREATE).expect("made");
    let again = one.open("file", abi::O_RDWR).expect("opened");
    let mut other = one.fork();
    let write_lock = record(abi::F_WRLCK, 0, 10);
    let (here, there) = (one.put(&write_lock), other.put(&write_lock));
    let command = |command: u32| u64::from(command);
    assert_eq!(one.call(abi::__NR_fcntl, &[fd, command(abi::F_SETLK), here]), Ok(0));
    // The same process through another descriptor has the lock already; another VM has not.
    assert_eq!(one.call(abi::__NR_fcntl, &[again, command(abi::F_SETLK), here]), Ok(0));
    assert_eq!(other.call(abi::__NR_fcntl, &[fd, command(abi::F_SETLK), there]), Err(Errno::AGAIN));
    assert_eq!(other.call(abi::__NR_fcntl, &[fd, command(abi::F_GETLK), there]), Ok(0));
    let kind = other.space.memory().read::<i16>(there).expect("memory");
    assert_eq!(u32::try_from(kind), Ok(abi::F_WRLCK));
    let there = other.put(&write_lock);
    // Closing any descriptor of the file gives the process's record locks up.
    assert_eq!(one.call(abi::__NR_close, &[again]), Ok(0));
    assert_eq!(other.call(abi::__NR_fcntl, &[fd, command(abi::F_SETLK), there]), Ok(0));
    // Locks of a description are kept apart within a process.
    let again = other.open("file", abi::O_RDWR).expect("opened");
    let far = other.put(&record(abi::F_WRLCK, 100, 10));
    assert_eq!(other.call(abi::__NR_fcntl, &[fd, command(abi::F_OFD_SETLK), far]), Ok(0));
    assert_eq!(other.call(abi::__NR_fcntl, &[again, command(abi::F_OFD_SETLK), far]), Err(Errno::AGAIN));
}

#[test]
fn files_in_memory_are_private_to_a_virtual_machine() {
    let place = Place::new();
    let mut guest = Guest::new(&place, false, false);
    let fd = guest.open("/dev/shm/name", CREATE | abi::O_EXCL).expect("made");
    assert_eq!(guest.write(fd, b"before"), Ok(6));
    let mut fork = guest.fork();
    assert_eq!(fork.call(abi::__NR_ftruncate, &[fd, 2]), Ok(0));
    fork.seek(fd, 0, abi::SEEK_SET).expect("seek");
    assert_eq!(fork.read(fd, 10).as_deref(), Ok("be"));
    assert_eq!(guest.seek(fd, 0, abi::SEEK_END), Ok(6));
    let name = guest.path("/dev/shm/name");
    assert_eq!(guest.call(abi::__NR_unlink, &[name]), Ok(0));
    assert_eq!(guest.open("/dev/shm/name", abi::O_RDONLY), Err(Errno::NOENT));
    assert!(fork.open("/dev/shm/name", abi::O_RDONLY).is_ok());
    assert!(!std::path::Path::new("/dev/shm/name").exists());
}

#[test]
fn directories_are_listed_in_pieces() {
    let place = Place::new();
    for index in 0..100 {
        std::fs::write(place.0.join(format!("file-{index}")), "").expect("file");
    }
    let mut guest = Guest::new(&place, true, false);
    let fd = guest.open(".", abi::O_RDONLY | abi::O_DIRECTORY).expect("opened");
    assert_eq!(guest.call(abi::__NR_getdents64, &[fd, guest.area + AREA / 2, 10]), Err(Errno::INVAL));
    let mut names = Vec::new();
    loop {
        let buffer = guest.buffer();
        let count = guest.call(abi::__NR_getdents64, &[fd, buffer, 300]).expect("listed");
        if count == 0 {
            break;
        }
        let bytes = guest.space.memory().read_vec(buffer, count as usize).expect("memory");
        let mut at = 0;
        while at < bytes.len() {
            let length = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
            let name = bytes[at + 19..at + length].split(|byte| *byte == 0).next().unwrap_or_default();
            names.push(String::from_utf8_lossy(name).into_owned());
            at += length;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 102);
    // T2: not a directory.
    let file = guest.open("file-1", abi::O_RDONLY).expect("opened");
    assert_eq!(guest.call(abi::__NR_getdents64, &[file, guest.area, 300]), Err(Errno::NOTDIR));
}

#[test]
fn copies_pass_by_the_program() {
    let place = Place::new();
    std::fs::write(place.0.join("from"), "0123456789").expect("file");
    let mut guest = Guest::new(&place, true, true);
    let (from, to) = (guest.open("from", abi::O_RDONLY).expect("opened"), guest.open("to", CREATE).expect("made"));
    let offset = guest.put(&3_u64.to_ne_bytes());
    assert_eq!(guest.call(abi::__NR_sendfile, &[to, from, offset, 4]), Ok(4));
    assert_eq!(guest.space.memory().read::<u64>(offset), Ok(7));
    assert_eq!(guest.call(abi::__NR_copy_file_range, &[from, 0, to, 0, 100, 0]), Ok(10));
    assert_eq!(std::fs::read_to_string(place.0.join("to")).expect("file"), "34560123456789");
    let ends = guest.put(&[0; 8]);
    guest.call(abi::__NR_pipe, &[ends]).expect("pipe");
    let [reader, writer] = guest.space.memory().read::<[u32; 2]>(ends).expect("memory").map(u64::from);
    assert_eq!(guest.call(abi::__NR_splice, &[from, offset, writer, 0, 100, 0]), Ok(3));
    assert_eq!(guest.call(abi::__NR_splice, &[reader, 0, to, 0, 100, 0]), Ok(3));
    assert_eq!(std::fs::read_to_string(place.0.join("to")).expect("file"), "34560123456789789");
    assert_eq!(guest.call(abi::__NR_fcntl, &[writer, u64::from(abi::F_SETPIPE_SZ), 5000]), Ok(8192));
}

#[test]
fn names_that_come_and_go() {
    let place = Place::new();
    let mut guest = Guest::new(&place, true, true);
    // A file without a name gets one.
    let fd = guest.open(".", abi::O_TMPFILE | abi::O_RDWR).expect("made");
    assert_eq!(guest.write(fd, b"unnamed"), Ok(7));
    let (link, name) = (guest.path(&format!("/proc/self/fd/{fd}")), guest.path("named"));
    assert_eq!(guest.call(abi::__NR_linkat, &[CWD, link, CWD, name, u64::from(abi::AT_SYMLINK_FOLLOW)]), Ok(0));
    assert_eq!(std::fs::read_to_string(place.0.join("named")).expect("file"), "unnamed");
    // The working directory and open files follow a rename.
    let old = guest.path("old");
    guest.call(abi::__NR_mkdir, &[old, 0o777]).expect("made");
    let inside = guest.open("old/file", CREATE).expect("made");
    let here = guest.path("old");
    guest.call(abi::__NR_chdir, &[here]).expect("changed");
    let (from, to) = (guest.path(&format!("{}/old", place.text())), guest.path(&format!("{}/new", place.text())));
    assert_eq!(guest.call(abi::__NR_rename, &[from, to]), Ok(0));
    let buffer = guest.buffer();
    guest.call(abi::__NR_getcwd, &[buffer, 4096]).expect("named");
    assert_eq!(guest.space.memory().read_string(buffer, 4096), Ok(format!("{}/new", place.text()).into_bytes()));
    let link = guest.path(&format!("/proc/self/fd/{inside}"));
    let text = |guest: &Guest, count: u64| {
        String::from_utf8(guest.space.memory().read_vec(guest.buffer(), count as usize).expect("memory")).expect("text")
    };
    let count = guest.call(abi::__NR_readlink, &[link, buffer, 4096]).expect("link");
    assert_eq!(text(&guest, count), format!("{}/new/file", place.text()));
    let path = guest.path("file");
    assert_eq!(guest.call(abi::__NR_unlink, &[path]), Ok(0));
    let count = guest.call(abi::__NR_readlink, &[link, buffer, 4096]).expect("link");
    assert_eq!(text(&guest, count), format!("{}/new/file (deleted)", place.text()));
    // A directory that has gone has no name.
    assert_eq!(guest.call(abi::__NR_rmdir, &[to]), Ok(0));
    assert_eq!(guest.call(abi::__NR_getcwd, &[buffer, 4096]), Err(Errno::NOENT));
    assert_eq!(guest.open("x", CREATE), Err(Errno::NOENT));
}

#[test]
fn file_sizes_have_a_limit() {
    let place = Place::new();
    let mut guest = Guest::new(&place, true, true);
    guest.kernel.process.rlimits[abi::RLIMIT_FSIZE as usize].0 = 5;
    let fd = guest.open("file", CREATE).expect("made");
    assert_eq!(guest.write(fd, b"abcdefgh"), Ok(5));
    assert_eq!(guest.write(fd, b"x"), Err(Errno::FBIG));
    assert_eq!(guest.call(abi::__NR_ftruncate, &[fd, 6]), Err(Errno::FBIG));
    assert_eq!(guest.call(abi::__NR_ftruncate, &[fd, 4]), Ok(0));
}

#[test]
fn t1_t15_bad_lengths_and_pointers_are_answered() {
    let place = Place::new();
    std::fs::write(place.0.join("file"), "abcdef").expect("file");
    let mut guest = Guest::new(&place, true, true);
    let fd = guest.open("file", abi::O_RDWR).expect("opened");
    for (address, length) in [(0, 6), (u64::MAX - 2, 6), (1 << 47, 6), (guest.space.memory().size() - 2, 6)] {
        assert_eq!(guest.call(abi::__NR_read, &[fd, address, length]), Err(Errno::FAULT), "{address:x}");
        assert_eq!(guest.call(abi::__NR_write, &[fd, address, length]), Err(Errno::FAULT), "{address:x}");
    }
    assert_eq!(guest.call(abi::__NR_write, &[fd, 0, 0]), Ok(0));
    assert_eq!(guest.call(abi::__NR_read, &[fd, 0, u64::MAX]), Err(Errno::INVAL));
    assert_eq!(guest.call(abi::__NR_pread64, &[fd, 0, 1, u64::MAX]), Err(Errno::INVAL));
    assert_eq!(guest.call(abi::__NR_readv, &[fd, guest.area, 1025]), Err(Errno::INVAL));
    assert_eq!(guest.call(abi::__NR_openat, &[CWD, 8, 0, 0]), Err(Errno::FAULT));
    assert_eq!(guest.call(abi::__NR_fstat, &[fd, 8]), Err(Errno::FAULT));
    assert_eq!(guest.seek(fd, i64::MIN, abi::SEEK_CUR), Err(Errno::INVAL));
    assert_eq!(guest.call(abi::__NR_getcwd, &[guest.area, 3]), Err(Errno::RANGE));
    let page = guest.area.next_multiple_of(PAGE);
    guest.space.unmap(page + AREA / 4, PAGE).expect("unmapped");
    let text = guest.path("file");
    assert_eq!(guest.call(abi::__NR_stat, &[text, page + AREA / 4]), Err(Errno::FAULT));
}

#[test]
fn our_own_trees_answer_like_linux() {
    let place = Place::new();
    let mut guest = Guest::new(&place, false, false);
    for (path, expected) in
        [("/proc/self/comm", "\n"), ("/proc/sys/net/core/somaxconn", "4096\n"), ("/sys/devices/system/cpu/online", "0\n")]
    {
        let fd = guest.open(path, abi::O_RDONLY).expect(path);
        assert_eq!(guest.read(fd, 100).as_deref(), Ok(expected), "{path}");
        assert_eq!(guest.read(fd, 100).as_deref(), Ok(""), "{path}");
    }
    assert_eq!(guest.open("/proc/1/status", abi::O_RDONLY), Err(Errno::NOENT));
    assert_eq!(guest.open("/proc/self/maps", abi::O_RDWR), Err(Errno::ACCESS));
    assert_eq!(guest.open("/proc/self/mem", abi::O_RDWR), Err(Errno::NOENT));
    assert_eq!(guest.open("/dev/kvm", abi::O_RDWR), Err(Errno::NOENT));
    assert_eq!(guest.open("/proc/self", abi::O_RDONLY | abi::O_NOFOLLOW), Err(Errno::LOOP));
    let name = guest.path("/proc/self/task/../fd/../../self");
    let buffer = guest.buffer();
    assert_eq!(guest.call(abi::__NR_readlink, &[name, buffer, 100]), Ok(1));
    let zero = guest.open("/dev/zero", abi::O_RDONLY).expect("zero");
    assert_eq!(guest.read(zero, 3).as_deref(), Ok("\0\0\0"));
    let again = guest.open(&format!("/proc/self/fd/{zero}"), abi::O_RDONLY).expect("again");
    assert_eq!(guest.read(again, 3).as_deref(), Ok("\0\0\0"));
}
