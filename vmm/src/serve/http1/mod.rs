//! HTTP/1.1 framing, strict (RFC 9112), without I/O: where a request ends and what the program is given of it, where a response
//! ends and what the client is given of it.
//!
//! Nothing is passed on as it came. A head is taken apart by httparse, which accepts a bare LF as line end where we do not (request
//! smuggling lives there), and written anew; the framing of a body is ours in both directions. So the two sides of this gateway
//! cannot be made to disagree on where a message ends.

mod answer;
mod chunks;
mod fields;
mod request;
mod response;
mod scan;
mod target;
#[cfg(test)]
mod tests_request;
#[cfg(test)]
mod tests_response;

pub use answer::Answer;
pub use chunks::{Canonical, ChunkSink, Chunks};
pub use request::{BodyLength, Request, Rules, parse_request};
pub use response::{BadResponse, Client, Ending, Response};
pub use scan::HeadScan;

/// Most fields of a head; 431 in a request.
const FIELDS_MAX: usize = 128;

/// Why a request is refused: the status that the client gets before its connection closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub u16);
