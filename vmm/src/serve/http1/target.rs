//! Request targets and the Host field (RFC 9112, section 3.2).

use std::borrow::Cow;

use super::Refusal;

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    /// What the program is given: the origin form, or `*`.
    pub(super) path: Cow<'a, str>,
    /// The site, where the target itself names it (absolute form); it overrides the Host field.
    pub(super) authority: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Take a target apart.
    ///
    /// # Errors
    ///
    /// 400 where it has no form that the method may have, 501 for CONNECT.
    pub(super) fn parse(method: &str, target: &'a str) -> Result<Self, Refusal> {
        if method == "CONNECT" {
            return Err(Refusal(501));
        }
        if target.starts_with('/') || target == "*" && method == "OPTIONS" {
            return Ok(Self { path: Cow::Borrowed(target), authority: None });
        }
        let begins_with = |prefix: &str| target.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        let scheme = ["http://", "https://"].into_iter().find(|scheme| begins_with(scheme)).ok_or(Refusal(400))?;
        let rest = &target[scheme.len()..];
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() || !is_host(authority.as_bytes()) {
            return Err(Refusal(400));
        }
        let path = match path.as_bytes().first() {
            Some(b'/') => Cow::Borrowed(path),
            None if method == "OPTIONS" => Cow::Borrowed("*"),
            _ => Cow::Owned(format!("/{path}")),
        };
        Ok(Self { path, authority: Some(authority) })
    }
}

/// Whether a Host field could be one: a name or an address, and perhaps a port; it may be empty. Nothing that another parser
/// could take for a list, a path or a user's name.
pub(super) fn is_host(value: &[u8]) -> bool {
    let is_fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
    value.len() <= 1024 && value.iter().all(is_fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<'a>(method: &str, target: &'a str) -> Result<(String, Option<&'a str>), u16> {
        Target::parse(method, target).map(|target| (target.path.into_owned(), target.authority)).map_err(|Refusal(status)| status)
    }

    #[test]
    fn targets_have_one_of_three_forms() {
        assert_eq!(parsed("GET", "/a?b"), Ok(("/a?b".into(), None)));
        assert_eq!(parsed("OPTIONS", "*"), Ok(("*".into(), None)));
        assert_eq!(parsed("GET", "*"), Err(400));
        assert_eq!(parsed("GET", "HTTP://x:80/a?b"), Ok(("/a?b".into(), Some("x:80"))));
        assert_eq!(parsed("GET", "https://x?b"), Ok(("/?b".into(), Some("x"))));
        assert_eq!(parsed("GET", "http://x"), Ok(("/".into(), Some("x"))));
        assert_eq!(parsed("OPTIONS", "http://x"), Ok(("*".into(), Some("x"))));
        for bad in ["a", "http:///a", "http://user@x/", "ftp://x/", "x:443", "http://x,y/"] {
            assert_eq!(parsed("GET", bad), Err(400), "{bad}");
        }
        assert_eq!(parsed("CONNECT", "x:443"), Err(501));
    }
}
