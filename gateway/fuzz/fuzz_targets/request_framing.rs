//! A stream of HTTP/1 requests: what passes the edge's own framing is cut into the same requests however it arrives, and what passes is
//! what httparse, and so hyper, takes for a head too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mashines_gateway::edge::framing::{Framing, Step};

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = fed(bytes, bytes.len().max(1));
    let cut = fed(bytes, usize::from(piece) + 1);
    assert_eq!(whole, cut, "{}", bytes.escape_ascii());
    for head in &whole.heads {
        let mut lines = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut lines);
        match request.parse(head) {
            Ok(parsed) => {
                assert_eq!(parsed, httparse::Status::Complete(head.len()), "{}", head.escape_ascii())
            }
            // More lines than anybody sends: hyper answers 431.
            Err(error) => assert_eq!(error, httparse::Error::TooManyHeaders, "{}", head.escape_ascii()),
        }
        let lengths =
            request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("content-length"));
        let codings =
            request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("transfer-encoding"));
        assert!(lengths.count() + codings.count() <= 1, "{}", head.escape_ascii());
    }
});

#[derive(Debug, PartialEq)]
struct Fed {
    passed: usize,
    refused: bool,
    heads: Vec<Vec<u8>>,
}

fn fed(bytes: &[u8], piece: usize) -> Fed {
    let (mut framing, mut held, mut fed) =
        (Framing::default(), Vec::new(), Fed { passed: 0, refused: false, heads: Vec::new() });
    for piece in bytes.chunks(piece) {
        held.extend_from_slice(piece);
        while !held.is_empty() {
            let between = framing.is_at_head();
            match framing.step(&held) {
                Step::Pass(count) => {
                    if between && count > 2 {
                        fed.heads.push(held[..count].to_vec());
                    }
                    fed.passed += count;
                    held.drain(..count);
                }
                Step::More => break,
                Step::Refuse(_) | Step::TooLong => {
                    fed.refused = true;
                    return fed;
                }
            }
        }
    }
    fed
}
