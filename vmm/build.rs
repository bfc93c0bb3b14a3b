//! Compiles the C that runs inside guests (guestlib/) with the system's compiler: `$CC`, or `cc`.
//!
//! Not with the `cc` crate: it makes static archives for linking into this library, and a guest gets a shared object.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Freestanding code for any x86-64 processor, without anything that would need a C library or a loader.
const COMPILE: [&str; 9] = [
    "-m64",
    "-O2",
    "-std=gnu11",
    "-ffreestanding",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-Wall",
];
const LINK: [&str; 8] = [
    "-shared",
    "-nostdlib",
    "-Wl,--hash-style=both",
    "-Wl,--build-id=none",
    "-Wl,--no-undefined",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-s",
];
/// The fast path: it must leave vector registers alone, every pointer may be any number, and there is nobody to relocate anything.
const FLAT: [&str; 13] = [
    "-mgeneral-regs-only",
    "-fno-jump-tables",
    "-fno-tree-loop-distribute-patterns",
    "-fno-strict-aliasing",
    "-fno-delete-null-pointer-checks",
    "-fno-asynchronous-unwind-tables",
    "-nostdlib",
    "-static",
    "-Wl,--oformat=binary",
    "-Wl,--build-id=none",
    "-Wl,--no-undefined",
    "-Wl,-z,noexecstack",
    "-Wextra",
];

fn main() {
    let guestlib = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../guestlib");
    let output = PathBuf::from(variable("OUT_DIR"));
    for file in ["vdso.c", "vdso.lds", "clock_page.h", "kvmserverguest.c", "kvmserverguest.h", "guest_calls.h", "fastpath"] {
        println!("cargo::rerun-if-changed={}", guestlib.join(file).display());
    }
    println!("cargo::rerun-if-env-changed=CC");
    let script = format!("-Wl,-T,{}", guestlib.join("vdso.lds").display());
    let vdso = ["-Wl,-soname=linux-vdso.so.1", "-Wl,--eh-frame-hdr", &script];
    build(&guestlib.join("vdso.c"), &[&LINK[..], &vdso].concat(), &output.join("vdso.so"));
    let library = [&LINK[..], &["-Wl,-soname=libkvmserverguest.so"]].concat();
    build(&guestlib.join("kvmserverguest.c"), &library, &output.join("libkvmserverguest.so"));
    let script = format!("-Wl,-T,{}", guestlib.join("fastpath/fastpath.lds").display());
    build(&guestlib.join("fastpath/fastpath.c"), &[&FLAT[..], &[&script]].concat(), &output.join("fastpath.bin"));
}

fn build(source: &Path, options: &[&str], output: &Path) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    // CC may carry options, as in make.
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("cc"));
    command.args(words).args(COMPILE).args(options).arg("-o").arg(output).arg(source);
    let status = command.status();
    let status =
        status.unwrap_or_else(|error| panic!("cannot run the C compiler {compiler}: {error} (on Debian: apt install gcc libc6-dev)"));
    assert!(status.success(), "{compiler} could not build {}: {status}", source.display());
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
