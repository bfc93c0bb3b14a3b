//! Programs of every kind in an address space: what is mapped where, and what a program finds on its stack.

use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::{Mode, OFlags};

use super::*;

/// A directory with test programs, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kvmserver-load-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path.canonicalize().expect("its real path"))
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        path
    }

    fn compile(&self, name: &str, compiler: &str, options: &[&str]) -> PathBuf {
        let source =
            self.write("program.c", "char zeros[100000]; int data[3] = {1, 2, 3}; int main(void) { return zeros[data[0]]; }\n", 0o644);
        let output = self.0.join(name);
        let status = process::Command::new(compiler).args(options).arg("-o").arg(&output).arg(&source).status().expect("a compiler");
        assert!(status.success(), "{compiler} {options:?}");
        output
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("clean up");
    }
}

fn host_open(path: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

fn config(program: &Path, arguments: &[&str]) -> SandboxConfig {
    SandboxConfig {
        program: program.to_str().expect("text").into(),
        name: "typed".into(),
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        working_directory: program.parent().and_then(Path::to_str).expect("text").into(),
        environment: vec![("HOME".into(), "/nowhere".into())],
        ..SandboxConfig::default()
    }
}

fn load_file(program: &Path, arguments: &[&str]) -> Result<(Loaded, AddressSpace), LoadError> {
    let mut space = AddressSpace::new(8 << 30, 1 << 30).expect("an address space");
    let loaded = load(&super::Command::from(&config(program, arguments)), &host_open, &mut space)?;
    Ok((loaded, space))
}

fn value(loaded: &Loaded, key: u64) -> u64 {
    loaded.identity.auxv.iter().find(|pair| pair.0 == key).unwrap_or_else(|| panic!("no entry {key} in the auxiliary vector")).1
}

/// What holds of every loaded program.
fn check(program: &Path, loaded: &Loaded, space: &AddressSpace) {
    let memory = space.memory();
    let at_entry = space.vmas().find(loaded.registers.rip).expect("the entry point is mapped");
    assert!(at_entry.protection.contains(Protection::EXEC) && matches!(at_entry.backing, Backing::File { .. }));
    let stack = space.vmas().find(loaded.registers.rsp).expect("the stack is mapped");
    assert_eq!((stack.label, stack.length(), stack.protection), ("[stack]", STACK_BYTES, Protection::READ | Protection::WRITE));
    assert!(space.vmas().find(stack.start - 1).is_some_and(|guard| guard.protection.is_empty()));
    assert_eq!(memory.read::<u64>(loaded.registers.rsp), Ok(loaded.identity.arguments.len() as u64));
    assert_ne!(memory.read::<[u64; 2]>(loaded.random_address), Ok([0, 0]));

    // The program headers in memory are those of the file.
    let bytes = std::fs::read(program).expect("the program");
    let count = usize::try_from(value(loaded, at::PHNUM)).expect("small");
    assert_eq!(memory.read_vec(value(loaded, at::PHDR), count * 56).expect("mapped"), bytes[64..64 + count * 56]);
    let elf = Elf::parse(&bytes[..]).expect("the program");
    let bias = value(loaded, at::ENTRY).wrapping_sub(elf.entry);
    let mut end = 0;
    for segment in &elf.segments {
        let start = segment.address + bias;
        end = start + segment.memory_bytes;
        let content = memory.read_vec(start, usize::try_from(segment.memory_bytes).expect("small")).expect("mapped");
        let (from_file, zeros) = content.split_at(usize::try_from(segment.file_bytes).expect("small"));
        let offset = usize::try_from(segment.offset).expect("small");
        assert_eq!(from_file, &bytes[offset..offset + from_file.len()]);
        if segment.protection.contains(Protection::WRITE) {
            assert!(zeros.iter().all(|&byte| byte == 0));
            assert!(
                memory
                    .read_vec(end, usize::try_from(elf::page_up(end) - end).expect("small"))
                    .expect("mapped")
                    .iter()
                    .all(|&byte| byte == 0)
            );
        }
    }
    assert_eq!((space.brk().start, space.brk().current), (elf::page_up(end), elf::page_up(end)));
    assert_eq!(loaded.clock_page, space.clock_page_address());
    assert_eq!(loaded.clock_page.map(|page| page + PAGE), Some(value(loaded, at::SYSINFO_EHDR)));
}

#[test]
fn a_dynamic_program_starts_in_its_interpreter() {
    let program = Path::new("/bin/true").canonicalize().expect("/bin/true");
    let (loaded, space) = load_file(&program, &["a", "b"]).expect("loads");
    check(&program, &loaded, &space);
    assert_eq!(value(&loaded, at::PHDR), image::PROGRAM_BASE + 64);
    let base = value(&loaded, at::BASE);
    assert!(base > image::PROGRAM_BASE && loaded.registers.rip > base);
    assert_eq!(space.memory().read::<[u8; 4]>(base), Ok(*b"\x7fELF"));
    assert_eq!(loaded.identity.arguments, [&b"typed"[..], b"a", b"b"]);
    assert_eq!(loaded.identity.environment, [b"HOME=/nowhere"]);
    assert_eq!(loaded.identity.executable, program.as_os_str().as_encoded_bytes());
    assert_eq!(&loaded.name, b"true\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn static_programs_start_at_their_own_entry() {
    let scratch = Scratch::new("static");
    for (name, compiler, options) in [
        ("fixed", "cc", &["-static", "-no-pie"][..]),
        ("pie", "cc", &["-static-pie"][..]),
        ("musl", "musl-gcc", &["-static"][..]),
        ("aligned", "cc", &["-static-pie", "-Wl,-z,max-page-size=0x200000"][..]),
    ] {
        let program = scratch.compile(name, compiler, options);
        let (loaded, space) = load_file(&program, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        check(&program, &loaded, &space);
        assert_eq!((value(&loaded, at::BASE), loaded.registers.rip), (0, value(&loaded, at::ENTRY)), "{name}");
        assert_eq!(loaded.registers.rip < image::PROGRAM_BASE, name == "fixed" || name == "musl", "{name}");
    }
}

#[test]
fn dynamic_programs_at_fixed_addresses_and_with_musl_load() {
    let scratch = Scratch::new("dynamic");
    for (name, compiler, options) in [("fixed", "cc", &["-no-pie"][..]), ("musl", "musl-gcc", &[][..])] {
        let program = scratch.compile(name, compiler, options);
        let (loaded, space) = load_file(&program, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        check(&program, &loaded, &space);
        assert!(value(&loaded, at::BASE) >= image::PROGRAM_BASE, "{name}");
    }
}

#[test]
fn an_executable_stack_is_given_to_those_who_ask() {
    let scratch = Scratch::new("stack");
    let program = scratch.compile("program", "cc", &["-Wl,-z,execstack"]);
    let (loaded, space) = load_file(&program, &[]).expect("loads");
    assert!(space.vmas().find(loaded.registers.rsp).is_some_and(|vma| vma.protection.contains(Protection::EXEC)));
}

#[test]
fn scripts_run_their_interpreters_with_one_argument() {
    let scratch = Scratch::new("script");
    let mut script = scratch.write("s1", "#!/bin/sh -e -u\n", 0o755);
    let (loaded, _) = load_file(&script, &["x"]).expect("loads");
    let name = script.as_os_str().as_encoded_bytes().to_vec();
    assert_eq!(loaded.identity.arguments, [b"/bin/sh".to_vec(), b"-e -u".to_vec(), name, b"x".to_vec()]);
    assert_eq!(&loaded.name[..3], b"s1\0");
    assert_eq!(loaded.identity.executable, Path::new("/bin/sh").canonicalize().expect("sh").as_os_str().as_encoded_bytes());
    // As Linux: five scripts may follow one another, six may not; relative interpreters count from the working directory.
    for number in 2..=6 {
        script = scratch.write(&format!("s{number}"), format!("#!s{}\n", number - 1), 0o755);
        let native = process::Command::new(&script).current_dir(&scratch.0).status().is_ok();
        let ours = load_file(&script, &[]);
        assert_eq!((ours.is_ok(), native), (number <= 5, number <= 5), "{number} scripts");
    }
}

#[test]
fn what_cannot_run_is_refused_with_the_exit_code_of_a_shell() {
    let scratch = Scratch::new("refused");
    let at = |name: &str, content: &[u8], mode| scratch.write(name, content, mode);
    let mut no_interpreter = std::fs::read("/bin/true").expect("/bin/true");
    let path = no_interpreter.windows(8).position(|bytes| bytes == b"/lib64/l").expect("PT_INTERP");
    no_interpreter[path + 1] = b'X';
    for (program, code, message) in [
        (scratch.0.join("missing"), 127, "program not found: "),
        (PathBuf::from("/bin/true/x"), 127, "program not found: /bin/true/x"),
        (at("orphan", b"#!/nonexistent/interpreter\n", 0o755), 127, "its interpreter /nonexistent/interpreter is not found"),
        (at("no-interpreter", &no_interpreter, 0o755), 127, "its interpreter /Xib64/ld-linux-x86-64.so.2 is not found"),
        (scratch.0.clone(), 126, "it is a directory"),
        (PathBuf::from("/dev/null"), 126, "it is not a regular file"),
        (at("text", b"echo hello\n", 0o755), 126, "it is not an ELF file"),
        (at("empty", b"", 0o755), 126, "it is not an ELF file"),
        (at("no-path", b"#!  \n", 0o755), 126, "names no interpreter"),
        (at("no-permission", b"#!/bin/sh\n", 0o644), 126, "it has no execute permission"),
        (at("interpreter-is-a-directory", b"#!/tmp\n", 0o755), 126, "cannot execute /tmp: it is a directory"),
        (at("loop", format!("#!{}/loop\n", scratch.0.display()).as_bytes(), 0o755), 126, "more than five scripts"),
        (at("arm", &[&b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\xb7\0"[..], &[0; 44]].concat(), 0o755), 126, "(ELF machine 183)"),
        (at("i386", &[&b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x03\0"[..], &[0; 44]].concat(), 0o755), 126, "32-bit program"),
        (at("escape\x1b", b"", 0o755), 126, "escape\\u{1b}"),
    ] {
        let error = load_file(&program, &[]).err().unwrap_or_else(|| panic!("{} loads", program.display()));
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(message), "{error} contains {message}");
        // What execve(2) answers is what the host's own says.
        let native = process::Command::new(&program).status().err().and_then(|error| error.raw_os_error());
        if code == 126 || program.starts_with(&scratch.0) {
            assert_eq!(Some(error.errno().raw_os_error()), native, "{error}");
        }
        assert_eq!(error.kind(), if code == 127 { "program_not_found" } else { "program_not_executable" });
    }
    let refuse = |_: &[u8]| Err(Errno::ACCESS);
    let mut space = AddressSpace::new(4 << 30, 1 << 30).expect("an address space");
    let error = load(&super::Command::from(&config(Path::new("/bin/true"), &[])), &refuse, &mut space).expect_err("no permission");
    assert_eq!((error.exit_code(), error.hint().contains("--allow-read=/bin/true")), (126, true));
}

#[test]
fn a_program_that_does_not_fit_says_so() {
    let mut space = AddressSpace::new(1 << 30, 1 << 30).expect("an address space");
    let error = load(&super::Command::from(&config(Path::new("/bin/true"), &[])), &host_open, &mut space).expect_err("no room at 1 GiB");
    assert!(matches!(error, LoadError::Map { errno: Errno::NOMEM, .. }));
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn mutated_programs_load_or_are_refused() {
    let scratch = Scratch::new("mutated");
    let original = std::fs::read("/bin/true").expect("/bin/true");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        // xorshift64: repeatable without a seed to carry around.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).expect("small")
    };
    let (mut loaded, mut refused) = (0, 0);
    for _ in 0..300 {
        let mut bytes = original.clone();
        for _ in 0..=random(3) {
            let (at, value) = (random(64 + 13 * 56), random(256));
            bytes[at] = u8::try_from(value).expect("a byte");
        }
        match load_file(&scratch.write("mutant", &bytes, 0o755), &[]) {
            Ok(_) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(loaded > 0 && refused > 0, "{loaded} loaded, {refused} refused");
}
