//! What `kvmserver guestlib` writes for those who make programs for guests. It is inside this library, so that it is always of
//! the same version, however this was installed.

use crate::linux::grants::GUEST_LIBRARY;

macro_rules! of_guestlib {
    ($($path:literal),* $(,)?) => {
        &[("libkvmserverguest.so", GUEST_LIBRARY), $(($path, include_bytes!(concat!("../../guestlib/", $path)))),*]
    };
}

/// Relative path and content of each file.
pub(crate) const FILES: &[(&str, &[u8])] = of_guestlib![
    "kvmserverguest.h",
    "kvmserverguest_dlopen.c",
    "python/kvmserverguest.py",
    "deno/kvmserverguest.ts",
    "node/package.json",
    "node/kvmserverguest.js",
    "rust/Cargo.toml",
    "rust/src/lib.rs",
    "go/go.mod",
    "go/kvmserverguest.go",
];
