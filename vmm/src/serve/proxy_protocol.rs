//! The PROXY protocol, versions 1 and 2: what a load balancer says of the client before the client's own bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// How version 1 begins.
const WORD: &[u8] = b"PROXY ";
/// Longest line of version 1, bytes, with its end.
const LINE_MAX: usize = 107;
/// Most bytes behind the fixed part of version 2: addresses, and additions that we skip.
const REST_MAX: usize = 4096;

/// The preface of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preface {
    /// Its bytes.
    pub(super) bytes: usize,
    /// The client, where it is not the other end of the connection itself.
    pub(super) client: Option<SocketAddr>,
}

/// The bytes are no preface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoPreface;

/// Read the preface at the beginning of `bytes`; `Ok(None)` where it is not complete yet.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<Preface>, NoPreface> {
    let begins_like = |start: &[u8]| bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted);
    if begins_like(SIGNATURE) {
        return if bytes.len() < SIGNATURE.len() + 4 { Ok(None) } else { binary(bytes) };
    }
    if !begins_like(WORD) {
        return Err(NoPreface);
    }
    let line = bytes.get(..bytes.len().min(LINE_MAX)).unwrap_or_default();
    match memchr::memchr(b'\n', line) {
        Some(end) => text(line.get(..=end).unwrap_or_default()).map(Some),
        None if line.len() == LINE_MAX => Err(NoPreface),
        None => Ok(None),
    }
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`
fn text(line: &[u8]) -> Result<Preface, NoPreface> {
    let words = line.strip_suffix(b"\r\n").and_then(|words| std::str::from_utf8(words).ok()).ok_or(NoPreface)?;
    let mut words = words.split(' ').skip(1);
    let client = match words.next() {
        // Whatever follows is to be ignored.
        Some("UNKNOWN") => None,
        Some(family @ ("TCP4" | "TCP6")) => {
            let (Some(source), Some(target), Some(port), Some(target_port), None) =
                (words.next(), words.next(), words.next(), words.next(), words.next())
            else {
                return Err(NoPreface);
            };
            let address = |word: &str| word.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == (family == "TCP4"));
            let port_of = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse::<u16>().ok()).flatten();
            address(target).zip(port_of(target_port)).ok_or(NoPreface)?;
            let (address, port) = address(source).zip(port_of(port)).ok_or(NoPreface)?;
            Some(SocketAddr::new(address, port))
        }
        _ => return Err(NoPreface),
    };
    Ok(Preface { bytes: line.len(), client })
}

fn binary(bytes: &[u8]) -> Result<Option<Preface>, NoPreface> {
    let Some(&[version_command, family, high, low]) = bytes.get(SIGNATURE.len()..).and_then(|rest| rest.first_chunk::<4>()) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if version_command >> 4 != 2 || length > REST_MAX {
        return Err(NoPreface);
    }
    let whole = SIGNATURE.len() + 4 + length;
    let Some(rest) = bytes.get(SIGNATURE.len() + 4..whole) else { return Ok(None) };
    let client = match (version_command & 15, family) {
        // LOCAL: the balancer itself, to see whether we are alive.
        (0, _) => None,
        (1, 0x11) => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *rest.first_chunk::<12>().ok_or(NoPreface)?;
            Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([high, low])))
        }
        (1, 0x21) => {
            let address = *rest.first_chunk::<16>().ok_or(NoPreface)?;
            let ports = rest.get(32..36).ok_or(NoPreface)?;
            let port = ports.first_chunk::<2>().ok_or(NoPreface)?;
            Some(SocketAddr::new(Ipv6Addr::from(address).into(), u16::from_be_bytes(*port)))
        }
        (1, _) => None,
        _ => return Err(NoPreface),
    };
    Ok(Some(Preface { bytes: whole, client }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(bytes: &[u8]) -> Result<Option<(usize, Option<String>)>, NoPreface> {
        parse(bytes).map(|preface| preface.map(|preface| (preface.bytes, preface.client.map(|client| client.to_string()))))
    }

    fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[0x20 | command, family], &length, rest].concat()
    }

    #[test]
    fn text_prefaces() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET";
        assert_eq!(client(line), Ok(Some((line.len() - 3, Some("192.0.2.1:56324".into())))));
        assert_eq!(client(b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n"), Ok(Some((32, Some("[2001:db8::1]:1".into())))));
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), Ok(Some((15, None))));
        for end in 0..line.len() - 3 {
            assert_eq!(client(&line[..end]), Ok(None));
        }
    }

    #[test]
    fn binary_prefaces() {
        let inet = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        let with_additions = [&inet[..], &[4, 0, 1, 0]].concat();
        assert_eq!(client(&version_2(1, 0x11, &inet)), Ok(Some((28, Some("192.0.2.1:56324".into())))));
        assert_eq!(client(&version_2(1, 0x11, &with_additions)), Ok(Some((32, Some("192.0.2.1:56324".into())))));
        let inet6 = [&Ipv6Addr::LOCALHOST.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0, 80, 0, 81]].concat();
        assert_eq!(client(&version_2(1, 0x21, &inet6)), Ok(Some((52, Some("[::1]:80".into())))));
        assert_eq!(client(&version_2(0, 0, &[])), Ok(Some((16, None))));
        assert_eq!(client(&version_2(1, 0x31, &[0; 216])), Ok(Some((232, None))));
        let whole = version_2(1, 0x11, &inet);
        for end in 0..whole.len() {
            assert_eq!(client(&whole[..end]), Ok(None));
        }
    }

    #[test]
    fn what_is_no_preface_is_refused() {
        let long = [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; 200]].concat();
        let bad: [&[u8]; 9] = [
            b"GET / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            b"PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
            b"PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            &long,
        ];
        for bytes in bad {
            assert_eq!(client(bytes), Err(NoPreface), "{}", bytes.escape_ascii());
        }
        assert_eq!(client(&version_2(2, 0x11, &[0; 12])), Err(NoPreface));
        assert_eq!(client(&version_2(1, 0x11, &[0; 11])), Err(NoPreface));
        assert_eq!(client(&version_2(1, 0x21, &[0; 35])), Err(NoPreface));
        assert_eq!(client(&version_2(1, 0, &[0; REST_MAX + 1])), Err(NoPreface));
    }
}
