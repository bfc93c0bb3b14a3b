//! Guest paths as text. A *canonical* path begins with `/`, has no empty, `.` or `..` component and no slash at its end
//! (the root is `/`), and names what it says because no component of it is a symbolic link. Only the resolver makes them
//! from what a guest says; nothing here decides what a guest may do.

/// The components of a path, without empty ones: repeated and trailing slashes do not count.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
}

/// `directory` and `name` as one canonical path.
#[must_use]
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The canonical path of the directory that holds `path`; the root holds itself.
#[must_use]
pub fn parent(path: &[u8]) -> &[u8] {
    match memchr::memrchr(b'/', path) {
        None | Some(0) => b"/",
        Some(slash) => &path[..slash],
    }
}

/// The last component of a canonical path; empty for the root.
#[must_use]
pub fn name(path: &[u8]) -> &[u8] {
    memchr::memrchr(b'/', path).map_or(path, |slash| &path[slash + 1..])
}

/// What follows `prefix` in `path`, without the slash between them, where `path` is `prefix` or lies below it.
#[must_use]
pub fn below<'a>(prefix: &[u8], path: &'a [u8]) -> Option<&'a [u8]> {
    if prefix == b"/" {
        return path.strip_prefix(b"/");
    }
    match path.strip_prefix(prefix)? {
        b"" => Some(b""),
        [b'/', rest @ ..] => Some(rest),
        _ => None,
    }
}

/// What a path is called after what was at `from` has moved to `to`; `None` where it does not concern it.
#[must_use]
pub fn moved(path: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    match below(from, path)? {
        b"" => Some(to.to_vec()),
        rest => Some(join(to, rest)),
    }
}

/// Fold empty, `.` and `..` components of an absolute path as text. Only right where no component is a symbolic link.
#[must_use]
pub fn fold(path: &[u8]) -> Vec<u8> {
    let mut folded: Vec<&[u8]> = Vec::new();
    for component in components(path) {
        match component {
            b"." => {}
            b".." => {
                folded.pop();
            }
            name => folded.push(name),
        }
    }
    from_components(&folded)
}

/// A canonical path of these components.
#[must_use]
pub fn from_components(components: &[&[u8]]) -> Vec<u8> {
    let mut path = Vec::from(*b"/");
    path.extend_from_slice(&components.join(&b'/'));
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_at_slashes() {
        assert_eq!(below(b"/a", b"/a/b/c"), Some(&b"b/c"[..]));
        assert_eq!(below(b"/a", b"/a"), Some(&b""[..]));
        assert_eq!(below(b"/a", b"/ab"), None);
        assert_eq!(below(b"/", b"/ab"), Some(&b"ab"[..]));
        assert_eq!(below(b"/", b"/"), Some(&b""[..]));
    }

    #[test]
    fn k1_slashes_and_dots_fold_away() {
        assert_eq!(fold(b"/dir/"), b"/dir");
        assert_eq!(fold(b"//a//./b/../c/"), b"/a/c");
        assert_eq!(fold(b"/../.."), b"/");
        assert_eq!((parent(b"/a/b"), name(b"/a/b")), (&b"/a"[..], &b"b"[..]));
        assert_eq!((parent(b"/a"), name(b"/a"), parent(b"/"), name(b"/")), (&b"/"[..], &b"a"[..], &b"/"[..], &b""[..]));
        assert_eq!(join(b"/", b"a"), b"/a");
    }
}
