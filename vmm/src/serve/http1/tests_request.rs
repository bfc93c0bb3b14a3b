//! Heads of requests: what is passed on, and what is refused.

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { head_bytes_max: 64 << 10, forwarded_for: None };

fn parse_with(rules: &Rules, bytes: &[u8]) -> Result<Option<(Request, String)>, u16> {
    let mut canonical = Vec::new();
    let parsed = parse_request(bytes, &mut HeadScan::default(), rules, &mut canonical).map_err(|Refusal(status)| status)?;
    Ok(parsed.map(|request| (request, String::from_utf8_lossy(&canonical).into_owned())))
}

fn parse(bytes: &[u8]) -> (Request, String) {
    parse_with(&RULES, bytes).expect("valid").expect("complete")
}

fn status(bytes: &[u8]) -> Option<u16> {
    parse_with(&RULES, bytes).err()
}

#[test]
fn a_request_is_made_canonical() {
    let (request, head) = parse(b"GET /a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\nrest");
    assert_eq!(head, "GET /a?b HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    assert_eq!((request.body, request.keep_alive, request.version), (BodyLength::Known(0), true, 1));
    assert_eq!(parse_with(&RULES, b"GET / HTTP/1.1\r\nHost: x\r\n"), Ok(None));
    let (request, head) =
        parse(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 03\r\ncontent-length: 3\r\nTE: a\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(head, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\n");
    assert!(request.expects_continue);
    let (_, head) = parse(b"GET http://site/a HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(head, "GET /a HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n");
}

#[test]
fn connections_are_kept_as_the_versions_of_http_have_it() {
    let keeps = |head: &str| parse(format!("{head}\r\n\r\n").as_bytes()).0.keep_alive;
    assert!(keeps("GET / HTTP/1.1\r\nHost: x"));
    assert!(!keeps("GET / HTTP/1.1\r\nHost: x\r\nConnection: a, Close"));
    assert!(!keeps("GET / HTTP/1.0"));
    assert!(keeps("GET / HTTP/1.0\r\nConnection: Keep-Alive"));
    assert!(!keeps("GET / HTTP/1.0\r\nConnection: keep-alive\r\nConnection: close"));
}

#[test]
fn an_upgrade_needs_both_fields() {
    let (request, head) =
        parse(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\n\r\n");
    assert!(request.upgrade);
    assert_eq!(head, "GET / HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Key: k\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    let (request, head) = parse(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n");
    assert!(!request.upgrade);
    assert_eq!(head, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
}

#[test]
fn ambiguous_requests_are_refused() {
    let post = |fields: &str| status(format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n").as_bytes());
    assert_eq!(post("Content-Length: 1\r\nContent-Length: 2"), Some(400));
    assert_eq!(post("Content-Length: 1\r\nTransfer-Encoding: chunked"), Some(400));
    assert_eq!(post("Transfer-Encoding: chunked\r\nContent-Length: 1"), Some(400));
    assert_eq!(post("Transfer-Encoding: gzip\r\nContent-Length: 1"), Some(400));
    assert_eq!(post("Transfer-Encoding: chunked, gzip"), Some(501));
    assert_eq!(post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Some(501));
    assert_eq!(post("Transfer-Encoding: identity"), Some(501));
    assert_eq!(post("Transfer-Encoding:"), Some(501));
    for length in ["+1", "-1", "1,1", "1 1", "0x1", "", "18446744073709551616"] {
        assert_eq!(post(&format!("Content-Length: {length}")), Some(400), "{length}");
    }
    assert_eq!(post("Content-Length : 1"), Some(400));
    assert_eq!(post("A\0: b"), Some(400));
    assert_eq!(post("A: b\u{7f}"), Some(400));
    assert_eq!(post(": b"), Some(400));
    assert_eq!(post("no colon"), Some(400));
    assert_eq!(post("Host: y"), Some(400));
    assert_eq!(status(b"GET / HTTP/1.1\r\n\r\n"), Some(400));
    assert_eq!(status(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), Some(400));
    assert_eq!(status(b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"), Some(400));
    assert_eq!(status(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(400));
    assert_eq!(status(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n"), Some(505));
    assert_eq!(status(b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"), Some(400));
    assert_eq!(status(b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"), Some(400));
    assert_eq!(status(b"GET\r\n\r\n"), Some(400));
}

#[test]
fn heads_have_limits() {
    let rules = Rules { head_bytes_max: 100, ..RULES };
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(100));
    assert_eq!(parse_with(&rules, head.as_bytes()), Err(431));
    assert_eq!(parse_with(&rules, &head.as_bytes()[..101]), Err(431));
    assert_eq!(parse_with(&rules, &head.as_bytes()[..100]), Ok(None));
    // A body behind a short head does not count.
    let whole = format!("POST / HTTP/1.1\r\nHost: x\r\n\r\n{}", "a".repeat(100));
    assert!(parse_with(&rules, whole.as_bytes()).is_ok_and(|parsed| parsed.is_some()));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX));
    assert_eq!(status(many.as_bytes()), Some(431));
}

#[test]
fn fields_named_as_options_of_the_connection_end_here() {
    let head = |fields: &str| parse(format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes()).1;
    let rest = "GET / HTTP/1.1\r\nHost: x\r\nB: 2\r\nConnection: close\r\n\r\n";
    assert_eq!(head("Connection: a\r\nA: 1\r\nB: 2\r\n"), rest);
    assert_eq!(head("A: 1\r\nconnection: keep-alive,, A ,TE\r\nB: 2\r\nTE: x\r\na: 3\r\n"), rest);
    assert_eq!(head("Connection: a\r\nB: 2\r\nC: 1\r\nConnection: c\r\n"), rest);
    // Only whole names.
    assert!(head("Connection: a b, aa, \r\nA: 1\r\n").contains("A: 1\r\n"));
}

#[test]
fn a_client_cannot_name_away_what_the_program_relies_on() {
    let (request, head) = parse(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nCookie: s=1\r\nX-Forwarded-For: 192.0.2.1\r\n\
          Content-Type: text/plain\r\nAuthorization: y\r\n\
          Connection: host, content-length, Cookie, X-FORWARDED-FOR, content-type, authorization, close\r\n\r\nabc",
    );
    assert_eq!(request.body, BodyLength::Known(3));
    for field in
        ["Host: x", "Content-Length: 3", "Cookie: s=1", "X-Forwarded-For: 192.0.2.1", "Content-Type: text/plain", "Authorization: y"]
    {
        assert!(head.contains(&format!("\r\n{field}\r\n")), "{field}");
    }
    let (request, head) =
        parse(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: transfer-encoding\r\n\r\n0\r\n\r\n");
    assert_eq!(request.body, BodyLength::Chunked);
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: {}\r\n\r\n", "a,".repeat(33));
    assert_eq!(status(many.as_bytes()), Some(431));
}

#[test]
fn the_program_learns_who_the_client_is() {
    let with = |address: Option<&str>, fields: &str| {
        let rules = Rules { forwarded_for: Some(address.map(|address| address.parse().expect("address"))), ..RULES };
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        parse_with(&rules, head.as_bytes()).expect("valid").expect("complete").1
    };
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\nConnection: close\r\n\r\n");
    assert_eq!(with(Some("192.0.2.1"), ""), head("X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1;proto=http"));
    assert_eq!(with(Some("::ffff:192.0.2.1"), ""), head("X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1;proto=http"));
    assert_eq!(with(Some("2001:db8::1"), ""), head("X-Forwarded-For: 2001:db8::1\r\nForwarded: for=\"[2001:db8::1]\";proto=http"));
    assert_eq!(with(None, ""), head("X-Forwarded-For: unknown\r\nForwarded: for=unknown;proto=http"));
    assert_eq!(
        with(Some("192.0.2.1"), "X-Forwarded-For: a\r\nForwarded: for=b\r\nx-forwarded-for: c, d\r\n"),
        head("X-Forwarded-For: a, c, d, 192.0.2.1\r\nForwarded: for=b, for=192.0.2.1;proto=http")
    );
    // Programs that make variables of the names could not tell these from ours.
    assert_eq!(
        with(Some("192.0.2.1"), "X_Forwarded_For: a\r\nx-forwarded_FOR: b\r\nX_Other: c\r\n"),
        head("X_Other: c\r\nX-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1;proto=http")
    );
}

/// What heads are made of, well and badly.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let known: Vec<&[u8]> = vec![
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b=c HTTP/1.0\r\n",
        b"OPTIONS * HTTP/1.1\r\n",
        b"GET http://a/b HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 05, 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : gzip\r\n",
        b"Connection: close, X-A\r\n",
        b"X-A: b\r\n",
        b" folded\r\n",
        b"Expect: 100-continue\r\n",
        b"Upgrade: websocket\r\n",
        b"\n",
        b"\r",
        b"\0",
        b":",
    ];
    let piece =
        prop_oneof![8 => proptest::sample::select(known).prop_map(<[u8]>::to_vec), 1 => proptest::collection::vec(any::<u8>(), 0..6)];
    let begin = prop_oneof![4 => Just(b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()), 1 => Just(Vec::new())];
    let end = prop_oneof![4 => Just(b"\r\n".to_vec()), 1 => Just(Vec::new())];
    (begin, proptest::collection::vec(piece, 0..8), end).prop_map(|(begin, pieces, end)| [begin, pieces.concat(), end].concat())
}

proptest! {
    #![proptest_config(crate::fuzzing::cases(500))]

    /// Whatever comes in whatever parts, it is refused, or waited for, or handed on as a head that has one meaning only.
    #[test]
    fn any_bytes_are_a_request_or_refused(bytes in pieces(), cut in any::<prop::sample::Index>()) {
        let whole = parse_with(&RULES, &bytes);
        let (mut scan, mut canonical) = (HeadScan::default(), Vec::new());
        let cut = cut.index(bytes.len() + 1);
        let first = parse_request(&bytes[..cut], &mut scan, &RULES, &mut canonical);
        if matches!(first, Ok(None)) {
            let second = parse_request(&bytes, &mut scan, &RULES, &mut canonical).map_err(|Refusal(status)| status);
            prop_assert_eq!(second.as_ref().err(), whole.as_ref().err());
            prop_assert_eq!(second.ok().flatten().map(|request| request.head_bytes), whole.as_ref().ok().and_then(Option::as_ref).map(|(request, _)| request.head_bytes));
        }
        match whole {
            Err(status) => prop_assert!([400, 413, 414, 417, 431, 501, 505].contains(&status), "{}", status),
            Ok(None) => prop_assert!(!bytes.windows(4).any(|four| four == b"\r\n\r\n"), "it is complete"),
            Ok(Some((request, head))) => {
                prop_assert!(request.head_bytes <= bytes.len() && head.ends_with("\r\n\r\n"));
                let lines: Vec<&str> = head.split("\r\n").collect();
                prop_assert!(lines.iter().all(|line| !line.contains(['\r', '\n', '\0'])), "{head:?}");
                let count = |name: &str| lines.iter().filter(|line| line.to_ascii_lowercase().starts_with(name)).count();
                prop_assert!(count("host:") <= 1 && count("content-length:") + count("transfer-encoding:") <= 1, "{head:?}");
                let again = parse_with(&RULES, head.as_bytes());
                prop_assert!(matches!(&again, Ok(Some((_, same))) if *same == head), "{head:?} became {again:?}");
            }
        }
    }
}
