//! The list of needed files agrees with what the real dynamic loaders open.

use std::process::Command;

use super::*;

/// The absolute paths in the output of `ldd`.
fn ldd(program: &str) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

#[test]
fn everything_that_ldd_lists_is_there() {
    for program in
        ["/bin/true", "/bin/bash", "/usr/bin/perl", "/usr/bin/python3", "/usr/bin/gcc"].iter().filter(|program| Path::new(program).exists())
    {
        let files = implicit_files(Path::new(program));
        for library in ldd(program) {
            assert!(files.contains(&library), "{program} needs {}, got {files:?}", library.display());
        }
        assert!(files.contains(&PathBuf::from("/etc/ld.so.cache")));
        assert!(files.iter().all(|file| file.is_absolute() && file.is_file()));
    }
}

#[test]
fn scripts_bring_their_interpreters() {
    let directory = std::env::temp_dir().join(format!("kvmserver-libraries-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("scratch directory");
    let (inner, outer) = (directory.join("inner"), directory.join("outer"));
    std::fs::write(&inner, "#!/bin/sh -e\n").expect("write");
    std::fs::write(&outer, format!("#!{}\n", inner.display())).expect("write");
    let files = implicit_files(&outer);
    for wanted in [&outer, &inner, &PathBuf::from("/bin/sh"), &PathBuf::from("/lib64/ld-linux-x86-64.so.2")] {
        assert!(files.contains(wanted), "{} in {files:?}", wanted.display());
    }
    // One that interprets itself ends all the same.
    std::fs::write(&outer, format!("#!{}\n", outer.display())).expect("write");
    assert!(implicit_files(&outer).contains(&outer));
    std::fs::write(&outer, "#!/usr/bin/env -S sh -x\n").expect("write");
    assert!(implicit_files(&outer).iter().any(|file| file.ends_with("sh")));
    std::fs::remove_dir_all(&directory).expect("clean up");
}

#[test]
fn what_is_missing_or_no_program_is_left_out() {
    assert!(implicit_files(Path::new("/nonexistent")).is_empty());
    assert!(implicit_files(Path::new("/tmp")).is_empty());
    assert_eq!(implicit_files(Path::new("/etc/passwd")), vec![PathBuf::from("/etc/passwd")]);
}

#[test]
fn search_lists_know_origin_and_lib() {
    let origin = Path::new("/opt/app/bin");
    assert_eq!(
        directories("$ORIGIN/../lib:/x:${ORIGIN}:relative::", origin),
        ["/opt/app/bin/../lib", "/x", "/opt/app/bin"].map(PathBuf::from)
    );
    assert_eq!(directories("/y/$LIB", origin), ["/y/lib/x86_64-linux-gnu", "/y/lib64"].map(PathBuf::from));
    assert!(directories("/z/$PLATFORM", origin).is_empty());
}
