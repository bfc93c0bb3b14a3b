//! The fields of a head that have to do with the connection and the framing, which end at this gateway.

use httparse::Header;

use super::{FIELDS_MAX, Refusal};

/// Most options in the Connection fields of a message; each is compared with each field.
const CONNECTION_OPTIONS_MAX: usize = 32;
/// Fields that stay although a message names them as options of the connection: they are meant for the other side, so no honest
/// message names them. Whoever could take them away, behind the back of a proxy that set or checked them, would choose how a body is
/// framed and read, which site answers, and as whom.
const NEVER_OPTIONS: &[&str] =
    &["authorization", "cache-control", "cookie", "forwarded", "host", "origin", "referer", "transfer-encoding", "via", "x-real-ip"];
/// The same, by how their names begin.
const NEVER_OPTION_PREFIXES: &[&str] = &["content-", "sec-", "x-forwarded-"];
/// Fields of one connection (RFC 9110, section 7.6.1), and those that are written anew.
const HOP_BY_HOP: &[&str] = &["connection", "keep-alive", "proxy-connection", "te", "upgrade"];

/// Space for the fields of one head.
pub(super) const NO_FIELDS: [Header<'static>; FIELDS_MAX] = [httparse::EMPTY_HEADER; FIELDS_MAX];

pub(super) fn is_hop_by_hop(name: &str) -> bool {
    is_one_of(name, HOP_BY_HOP)
}

pub(super) fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Whether a name is one of `names` to a program that takes `_` for `-`, as CGI and WSGI do with their variables.
pub(super) fn may_be_one_of(name: &str, names: &[&str]) -> bool {
    is_one_of(&name.replace('_', "-"), names)
}

/// What all Connection fields of a message say.
#[derive(Debug, Default)]
pub(super) struct Connection<'a> {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Names of fields that are not for the other side.
    others: Vec<&'a [u8]>,
}

impl<'a> Connection<'a> {
    /// Read one Connection field; 431 where there are too many options.
    pub(super) fn read(&mut self, value: &'a [u8]) -> Result<(), Refusal> {
        for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty()) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if self.others.len() < CONNECTION_OPTIONS_MAX {
                self.others.push(option);
            } else {
                return Err(Refusal(431));
            }
        }
        Ok(())
    }

    /// Whether the field is one that the message names as an option.
    pub(super) fn names(&self, name: &str) -> bool {
        let begins_with = |prefix: &&str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        self.others.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
            && !is_one_of(name, NEVER_OPTIONS)
            && !NEVER_OPTION_PREFIXES.iter().any(begins_with)
    }
}

/// What the length of a body depends on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    /// A transfer coding that is not exactly one `chunked`.
    pub(super) other_coding: bool,
    /// There are two lengths, or one that is no number.
    pub(super) is_ambiguous: bool,
}

impl Framing {
    /// Read a field, if it is one of these; whether it was.
    pub(super) fn read(&mut self, name: &str, value: &[u8]) -> bool {
        if name.eq_ignore_ascii_case("content-length") {
            let length = parse_length(value);
            self.is_ambiguous |= length.is_none() || self.length.is_some_and(|known| Some(known) != length);
            self.length = self.length.or(length);
            true
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                self.other_coding = true;
            }
            self.chunked = true;
            true
        } else {
            false
        }
    }

    /// Whether it says both how long the body is and that it says so itself: what an attacker sends.
    pub(super) const fn contradicts_itself(&self) -> bool {
        self.is_ambiguous || self.chunked && self.length.is_some()
    }
}

/// A decimal number without sign, list or anything around it but blanks.
fn parse_length(value: &[u8]) -> Option<u64> {
    let value = value.trim_ascii();
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Append a field.
pub(super) fn write_field(name: &str, value: &[u8], output: &mut Vec<u8>) {
    output.extend_from_slice(name.as_bytes());
    output.extend_from_slice(b": ");
    output.extend_from_slice(value);
    output.extend_from_slice(b"\r\n");
}

/// Append a decimal number, without the detour over a String.
pub(super) fn write_decimal(mut number: u64, output: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    output.extend_from_slice(&digits[at..]);
}
