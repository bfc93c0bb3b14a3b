//! A worker whose own code panics: what is lost, and what goes on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use super::serve;
use crate::config::ServeConfig;
use crate::panics::injected;
use crate::sandbox::tests::{Scratch, snapshot};
use crate::stats::ServeStats;

/// Set in the process that is to end.
const CHILD: &str = "KVMSERVER_TEST_CHILD";

fn config() -> ServeConfig {
    let clients = serde_json::json!({
        "protocol": "http", "proxy_protocol": false, "proxy_headers": false, "server_timing": false, "request_buffer": 1 << 20,
        "response_buffer": 1 << 20, "connection_memory": 1 << 30, "max_header_size": 1 << 16, "max_body_size": 1 << 30,
        "header_timeout_ns": 30_000_000_000_u64, "body_timeout_ns": 30_000_000_000_u64, "idle_timeout_ns": 30_000_000_000_u64,
        "write_timeout_ns": 30_000_000_000_u64, "queue_time_ns": 30_000_000_000_u64,
    });
    let config = serde_json::json!({
        "threads": 1, "ephemeral": true, "verify_reset": false, "max_request_time_ns": 30_000_000_000_u64,
        "max_request_memory": 128 << 20, "limit_request_memory": 128 << 20, "hot_pages": 64, "drain_time_ns": 10_000_000_000_u64,
        "control_fd": -1, "worker": 0, "clients": clients,
    });
    serde_json::from_value(config).unwrap()
}

/// Run a worker with one VM on a counter that has answered once; what it did, and the lines that it sent to its parent.
fn with_worker(name: &str, port: &str, act: impl FnOnce(SocketAddr)) -> (ServeStats, String) {
    let scratch = Scratch::new(name);
    let snapshot = snapshot(&scratch.guest("failures"), &[port]);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = config();
    let stats = std::thread::scope(|scope| {
        let (snapshot, config) = (&snapshot, &config);
        let worker = scope.spawn(move || serve(snapshot, config, theirs.as_fd(), vec![OwnedFd::from(listener)], None).unwrap());
        let acted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(address)));
        // Also where a test has failed: the worker would serve for ever.
        (&ours).write_all(b"{\"do\":\"drain\"}\n").unwrap();
        let stats = worker.join().unwrap();
        acted.map_or_else(|panic| std::panic::resume_unwind(panic), |()| stats)
    });
    let mut lines = String::new();
    (&ours).read_to_string(&mut lines).unwrap();
    (stats, lines)
}

/// The status of the answer to a request on a connection of its own, and its last line; nothing where the connection was closed.
fn ask(address: SocketAddr) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    Some((answer.get(9..12)?.to_owned(), answer.lines().last()?.to_owned()))
}

fn answer(status: &str, line: &str) -> Option<(String, String)> {
    Some((status.to_owned(), line.to_owned()))
}

#[test]
fn a_panic_costs_one_vm_and_the_next_request_has_another() {
    let (stats, lines) = with_worker("panic", "21911", |address| {
        let cases = [
            ("request", answer("502", "the program failed to answer this request")),
            ("reset", answer("200", "2")),
            // Before the connection is accepted: it waits for the next turn.
            ("event", answer("200", "2")),
            ("head", None),
        ];
        for (place, expected) in cases {
            assert_eq!(ask(address), answer("200", "2"));
            // Until the VM is reset: while it is busy, the watch would take what comes next.
            std::thread::sleep(Duration::from_millis(300));
            injected::ask_for(&[place]);
            assert_eq!(ask(address), expected, "{place}");
            assert_eq!(ask(address), answer("200", "2"), "behind a panic: {place}");
            assert!(injected::is_over());
        }
    });
    assert_eq!(stats.internal_errors, 4);
    assert_eq!(stats.failures, [("broken".to_owned(), 1)].into());
    assert_eq!(stats.busy_vms, 0);
    for place in ["request", "reset", "event", "head"] {
        let told = format!("internal error: injected: {place} (");
        assert_eq!(lines.matches(&told).count(), 1, "{lines}");
    }
}

#[test]
fn a_worker_that_cannot_make_a_vm_anew_ends() {
    if std::env::var_os(CHILD).is_some() {
        with_worker("panic-child", "21912", |address| {
            injected::ask_for(&["request", "renew", "renew"]);
            ask(address);
            // The process is ended by another thread.
            std::thread::sleep(Duration::from_secs(20));
        });
        return;
    }
    let name = "serve::tests::a_worker_that_cannot_make_a_vm_anew_ends";
    let child = Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(CHILD, "1").output().unwrap();
    assert_eq!(child.status.code(), Some(1), "{child:?}");
}
