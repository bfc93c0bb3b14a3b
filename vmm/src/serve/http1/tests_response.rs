//! Responses: what the client gets of what a program writes, whole or in pieces.

use proptest::prelude::*;

use super::*;

const CLIENT: Client = Client { version: 1, is_head: false, upgrade: false, timing: false };
const OLD: Client = Client { version: 0, ..CLIENT };
const HEAD: Client = Client { is_head: true, ..CLIENT };

/// What the client gets of some pieces, whether the response has ended by itself, how it ends when the program closes, and whether the
/// connection goes on.
fn pass(client: Client, pieces: &[&[u8]]) -> Result<(String, bool, Ending, bool), BadResponse> {
    let mut response = Response::new(client);
    response.keeps = true;
    let mut output = Vec::new();
    for piece in pieces {
        response.take(piece, &mut output)?;
    }
    let complete = response.is_complete();
    let ending = response.close(&mut output);
    Ok((String::from_utf8_lossy(&output).into_owned(), complete, ending, response.keeps))
}

fn passed(client: Client, bytes: &str) -> String {
    pass(client, &[bytes.as_bytes()]).expect("valid").0
}

#[test]
fn a_length_is_a_length() {
    let (output, complete, ending, keeps) = pass(CLIENT, &[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\n\r\nabc and more"]).unwrap();
    assert_eq!(output, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\n\r\nabc");
    assert_eq!((complete, ending, keeps), (true, Ending::Whole, true));
    let (output, complete, ending, _) = pass(CLIENT, &[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"]).unwrap();
    assert!(output.ends_with("\r\n\r\nab"));
    assert_eq!((complete, ending), (false, Ending::Cut));
}

#[test]
fn the_fields_of_the_connection_are_ours() {
    let output = passed(
        CLIENT,
        "HTTP/1.0 200 Fine\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nProxy-Connection: a\r\n\
         Upgrade: h2c\r\nContent-Length: 0\r\n\r\n",
    );
    assert_eq!(output, "HTTP/1.1 200 Fine\r\nContent-Length: 0\r\n\r\n");
}

#[test]
fn a_body_that_ends_by_closing_gets_chunks() {
    let pieces: [&[u8]; 3] = [b"HTTP/1.1 200 OK\r\n\r\nabc", b"", b"0123456789abcdef"];
    let (output, complete, ending, keeps) = pass(CLIENT, &pieces).unwrap();
    assert_eq!(output, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n");
    assert_eq!((complete, ending, keeps), (false, Ending::Whole, true));
    let (output, _, ending, keeps) = pass(OLD, &pieces).unwrap();
    assert_eq!(output, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc0123456789abcdef");
    assert_eq!((ending, keeps), (Ending::Whole, false));
}

#[test]
fn chunks_are_written_anew() {
    let body = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n03;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\njunk";
    let (output, complete, ending, keeps) = pass(CLIENT, &[body.as_bytes()]).unwrap();
    assert_eq!(output, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n");
    assert_eq!((complete, ending, keeps), (true, Ending::Whole, true));
    let (output, _, _, keeps) = pass(OLD, &[body.as_bytes()]).unwrap();
    assert_eq!((output.as_str(), keeps), ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc", false));
    let cut = pass(CLIENT, &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab"]).unwrap();
    assert_eq!((cut.0.ends_with("3\r\nab"), cut.2), (true, Ending::Cut));
    let cut = pass(OLD, &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]).unwrap();
    assert_eq!(cut.2, Ending::Cut);
}

#[test]
fn an_old_client_is_kept_where_there_is_a_length() {
    let (output, _, _, keeps) = pass(OLD, &[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"]).unwrap();
    assert_eq!((output.as_str(), keeps), ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\na", true));
}

#[test]
fn some_responses_have_no_body_whatever_they_say() {
    assert_eq!(passed(HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
    assert_eq!(passed(HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(passed(CLIENT, "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc"), "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(
        passed(CLIENT, "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc"),
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"
    );
}

#[test]
fn interim_responses_pass_and_one_may_switch() {
    let hints = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na";
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n";
    assert_eq!(passed(CLIENT, hints), format!("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n{last}\r\na"));
    assert_eq!(passed(OLD, hints), format!("{last}Connection: keep-alive\r\n\r\na"));
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\nA: b\r\n\r\n\x01bytes";
    let asked = Client { upgrade: true, ..CLIENT };
    let (output, complete, ending, keeps) = pass(asked, &[switch.as_bytes(), b"\x02"]).unwrap();
    assert_eq!(output, "HTTP/1.1 101 Switching Protocols\r\nA: b\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n\x01bytes\x02");
    assert_eq!((complete, ending, keeps), (false, Ending::Whole, false));
    assert!(pass(CLIENT, &[switch.as_bytes()]).is_err());
}

#[test]
fn bare_line_feeds_of_a_program_never_reach_the_client() {
    let wanted = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nA: b\r\n\r\na";
    assert_eq!(passed(CLIENT, "HTTP/1.0 200 OK\nContent-Length: 1\nA: b\n\na"), wanted);
    assert_eq!(passed(CLIENT, "HTTP/1.0 200 OK\r\nContent-Length: 1\nA: b\n\r\na"), wanted);
}

#[test]
fn responses_that_are_none_are_refused() {
    for bad in [
        "this is not HTTP\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 600 High\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\rContent-Length: 1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        "\r\n\r\n",
    ] {
        let mut output = Vec::new();
        assert!(Response::new(CLIENT).take(bad.as_bytes(), &mut output).is_err(), "{bad:?}");
        assert_eq!(output, b"", "{bad:?}");
    }
    let long = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(70_000));
    assert!(pass(CLIENT, &[long.as_bytes()]).is_err());
    assert!(pass(CLIENT, &[format!("{long}\r\n\r\n").as_bytes()]).is_err());
    assert!(pass(CLIENT, &[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz"]).is_err());
    assert_eq!(pass(CLIENT, &[b""]).map(|passed| passed.2), Ok(Ending::Nothing));
    assert_eq!(pass(CLIENT, &[b"HTTP/1.1 200 OK\r\nA: "]).map(|passed| passed.2), Ok(Ending::Cut));
}

#[test]
fn our_own_fields_are_added_once_and_cannot_be_pretended() {
    let mut response = Response::new(Client { timing: true, ..CLIENT });
    response.extra = b"kvmserver-vm: 0/1\r\n".to_vec();
    let mut output = Vec::new();
    response.take(b"HTTP/1.1 103 A\r\n\r\nHTTP/1.1 204 B\r\nkvmserver-vm: 7/7\r\n\r\n", &mut output).unwrap();
    assert_eq!(output, b"HTTP/1.1 103 A\r\n\r\nHTTP/1.1 204 B\r\nConnection: close\r\nkvmserver-vm: 0/1\r\n\r\n");
}

/// A strict client's view of a kept connection: the body of the one response on it.
fn body_of(output: &[u8]) -> Option<Vec<u8>> {
    let end = memchr::memmem::find(output, b"\r\n\r\n")? + 4;
    let (head, rest) = output.split_at(end);
    let head = String::from_utf8_lossy(head);
    if head.contains("Transfer-Encoding: chunked\r\n") {
        let (mut body, mut chunks) = (Vec::new(), Chunks::default());
        let taken = chunks.take(rest, &mut super::chunks::Plain(&mut body)).ok()?;
        return (chunks.ended() && taken == rest.len()).then_some(body);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?;
    (length.parse() == Ok(rest.len())).then(|| rest.to_vec())
}

/// The body as a program might write it.
#[derive(Debug, Clone, Copy)]
enum Written {
    Length,
    Chunks(usize),
    UntilClose,
}

fn written(body: &[u8], how: Written) -> Vec<u8> {
    match how {
        Written::Length => [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
        Written::UntilClose => [b"HTTP/1.1 200 OK\r\n\r\n", body].concat(),
        Written::Chunks(size) => {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in body.chunks(size) {
                bytes.extend(format!("{:X};a=b\r\n", chunk.len()).as_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nX-Sum: 1\r\n\r\n");
            bytes
        }
    }
}

proptest! {
    #[test]
    fn any_split_of_the_bytes_gives_the_same_response(
        body in proptest::collection::vec(any::<u8>(), 0..300),
        how in prop_oneof![Just(Written::Length), Just(Written::UntilClose), (1_usize..40).prop_map(Written::Chunks)],
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = written(&body, how);
        let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        places.sort_unstable();
        let pieces: Vec<&[u8]> = places.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let (output, _, ending, keeps) = pass_bytes(CLIENT, &pieces);
        prop_assert_eq!((ending, keeps), (Ending::Whole, true));
        prop_assert_eq!(body_of(&output), Some(body));
        if !matches!(how, Written::UntilClose) {
            prop_assert_eq!(output, pass_bytes(CLIENT, &[&bytes]).0);
        }
    }

    #[test]
    fn what_breaks_off_never_looks_complete(
        body in proptest::collection::vec(any::<u8>(), 1..200),
        how in prop_oneof![Just(Written::Length), (1_usize..40).prop_map(Written::Chunks)],
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = written(&body, how);
        let (output, complete, ending, _) = pass_bytes(CLIENT, &[&bytes[..cut.index(bytes.len())]]);
        prop_assert!(!complete && ending != Ending::Whole);
        prop_assert_eq!(body_of(&output), None);
    }

    #[test]
    fn no_bytes_of_a_program_do_harm(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..6), valid in any::<bool>()) {
        let mut response = Response::new(CLIENT);
        let mut output = Vec::new();
        if valid {
            response.take(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n", &mut output).expect("valid");
        }
        for piece in &pieces {
            if response.take(piece, &mut output).is_err() {
                break;
            }
        }
        prop_assert!(output.len() <= 100 + 20 * pieces.iter().map(Vec::len).sum::<usize>());
    }
}

fn pass_bytes(client: Client, pieces: &[&[u8]]) -> (Vec<u8>, bool, Ending, bool) {
    let mut response = Response::new(client);
    response.keeps = true;
    let mut output = Vec::new();
    for piece in pieces {
        response.take(piece, &mut output).expect("valid");
    }
    let complete = response.is_complete();
    let ending = response.close(&mut output);
    (output, complete, ending, response.keeps)
}
