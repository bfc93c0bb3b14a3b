//! The first line of a script: `#!interpreter [argument]`, exactly as Linux's `binfmt_script` reads it (`execve(2)`).

/// How much of a file Linux looks at to see what it is (BINPRM_BUF_SIZE).
pub(super) const HEAD_BYTES: usize = 256;
/// How many scripts may interpret one another before a program comes; Linux answers ELOOP beyond.
pub(super) const NESTED_MAX: usize = 5;

/// A script's interpreter and its one optional argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpreter {
    /// Path as written; relative ones count from the working directory.
    pub(super) path: Vec<u8>,
    /// Everything behind the path up to the end of the line, without blanks around it.
    pub(super) argument: Option<Vec<u8>>,
}

/// Why the first line names no interpreter (ENOEXEC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoInterpreter;

/// What the first line says; `None` where `head` is not a script. `head` is the file's beginning, at most [`HEAD_BYTES`].
pub(super) fn parse(head: &[u8]) -> Option<Result<Interpreter, NoInterpreter>> {
    let rest = head.strip_prefix(b"#!")?;
    Some(first_line(rest, head.len() == HEAD_BYTES).ok_or(NoInterpreter))
}

fn first_line(rest: &[u8], filled: bool) -> Option<Interpreter> {
    // A zero byte ends the text as in a C string; the kernel's buffer is zero behind a short file.
    let text = rest.split(|&byte| byte == 0).next().unwrap_or_default();
    let cut_off = filled && text.len() == rest.len() && !text.contains(&b'\n');
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    // Of a line longer than the buffer, the argument may lose its end (and does lose the buffer's last byte), the path not.
    let line = if cut_off { line.get(..line.len().saturating_sub(1))? } else { line };
    let whole = trim(line);
    let path = whole.split(|&byte| is_blank(byte)).next().filter(|path| !path.is_empty())?;
    let argument = trim(whole.get(path.len()..)?);
    if cut_off && path.len() == whole.len() && !text.last().copied().is_some_and(is_blank) && !line.last().copied().is_some_and(is_blank) {
        return None;
    }
    Some(Interpreter { path: path.to_vec(), argument: (!argument.is_empty()).then(|| argument.to_vec()) })
}

const fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|&byte| !is_blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|&byte| !is_blank(byte)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ok(path: &str, argument: Option<&str>) -> Option<Result<Interpreter, NoInterpreter>> {
        Some(Ok(Interpreter { path: path.into(), argument: argument.map(Into::into) }))
    }

    #[test]
    fn the_line_is_split_as_linux_does() {
        assert_eq!(parse(b"#!/bin/sh\necho"), ok("/bin/sh", None));
        assert_eq!(parse(b"#! \t/usr/bin/env  python3 -u \nprint()"), ok("/usr/bin/env", Some("python3 -u")));
        assert_eq!(parse(b"#!/bin/sh"), ok("/bin/sh", None));
        assert_eq!(parse(b"#!/bin/sh -e\t \n"), ok("/bin/sh", Some("-e")));
        assert_eq!(parse(b"#!relative/path\n"), ok("relative/path", None));
        assert_eq!(parse(b"#!/bin/sh\r\n"), ok("/bin/sh\r", None), "a carriage return belongs to the name");
        assert_eq!(parse(b"#!\n/bin/sh"), Some(Err(NoInterpreter)));
        assert_eq!(parse(b"#!  \t"), Some(Err(NoInterpreter)));
        assert_eq!(parse(b"#"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_path_longer_than_the_buffer_is_refused_and_a_long_argument_is_cut() {
        let mut head = b"#!/".to_vec();
        head.resize(HEAD_BYTES, b'x');
        assert_eq!(parse(&head), Some(Err(NoInterpreter)));
        head[10] = b' ';
        let cut = "x".repeat(HEAD_BYTES - 12);
        assert_eq!(parse(&head), ok("/xxxxxxx", Some(&cut)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(head in prop::collection::vec(any::<u8>(), 0..HEAD_BYTES)) {
            let mut script = b"#!".to_vec();
            script.extend(&head);
            script.truncate(HEAD_BYTES);
            if let Some(Ok(interpreter)) = parse(&script) {
                prop_assert!(!interpreter.path.is_empty() && !interpreter.path.contains(&0) && !interpreter.path.contains(&b'\n'));
            }
        }
    }
}
