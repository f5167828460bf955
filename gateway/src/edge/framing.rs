//! Where one HTTP/1 request ends and the next begins, read more strictly than hyper reads it (RFC 9112).
//!
//! Request smuggling lives from two readers of one stream who disagree about that. hyper is lenient where the standard lets a server
//! be: a line may end with LF alone, `Content-Length` beside `Transfer-Encoding` is forgotten, equal lengths are merged. So each byte of a
//! head passes here before hyper sees it, and what two readers might read differently is refused:
//!
//! | form | |
//! | --- | --- |
//! | LF without CR, CR without LF, NUL and other control characters | refused |
//! | a line that continues the one before (`obs-fold`) | refused |
//! | white space before the colon, or around the request line's parts | refused |
//! | `Content-Length` and `Transfer-Encoding` | refused |
//! | `Content-Length` twice, or anything but digits | refused |
//! | `Transfer-Encoding` twice, of HTTP/1.0, or anything but `chunked` | refused |
//! | `CONNECT` | refused: this is no proxy of the client's |
//! | a chunk whose size or end is not as the grammar has it | refused |
//!
//! After a request that asks for an upgrade the bytes belong to another protocol, or the connection ends: the edge sees to that.

/// A head's most bytes.
pub const LONGEST_HEAD: usize = 48 * 1024;

/// A chunk's size line with its extensions; all trailers together.
const LONGEST_CHUNK_LINE: usize = 1024;
const LONGEST_TRAILERS: usize = 16 * 1024;

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A line ends with LF alone, or has a CR, NUL or another control character in it.
    #[error("a line of the head holds a control character, or does not end with CR LF")]
    Line,
    /// Not `METHOD TARGET HTTP/1.1`.
    #[error("the first line is no request line of HTTP/1.1 or 1.0")]
    RequestLine,
    /// A header line that is none.
    #[error(
        "a header line is malformed: white space before the colon, a continued line, or a name that is none"
    )]
    Header,
    /// More than one reading of the body's length.
    #[error("the body's length is said in more than one way, or wrongly")]
    Length,
    /// `CONNECT`.
    #[error("CONNECT is for proxies, which this is not")]
    Connect,
    /// The chunks of a body.
    #[error("the body's chunks are malformed")]
    Chunk,
}

/// What to do with the bytes at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many of them may go on.
    Pass(usize),
    /// There must be more of them first.
    More,
    /// They may not.
    Refuse(Refusal),
    /// The head is too long; hyper answers that, when it is given all of it.
    TooLong,
}

/// A reader's place in a stream of requests.
#[derive(Debug)]
pub struct Framing(State);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the beginning of a head, of which so many bytes hold no end.
    Head { seen: usize },
    /// Within a body.
    Body { left: u64, then_open: bool },
    /// Within a body of chunks.
    Chunks { at: Chunk, then_open: bool },
    /// Another protocol, or nobody reads on.
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size,
    Data { left: u64 },
    End,
    Trailers { sum: usize },
}

/// What a whole head says about what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    body: Body,
    upgrades: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(u64),
    Chunks,
}

impl Default for Framing {
    fn default() -> Self {
        Self(State::Head { seen: 0 })
    }
}

impl Framing {
    /// How many of the next bytes may go on unseen: those of a body.
    pub fn unseen(&self) -> u64 {
        match self.0 {
            State::Body { left, .. } | State::Chunks { at: Chunk::Data { left }, .. } => left,
            State::Open => u64::MAX,
            State::Head { .. } | State::Chunks { .. } => 0,
        }
    }

    /// Takes note of bytes that went on unseen, at most [`Framing::unseen`].
    pub fn passed(&mut self, bytes: u64) {
        match &mut self.0 {
            State::Body { left, then_open } => {
                *left = left.saturating_sub(bytes);
                if *left == 0 {
                    self.0 = after(*then_open);
                }
            }
            State::Chunks { at, .. } => {
                if let Chunk::Data { left } = at {
                    *left = left.saturating_sub(bytes);
                    if *left == 0 {
                        *at = Chunk::End;
                    }
                }
            }
            State::Head { .. } | State::Open => (),
        }
    }

    /// Whether the next bytes are a head's.
    pub fn is_at_head(&self) -> bool {
        matches!(self.0, State::Head { .. })
    }

    /// Looks at bytes that have not gone on yet. The same ones come again, and more, after [`Step::More`].
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        let unseen = self.unseen();
        if unseen > 0 {
            let count = usize::try_from(unseen).map_or(bytes.len(), |unseen| unseen.min(bytes.len()));
            self.passed(count as u64);
            return Step::Pass(count);
        }
        match self.0 {
            State::Head { seen } => self.head(bytes, seen),
            State::Chunks { at, then_open } => self.chunk(bytes, at, then_open),
            State::Body { then_open, .. } => {
                self.0 = after(then_open);
                Step::Pass(0)
            }
            State::Open => Step::Pass(bytes.len()),
        }
    }

    fn head(&mut self, bytes: &[u8], seen: usize) -> Step {
        // An empty line before a request is let pass (RFC 9112 §2.2).
        if seen == 0 && bytes.starts_with(b"\r\n") {
            return Step::Pass(2);
        }
        if bytes == b"\r" {
            return Step::More;
        }
        // Three bytes back, since the end may lie across what was seen.
        let from = seen.saturating_sub(3);
        let Some(end) = find(&bytes[from..], b"\r\n\r\n").map(|at| from + at + 4) else {
            let checked = if seen == 0 { bytes } else { bytes.get(seen - 1..).unwrap_or_default() };
            if let Err(refusal) = has_no_lone_ends(checked) {
                return Step::Refuse(refusal);
            }
            if bytes.len() >= LONGEST_HEAD {
                self.0 = State::Open;
                return Step::TooLong;
            }
            self.0 = State::Head { seen: bytes.len() };
            return Step::More;
        };
        match read_head(&bytes[..end]) {
            Ok(head) => {
                self.0 = match head.body {
                    Body::Length(0) => after(head.upgrades),
                    Body::Length(left) => State::Body { left, then_open: head.upgrades },
                    Body::Chunks => State::Chunks { at: Chunk::Size, then_open: head.upgrades },
                };
                Step::Pass(end)
            }
            Err(refusal) => Step::Refuse(refusal),
        }
    }

    fn chunk(&mut self, bytes: &[u8], at: Chunk, then_open: bool) -> Step {
        let refused = Step::Refuse(Refusal::Chunk);
        let (line, next) = match at {
            Chunk::Data { .. } => return Step::Pass(0),
            Chunk::End => match bytes {
                [] | [b'\r'] => return Step::More,
                [b'\r', b'\n', ..] => (0, Chunk::Size),
                _ => return refused,
            },
            Chunk::Size => {
                let Some(line) = line_of(bytes) else {
                    return if bytes.len() > LONGEST_CHUNK_LINE { refused } else { Step::More };
                };
                match chunk_size(line) {
                    Some(_) if line.len() > LONGEST_CHUNK_LINE => return refused,
                    Some(0) => (line.len(), Chunk::Trailers { sum: 0 }),
                    Some(left) => (line.len(), Chunk::Data { left }),
                    None => return refused,
                }
            }
            Chunk::Trailers { sum } => {
                let Some(line) = line_of(bytes) else {
                    return if sum + bytes.len() > LONGEST_TRAILERS { refused } else { Step::More };
                };
                if line.is_empty() {
                    self.0 = after(then_open);
                    return Step::Pass(2);
                }
                let sum = sum + line.len() + 2;
                if sum > LONGEST_TRAILERS || header(line).is_err() {
                    return refused;
                }
                (line.len(), Chunk::Trailers { sum })
            }
        };
        self.0 = State::Chunks { at: next, then_open };
        Step::Pass(line + 2)
    }
}

fn after(then_open: bool) -> State {
    if then_open { State::Open } else { State::Head { seen: 0 } }
}

fn find(bytes: &[u8], what: &[u8; 4]) -> Option<usize> {
    memchr::memmem::find(bytes, what)
}

/// The first line, without its CR LF; none when it is not whole. A line that has an LF alone comes back with it in, and is no line of
/// any grammar here.
fn line_of(bytes: &[u8]) -> Option<&[u8]> {
    find_crlf(bytes).map(|end| &bytes[..end])
}

fn find_crlf(bytes: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', bytes).find(|at| *at > 0 && bytes[at - 1] == b'\r').map(|at| at - 1)
}

/// Whether each CR is followed by an LF and each LF follows a CR, but for a CR at the very end.
fn has_no_lone_ends(bytes: &[u8]) -> Result<(), Refusal> {
    for at in memchr::memchr2_iter(b'\r', b'\n', bytes) {
        let fine = match bytes[at] {
            b'\r' => bytes.get(at + 1).is_none_or(|next| *next == b'\n'),
            // What came before the first byte was looked at then.
            _ => at == 0 || bytes[at - 1] == b'\r',
        };
        if !fine {
            return Err(Refusal::Line);
        }
    }
    Ok(())
}

/// A whole head, with the empty line at its end.
fn read_head(bytes: &[u8]) -> Result<Head, Refusal> {
    let mut rest = bytes.strip_suffix(b"\r\n\r\n").ok_or(Refusal::Line)?;
    let mut line = || {
        let (line, more) = match find_crlf(rest) {
            Some(end) => (&rest[..end], &rest[end + 2..]),
            None => (rest, &[][..]),
        };
        rest = more;
        line
    };
    let first = line();
    let is_http_11 = request_line(first)?;
    let (mut lengths, mut codings, mut length, mut upgrades) = (0_u32, 0_u32, 0_u64, false);
    loop {
        let line = line();
        if line.is_empty() {
            break;
        }
        let (name, value) = header(line)?;
        // By its length first: three of a request's ten headers are looked at twice.
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrades = is_http_11,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                lengths += 1;
                length = decimal(value).ok_or(Refusal::Length)?;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                codings += 1;
                if !is_http_11 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Length);
                }
            }
            _ => (),
        }
    }
    match (lengths, codings) {
        (0 | 1, 0) => Ok(Head { body: Body::Length(length), upgrades }),
        (0, 1) => Ok(Head { body: Body::Chunks, upgrades }),
        _ => Err(Refusal::Length),
    }
}

/// `METHOD TARGET HTTP/1.x`; whether it is 1.1.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    if line.iter().any(|byte| byte.is_ascii_control()) {
        return Err(Refusal::Line);
    }
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::RequestLine);
    };
    if method.is_empty() || !method.iter().copied().all(is_token) || target.is_empty() {
        return Err(Refusal::RequestLine);
    }
    if method.eq_ignore_ascii_case(b"connect") {
        return Err(Refusal::Connect);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ => Err(Refusal::RequestLine),
    }
}

/// `Name: value`, the value without the white space around it.
fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    let colon = memchr::memchr(b':', line).ok_or(Refusal::Header)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Refusal::Header);
    }
    if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Refusal::Line);
    }
    Ok((name, trim(value)))
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        let others = b"!#$%&'*+-.^_`|~";
        while byte < 256 {
            #[allow(clippy::cast_possible_truncation)] // below 256
            let b = byte as u8;
            table[byte] = b.is_ascii_alphanumeric();
            let mut other = 0;
            while other < others.len() {
                if others[other] == b {
                    table[byte] = true;
                }
                other += 1;
            }
            byte += 1;
        }
        table
    };
    TOKEN[byte as usize]
}

/// Digits and nothing else, no more than any body has.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + u64::from(byte - b'0')))
}

/// Hex digits, and extensions, which nobody reads (RFC 9112 §7.1.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extensions) = line.split_at(digits);
    let fine = match trim(extensions) {
        [] => extensions.is_empty(),
        [b';', rest @ ..] => !rest.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t'),
        _ => false,
    };
    if !fine || size.is_empty() || size.len() > 15 {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All that passes, and how it ends.
    fn fed(bytes: &[u8], piece: usize) -> (usize, Option<Step>) {
        let (mut framing, mut held, mut passed) = (Framing::default(), Vec::new(), 0);
        for piece in bytes.chunks(piece) {
            held.extend_from_slice(piece);
            while !held.is_empty() {
                match framing.step(&held) {
                    Step::Pass(count) => {
                        held.drain(..count);
                        passed += count;
                    }
                    Step::More => break,
                    stop => return (passed, Some(stop)),
                }
            }
        }
        (passed, None)
    }

    #[test]
    fn good_requests_pass_however_they_are_cut() {
        let stream = b"GET / HTTP/1.1\r\nHost: a\r\nX: \t y z \r\n\r\n\
            \r\nPOST /x?y HTTP/1.1\r\nhost: a\r\nContent-Length:  5 \r\n\r\nhelloPOST / HTTP/1.1\r\nHost: a\r\n\
            Transfer-Encoding: Chunked\r\n\r\n5;ext=\"q\"\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nGET * HTTP/1.0\r\n\r\n";
        for piece in 1..40 {
            assert_eq!(fed(stream, piece), (stream.len(), None), "in pieces of {piece}");
        }
    }

    #[test]
    fn after_an_upgrade_everything_passes() {
        let stream =
            b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\n..\n\n\0 any bytes\r\r";
        for piece in 1..40 {
            assert_eq!(fed(stream, piece), (stream.len(), None));
        }
    }

    #[test]
    fn what_two_readers_might_read_differently_is_refused() {
        let cases: &[(&[u8], Refusal)] = &[
            (b"GET / HTTP/1.1\nHost: a\n\n", Refusal::Line),
            (b"GET / HTTP/1.1\r\nHost: a\n\r\n\r\n", Refusal::Line),
            (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Refusal::Line),
            (b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", Refusal::Line),
            (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", Refusal::Header),
            (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Refusal::Header),
            (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Refusal::Header),
            (b"GET / HTTP/1.1\r\nTransfer-Encoding : chunked\r\n\r\n", Refusal::Header),
            (b"GET / HTTP/1.1\r\nno header\r\n\r\n", Refusal::Header),
            (b"GET / HTTP/1.1\r\n: x\r\n\r\n", Refusal::Header),
            (b"GET  / HTTP/1.1\r\n\r\n", Refusal::RequestLine),
            (b"GET / HTTP/1.1 \r\n\r\n", Refusal::RequestLine),
            (b"GET\t/ HTTP/1.1\r\n\r\n", Refusal::Line),
            (b"GET / HTTP/1.2\r\n\r\n", Refusal::RequestLine),
            (b"GET / http/1.1\r\n\r\n", Refusal::RequestLine),
            (b"GET /\r\n\r\n", Refusal::RequestLine),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refusal::RequestLine),
            (b"CONNECT a:443 HTTP/1.1\r\n\r\n", Refusal::Connect),
            (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nContent-Length: \r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::Length),
            (
                b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
                Refusal::Length,
            ),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", Refusal::Length),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", Refusal::Line),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n", Refusal::Chunk),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX : y\r\n\r\n", Refusal::Chunk),
        ];
        for (bytes, refusal) in cases {
            for piece in [1, 3, bytes.len()] {
                // A lone line end that never leads to a whole line or head is waited for, not passed on.
                let bytes = [bytes, &b"\r\n\r\n\r\n\r\n"[..]].concat();
                let (_, end) = fed(&bytes, piece);
                assert_eq!(
                    end,
                    Some(Step::Refuse(*refusal)),
                    "{} in pieces of {piece}",
                    bytes.escape_ascii()
                );
            }
        }
    }

    #[test]
    fn a_head_without_an_end_is_too_long_some_day() {
        let mut endless = b"GET / HTTP/1.1\r\n".to_vec();
        while endless.len() < LONGEST_HEAD * 2 {
            endless.extend_from_slice(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n");
        }
        assert_eq!(fed(&endless, 1000).1, Some(Step::TooLong));
        let endless =
            [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;".to_vec(), vec![b'a'; 5000]].concat();
        assert_eq!(fed(&endless, 100).1, Some(Step::Refuse(Refusal::Chunk)));
    }

    /// What streams of requests are made of, good and bad.
    const PARTS: &[&[u8]] = &[
        b"POST / HTTP/1.1\r\n",
        b"Host: a\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n",
        b"\n",
        b"\r",
        b"abc",
    ];

    proptest! {
        #[test]
        fn how_bytes_are_cut_changes_nothing(
            parts in proptest::collection::vec(proptest::sample::select(PARTS), 0..12),
            piece in 1usize..30,
        ) {
            let bytes = parts.concat();
            let (whole, cut) = (fed(&bytes, bytes.len().max(1)), fed(&bytes, piece));
            // Cut into pieces, a fault may show before or after the bytes that lead to it were all there.
            prop_assert_eq!(whole.1.is_some(), cut.1.is_some(), "{}", bytes.escape_ascii());
            prop_assert_eq!(whole.0, cut.0);
        }

        #[test]
        fn any_bytes_end_in_a_step(bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
            let (passed, _) = fed(&bytes, piece);
            prop_assert!(passed <= bytes.len());
        }
    }
}
