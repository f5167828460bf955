//! Serves the files of a folder over HTTP/1.1 (RFC 9112): GET and HEAD, conditional requests, persistent connections. Nothing else: no
//! ranges, no listings, no compression.
//!
//! Only what lies below the folder is served, symbolic links included, and nothing whose name begins with a dot except `.well-known`.
//! SIGTERM lets requests under way be answered, and says to each client that its connection ends.
//! Limits: [`MAX_HEAD`], [`MAX_CONNECTIONS`], [`IDLE`], [`SEND`].

use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

/// The longest request line with its fields, in bytes.
const MAX_HEAD: u64 = 16 * 1024;
/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 512;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(30);
/// How long the client may take nothing.
const SEND: Duration = Duration::from_secs(30);

/// How long requests under way have after SIGTERM.
const LAST: Duration = Duration::from_secs(10);
/// After the last of them, how long there must be none.
const QUIET: Duration = Duration::from_millis(200);

/// What the threads share.
#[derive(Default)]
struct Server {
    root: PathBuf,
    /// Connections.
    open: AtomicUsize,
    /// Requests under way.
    busy: AtomicUsize,
    /// SIGTERM has come.
    ending: AtomicBool,
}

/// Serves until SIGTERM, on the loopback: the front is before it.
pub fn serve(folder: &Path, port: u16) -> Result<()> {
    let root = folder.canonicalize().with_context(|| format!("finding the folder {}", folder.display()))?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("listening on port {port}"))?;
    let server = Arc::new(Server { root, ..Server::default() });
    // Blocked here, so in every thread that follows; waited for in one.
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().context("blocking SIGTERM")?;
    let accepting = Arc::clone(&server);
    thread::spawn(move || accept(&accepting, &listener));
    term.wait().context("waiting for SIGTERM")?;
    server.ending.store(true, Ordering::SeqCst);
    let (asked, mut last) = (Instant::now(), Instant::now());
    while asked.elapsed() < LAST && last.elapsed() < QUIET {
        if server.busy.load(Ordering::SeqCst) > 0 {
            last = Instant::now();
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn accept(server: &Arc<Server>, listener: &TcpListener) {
    loop {
        while server.open.load(Ordering::SeqCst) >= MAX_CONNECTIONS {
            thread::sleep(Duration::from_millis(5));
        }
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        server.open.fetch_add(1, Ordering::SeqCst);
        let mine = Arc::clone(server);
        let spawned = thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            // A client that goes away is its own affair.
            let _ = connection(&mine, stream);
            mine.open.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            server.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn connection(server: &Server, stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(SEND))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(head) = read_head(&mut reader)? {
        server.busy.fetch_add(1, Ordering::SeqCst);
        let sent = answer(server, &head, &mut writer);
        server.busy.fetch_sub(1, Ordering::SeqCst);
        if !sent? {
            break;
        }
    }
    Ok(())
}

/// Answers one request, and says whether the connection goes on.
fn answer(server: &Server, head: &str, to: &mut impl Write) -> io::Result<bool> {
    let (answer, wants_on) = match Request::parse(head) {
        Some(request) => (Answer::to(&server.root, &request), request.goes_on),
        None => (Answer::error(400, "Bad Request"), false),
    };
    let goes_on = wants_on && !server.ending.load(Ordering::SeqCst);
    answer.send(to, goes_on)?;
    Ok(goes_on)
}

/// Request line and fields; `None` at the end of the connection. A head that is too long ends it too.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut limited = reader.take(MAX_HEAD);
    loop {
        let before = head.len();
        let length = limited.read_until(b'\n', &mut head)?;
        if length == 0 || head.last() != Some(&b'\n') {
            return Ok(None);
        }
        let line = &head[before..];
        if line == b"\r\n" || line == b"\n" {
            // Empty lines before a request are passed over (RFC 9112, 2.2).
            if before > 0 {
                return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
            }
            head.clear();
        }
    }
}

/// A request that is understood.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// GET or HEAD; anything else is answered with 405.
    method: String,
    path: String,
    query: Option<String>,
    known_tag: Option<String>,
    goes_on: bool,
}

impl Request {
    fn parse(head: &str) -> Option<Self> {
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() || !version.starts_with("HTTP/1.") {
            return None;
        }
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let mut request = Self {
            method: method.to_owned(),
            path: path.strip_prefix('/')?.to_owned(),
            query: query.map(str::to_owned),
            known_tag: None,
            goes_on: version == "HTTP/1.1",
        };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "connection" => {
                    let has = |word: &str| value.split(',').any(|one| one.trim().eq_ignore_ascii_case(word));
                    request.goes_on = (request.goes_on || has("keep-alive")) && !has("close");
                }
                "if-none-match" => request.known_tag = Some(value.to_owned()),
                // A body that we do not read would be taken for the next request.
                "content-length" if value != "0" => request.goes_on = false,
                "transfer-encoding" => request.goes_on = false,
                _ => {}
            }
        }
        Some(request)
    }
}

/// The file that a path names below a folder, as far as its letters tell; `None` for what is never served.
fn below(path: &str) -> Option<PathBuf> {
    let decoded = decode(path)?;
    let mut relative = PathBuf::new();
    for part in decoded.split('/').filter(|part| !part.is_empty()) {
        let hidden = part.starts_with('.') && part != ".well-known";
        if hidden || part.contains(['\0', '\\']) {
            return None;
        }
        relative.push(part);
    }
    (relative != Path::new(super::manifest::FILE)).then_some(relative)
}

/// `%41` and the like (RFC 3986, 2.1); `None` when it is no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

struct Answer {
    status: u16,
    reason: &'static str,
    kind: &'static str,
    /// Further fields, each with its line end.
    fields: String,
    body: Body,
    with_body: bool,
}

enum Body {
    Text(String),
    File(File, u64),
}

impl Answer {
    fn error(status: u16, reason: &'static str) -> Self {
        let body = Body::Text(format!("{status} {reason}\n"));
        Self {
            status,
            reason,
            kind: "text/plain; charset=utf-8",
            fields: String::new(),
            body,
            with_body: true,
        }
    }

    fn to(root: &Path, request: &Request) -> Self {
        let with_body = match request.method.as_str() {
            "GET" => true,
            "HEAD" => false,
            _ => {
                let mut answer = Self::error(405, "Method Not Allowed");
                answer.fields = "Allow: GET, HEAD\r\n".to_owned();
                return answer;
            }
        };
        let mut answer = Self::found(root, request).unwrap_or_else(|| Self::missing(root));
        answer.with_body = with_body && answer.status != 304;
        answer
    }

    fn found(root: &Path, request: &Request) -> Option<Self> {
        let relative = below(&request.path)?;
        let file = inside(root, &relative)?;
        if !fs::metadata(&file).ok()?.is_dir() {
            return Self::file(&file, request.known_tag.as_deref());
        }
        if request.path.is_empty() || request.path.ends_with('/') {
            return Self::file(&inside(root, &relative.join("index.html"))?, request.known_tag.as_deref());
        }
        // Relative links in the page must find their folder. Absolute path only: `//host` would lead elsewhere.
        inside(root, &relative.join("index.html"))?;
        let query = request.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let mut answer = Self::error(301, "Moved Permanently");
        answer.fields = format!("Location: /{}/{query}\r\n", request.path.trim_start_matches('/'));
        Some(answer)
    }

    fn file(path: &Path, known_tag: Option<&str>) -> Option<Self> {
        let file = File::open(path).ok()?;
        let metadata = file.metadata().ok().filter(Metadata::is_file)?;
        let tag = tag(&metadata);
        let known = known_tag.is_some_and(|known| {
            known == "*" || known.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)
        });
        Some(Self {
            status: if known { 304 } else { 200 },
            reason: if known { "Not Modified" } else { "OK" },
            kind: content_type(path),
            fields: format!("ETag: {tag}\r\nCache-Control: no-cache\r\n"),
            body: Body::File(file, metadata.len()),
            with_body: true,
        })
    }

    fn missing(root: &Path) -> Self {
        let page = inside(root, Path::new("404.html")).and_then(|path| Self::file(&path, None));
        page.map_or_else(
            || Self::error(404, "Not Found"),
            |page| Self { status: 404, reason: "Not Found", fields: String::new(), ..page },
        )
    }

    fn send(self, stream: &mut impl Write, goes_on: bool) -> io::Result<()> {
        let length = match &self.body {
            Body::Text(text) => u64::try_from(text.len()).unwrap_or(0),
            Body::File(_, length) => *length,
        };
        let length = if self.status == 304 { String::new() } else { format!("Content-Length: {length}\r\n") };
        let connection = if goes_on { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\n{length}{}X-Content-Type-Options: nosniff\r\nConnection: {connection}\r\n\r\n",
            self.status, self.reason, self.kind, self.fields
        );
        if !self.with_body {
            return stream.write_all(head.as_bytes());
        }
        match self.body {
            Body::Text(text) => stream.write_all((head + &text).as_bytes()),
            Body::File(file, length) => {
                stream.write_all(head.as_bytes())?;
                // No more than was promised, should the file grow meanwhile; less ends the connection.
                match io::copy(&mut file.take(length), stream)? {
                    sent if sent == length => Ok(()),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
    }
}

/// The path with links followed, if it is below the root still.
fn inside(root: &Path, relative: &Path) -> Option<PathBuf> {
    root.join(relative).canonicalize().ok().filter(|path| path.starts_with(root))
}

fn tag(metadata: &Metadata) -> String {
    let changed =
        metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("\"{:x}-{:x}\"", changed.as_nanos(), metadata.len())
}

fn content_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "txt" | "md" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "mp3" => "audio/mpeg",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(root: &Path, head: &str) -> String {
        let request = Request::parse(head).unwrap();
        let mut sent = Vec::new();
        let goes_on = request.goes_on;
        Answer::to(root, &request).send(&mut sent, goes_on).unwrap();
        String::from_utf8_lossy(&sent).into_owned()
    }

    fn site() -> tempfile::TempDir {
        let site = tempfile::tempdir().unwrap();
        let root = site.path().join("site");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir_all(root.join(".well-known")).unwrap();
        fs::write(site.path().join("secret"), "outside").unwrap();
        fs::write(root.join("index.html"), "<h1>hello").unwrap();
        fs::write(root.join("sub/index.html"), "sub").unwrap();
        fs::write(root.join(".env"), "KEY=secret").unwrap();
        fs::write(root.join("mashine.toml"), "").unwrap();
        fs::write(root.join(".well-known/x"), "known").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        site
    }

    #[test]
    fn files_and_indexes_are_served() {
        let site = site();
        let root = site.path().join("site").canonicalize().unwrap();
        let page = ask(&root, "GET / HTTP/1.1\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/html"), "{page}");
        assert!(page.contains("Content-Length: 9\r\n") && page.ends_with("\r\n\r\n<h1>hello"), "{page}");
        assert!(ask(&root, "GET /sub HTTP/1.1\r\n\r\n").contains("Location: /sub/\r\n"));
        assert!(ask(&root, "GET /sub/?a=b HTTP/1.1\r\n\r\n").ends_with("sub"));
        assert!(ask(&root, "GET /.well-known/x HTTP/1.0\r\n\r\n").ends_with("known"));
        let head = ask(&root, "HEAD / HTTP/1.1\r\n\r\n");
        assert!(head.contains("Content-Length: 9\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(&root, "POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    }

    #[test]
    fn nothing_outside_and_nothing_hidden_is_served() {
        let site = site();
        let root = site.path().join("site").canonicalize().unwrap();
        for path in [
            "/../secret",
            "/%2e%2e/secret",
            "/sub/..%2f..%2fsecret",
            "/link",
            "/.env",
            "/%2eenv",
            "/mashine.toml",
            "/mashine%2etoml",
            "/%00",
            "/%zz",
            "/%+1",
            "//etc/passwd",
            "/sub/../index.html",
            "/none",
        ] {
            let answer = ask(&root, &format!("GET {path} HTTP/1.1\r\n\r\n"));
            assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        }
    }

    #[test]
    fn a_known_tag_needs_no_body() {
        let site = site();
        let root = site.path().join("site").canonicalize().unwrap();
        let page = ask(&root, "GET / HTTP/1.1\r\n\r\n");
        let tag = page.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
        let again = ask(&root, &format!("GET / HTTP/1.1\r\nIf-None-Match: {tag}\r\n\r\n"));
        assert!(again.starts_with("HTTP/1.1 304") && again.ends_with("\r\n\r\n"), "{again}");
        assert!(!again.contains("Content-Length"), "{again}");
    }

    #[test]
    fn a_redirect_leads_to_no_other_host() {
        let site = site();
        let root = site.path().join("site").canonicalize().unwrap();
        assert!(ask(&root, "GET //sub HTTP/1.1\r\n\r\n").contains("Location: /sub/\r\n"));
    }

    #[test]
    fn persistence_is_as_the_version_and_the_fields_say() {
        let goes_on = |head: &str| Request::parse(head).unwrap().goes_on;
        assert!(goes_on("GET / HTTP/1.1\r\n\r\n"));
        assert!(!goes_on("GET / HTTP/1.0\r\n\r\n"));
        assert!(goes_on("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!goes_on("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n"));
        assert!(!goes_on("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n"));
    }

    #[test]
    fn what_is_no_request_is_none() {
        for head in [
            "",
            "GET",
            "GET / HTTP/2.0",
            "GET x HTTP/1.1",
            "GET / HTTP/1.1 x",
            "GET / HTTP/1.1\r\nno-colon\r\n",
        ] {
            assert_eq!(Request::parse(head), None, "{head}");
        }
    }

    #[test]
    fn a_head_without_end_is_given_up() {
        let endless = vec![b'x'; 100_000];
        assert_eq!(read_head(&mut BufReader::new(&endless[..])).unwrap(), None);
        let two = b"GET / HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\n";
        let mut reader = BufReader::new(&two[..]);
        assert!(read_head(&mut reader).unwrap().unwrap().starts_with("GET / "));
        assert!(read_head(&mut reader).unwrap().unwrap().starts_with("GET /2 "));
        assert_eq!(read_head(&mut reader).unwrap(), None);
    }
}
