//! Snapshots of real programs: what a reset forgets, verification finds; and a fork costs few mappings.

use std::path::{Path, PathBuf};
use std::process;

use super::*;
use crate::config::{NetRule, SandboxConfig};
use crate::linux::clock::host_monotonic;
use crate::platform::kvm::Kicker;
use crate::serve::run_in_memory;

/// A directory for a test's program and files, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kvmserver-sandbox-{name}-{}", process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path.canonicalize().expect("its real path"))
    }

    /// One of the guests of the functional tests: compiled now, or the one that KVMSERVER_TEST_GUESTS has.
    pub(crate) fn guest(&self, name: &str) -> PathBuf {
        if let Some(compiled) = std::env::var_os("KVMSERVER_TEST_GUESTS") {
            return PathBuf::from(compiled).join("dynamic").join(name);
        }
        let source = tests_directory().join("guests").join(name).with_extension("c");
        let output = self.0.join(name);
        let compiler = process::Command::new("cc").args(["-O2", "-w", "-pthread", "-o"]).arg(&output).arg(source).status();
        assert!(compiler.expect("cc").success());
        output
    }
}

/// `tests/` of the work tree, which may be elsewhere than where this was compiled.
fn tests_directory() -> PathBuf {
    let manifest = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).join("../tests")
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("clean up");
    }
}

fn soon() -> u64 {
    host_monotonic() + 30_000_000_000
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").into()
}

pub(crate) fn snapshot(program: &Path, arguments: &[&str]) -> Snapshot {
    let config = SandboxConfig {
        program: text(program),
        name: text(program),
        arguments: arguments.iter().map(|&argument| argument.into()).collect(),
        working_directory: "/".into(),
        read: vec!["/".into()],
        write: vec![text(&std::env::temp_dir())],
        listen: vec![NetRule { address: None, port: None }],
        max_main_memory: 4 << 30,
        max_address_space: 120 << 30,
        ..SandboxConfig::default()
    };
    let mut master = Sandbox::load(&config).expect("a program");
    let kicker = master.kicker().expect("a kicker");
    let end = master.boot(&kicker, soon());
    assert!(matches!(end, RunEnd::Ready { .. }), "{end:?}");
    ask(&mut master, &kicker, "/check");
    drop(kicker);
    master.freeze().expect("a snapshot")
}

fn fork(snapshot: &Snapshot) -> (Sandbox, Kicker) {
    let options = ForkOptions { ephemeral: true, max_request_memory: 128 << 20, hot_pages: 64, host_mappings: 4096 };
    let mut sandbox = snapshot.fork(&options, None).expect("a fork");
    let kicker = sandbox.kicker().expect("a kicker");
    (sandbox, kicker)
}

fn ask(sandbox: &mut Sandbox, kicker: &Kicker, path: &str) -> String {
    let listener = sandbox.kernel().listeners().first().map(|listener| listener.id).expect("a listener");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (answer, end) = run_in_memory(sandbox, kicker, listener, request.as_bytes(), soon());
    assert_eq!(end, RunEnd::Responded, "{path}");
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn verification_finds_whatever_a_reset_forgets() {
    let scratch = Scratch::new("skip");
    let memory = snapshot(&scratch.guest("attack_memory"), &["21901", &text(&scratch.0)]);
    let cpu = snapshot(&scratch.guest("attack_cpu"), &["21902"]);
    let cases = [
        (Skip::Page, &memory, "/check"),
        (Skip::Register, &cpu, "/vector-register"),
        (Skip::Segment, &cpu, "/leave"),
        (Skip::Descriptor, &memory, "/big-write/1"),
        (Skip::Mapping, &memory, "/everything-away"),
    ];
    for (skip, snapshot, path) in cases {
        for earlier in [0, 3] {
            let (mut sandbox, kicker) = fork(snapshot);
            for _ in 0..earlier {
                ask(&mut sandbox, &kicker, path);
                sandbox.reset(128 << 20).expect("reset");
                sandbox.verify().expect("nothing was forgotten");
                sandbox.start_over().expect("ready again");
            }
            ask(&mut sandbox, &kicker, path);
            sandbox.reset_except(128 << 20, skip).expect("reset");
            assert!(sandbox.verify().is_err(), "{skip:?} after {path} was not found");
        }
        // What was left in the thread's own registers.
        fork(snapshot);
    }
}

#[test]
fn two_hundred_random_requests_leave_nothing() {
    const PATHS: [&str; 11] = [
        "/check",
        "/edges",
        "/remap",
        "/discard",
        "/truncated",
        "/unreadable",
        "/wipe",
        "/stack-edge",
        "/everything-away",
        "/dirty/3000",
        "/big-write/4",
    ];
    let scratch = Scratch::new("random");
    let snapshot = snapshot(&scratch.guest("attack_memory"), &["21903", &text(&scratch.0)]);
    let (mut sandbox, kicker) = fork(&snapshot);
    let expected = ask(&mut sandbox, &kicker, "/check");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for turn in 0..200 {
        sandbox.reset(if turn % 7 == 0 { 0 } else { 128 << 20 }).expect("reset");
        sandbox.verify().unwrap_or_else(|mismatch| panic!("turn {turn}: {mismatch}"));
        sandbox.start_over().expect("ready again");
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let path = PATHS[(state % PATHS.len() as u64) as usize];
        let answer = ask(&mut sandbox, &kicker, path);
        assert!(path != "/check" || answer == expected, "turn {turn}: {answer}");
    }
}

#[test]
fn a_fork_of_a_python_server_needs_few_host_mappings() {
    let program = tests_directory().join("programs/counter_http_server.py");
    let snapshot = snapshot(Path::new("/usr/bin/python3"), &[&text(&program), "21904"]);
    let (mut sandbox, kicker) = fork(&snapshot);
    ask(&mut sandbox, &kicker, "/");
    let (start, end) = (sandbox.space.host_base(), sandbox.space.host_base() + sandbox.space.size());
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let address = |line: &str| u64::from_str_radix(line.split('-').next().unwrap_or_default(), 16).unwrap_or(0);
    let count = maps.lines().filter(|line| (start..end).contains(&address(line))).count();
    assert!((10..=300).contains(&count), "{count} mappings");
}
