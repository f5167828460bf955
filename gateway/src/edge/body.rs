//! Bodies on their way through, a frame at a time: nothing is collected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::headers;
use super::places::Place;
use super::rest::Busy;
use super::turn::Serving;
use super::upstream::Checkout;

/// Why a request's body did not reach its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// Longer than the service allows.
    #[error("the body is longer than this service takes")]
    TooLong,
    /// The client paused for too long.
    #[error("the body pauses for too long")]
    Idle,
    /// The client broke off, or its framing is wrong.
    #[error("the body broke off")]
    Broken,
}

/// Tells who waits for the answer why the body was cut.
#[derive(Debug, Clone, Default)]
pub struct Fate(Arc<AtomicU8>);

impl Fate {
    fn set(&self, cut: Cut) -> Cut {
        let code = match cut {
            Cut::TooLong => 1,
            Cut::Idle => 2,
            Cut::Broken => 3,
        };
        self.0.store(code, Ordering::Relaxed);
        cut
    }

    /// Why it was cut; none when it was not.
    pub fn cut(&self) -> Option<Cut> {
        match self.0.load(Ordering::Relaxed) {
            1 => Some(Cut::TooLong),
            2 => Some(Cut::Idle),
            3 => Some(Cut::Broken),
            _ => None,
        }
    }
}

/// A request's body towards the machine.
#[derive(Debug)]
pub struct Upload(Option<Box<Uploading>>);

#[derive(Debug)]
struct Uploading {
    body: Incoming,
    /// Bytes that may still come.
    left: u64,
    idle: Duration,
    pause: Pin<Box<Sleep>>,
    /// The timer runs: the last look found nothing.
    paused: bool,
    fate: Fate,
}

impl Upload {
    /// Nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// What a client sends, at most `most` bytes of it, with pauses of at most `idle`.
    pub fn new(body: Incoming, most: u64, idle: Duration, fate: Fate) -> Self {
        if body.is_end_stream() {
            return Self(None);
        }
        let pause = Box::pin(sleep(idle));
        Self(Some(Box::new(Uploading { body, left: most, idle, pause, paused: false, fate })))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let Some(this) = self.0.as_deref_mut() else { return Poll::Ready(None) };
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            if !this.paused {
                this.paused = true;
                this.pause.as_mut().reset(Instant::now() + this.idle);
            }
            ready!(this.pause.as_mut().poll(cx));
            return Poll::Ready(Some(Err(this.fate.set(Cut::Idle))));
        };
        this.paused = false;
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(Err(_broken)) => return Poll::Ready(Some(Err(this.fate.set(Cut::Broken)))),
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref() {
            let length = data.remaining() as u64;
            match this.left.checked_sub(length) {
                Some(left) => this.left = left,
                None => return Poll::Ready(Some(Err(this.fate.set(Cut::TooLong)))),
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        Poll::Ready(Some(Ok(without_false_trailers(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_deref().is_none_or(|this| this.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_deref().map_or_else(|| SizeHint::with_exact(0), |this| this.body.size_hint())
    }
}

fn without_false_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            headers::strip_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(data) => data,
    }
}

/// An answer's body towards the client.
#[derive(Debug)]
pub struct Answer {
    kind: Kind,
    /// Over HTTP/2: whether the client reads.
    busy: Option<Busy>,
    /// Over HTTP/1: until when the connection is not at rest.
    _serving: Option<Serving>,
}

enum Kind {
    /// The edge's own words.
    Own(Option<Bytes>),
    /// The machine's.
    Machine(Box<Download>),
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Own(_) => "Own",
            Self::Machine(_) => "Machine",
        })
    }
}

struct Download {
    body: Incoming,
    /// The connection that it comes in; it makes progress only as it is looked at. None when that has a task of its own.
    from: Option<Checkout>,
    _place: Place,
}

impl Answer {
    /// The edge's own words.
    pub fn own(bytes: Bytes) -> Self {
        Self { kind: Kind::Own((!bytes.is_empty()).then_some(bytes)), busy: None, _serving: None }
    }

    /// The machine's.
    pub fn machines(body: Incoming, from: Option<Checkout>, place: Place) -> Self {
        let download = Box::new(Download { body, from, _place: place });
        Self { kind: Kind::Machine(download), busy: None, _serving: None }
    }

    /// The same, with an eye on the client.
    pub fn watched(self, busy: Busy) -> Self {
        Self { busy: Some(busy), ..self }
    }

    /// The same, which keeps its connection from rest.
    pub fn within(self, serving: Serving) -> Self {
        Self { _serving: Some(serving), ..self }
    }
}

impl Download {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        // What has arrived first; then the connection brings more, or learns that more is wanted.
        if let Poll::Ready(frame) = self.body.frame_now(cx) {
            return Poll::Ready(frame);
        }
        if let Some(from) = &mut self.from {
            from.drive(cx);
            return self.body.frame_now(cx);
        }
        Poll::Pending
    }
}

trait FrameNow {
    fn frame_now(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;
}

impl FrameNow for Incoming {
    fn frame_now(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.frame()).poll(cx)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(from) = self.from.take().filter(|_| self.body.is_end_stream()) {
            from.give_back();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.kind {
            Kind::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Machine(download) => {
                download.poll_frame(cx).map(|frame| frame.map(|frame| frame.map(without_false_trailers)))
            }
        };
        match &this.busy {
            Some(busy) if frame.is_ready() => busy.gave(),
            Some(busy) => busy.asked(),
            None => (),
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(bytes) => bytes.is_none(),
            Kind::Machine(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Machine(download) => download.body.size_hint(),
        }
    }
}
