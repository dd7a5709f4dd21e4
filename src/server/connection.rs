//! One connection: HTTP/1.1 with a time limit on each thing a client can be slow at.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::http::{App, Peer};

/// How much of a request is held at once. hyper answers 431 when so much has come and the head is not complete; up to as much
/// again may come with the same read. So a head of 16 KB is always taken, and one of more than 32 KB never.
const MAX_BUFFER_BYTES: usize = 16 * 1024;

/// A new connection that is told to end before its first request has come is given this time since it was opened.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From a request's first byte to the end of its head; also how long a new connection may stay silent.
    pub header: Duration,
    /// Between an answer and the next request's first byte.
    pub keep_alive: Duration,
    /// Without any progress in writing.
    pub write: Duration,
}

/// Serves requests until either side ends the connection.
pub(super) async fn serve(stream: TcpStream, timeouts: Timeouts, answering: Answering, stop: CancellationToken) {
    // An answer is written at once; nothing would be gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let opened = Instant::now();
    let activity = Arc::new(Activity::default());
    let io = TokioIo::new(Watched::new(stream, timeouts, Arc::clone(&activity)));
    let service = service_fn(|request| answering.clone().answer(request, activity.enter()));

    let mut connection = pin!(http1::Builder::new().max_buf_size(MAX_BUFFER_BYTES).serve_connection(io, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            // A connection this young is about to be used, most likely by a load balancer, which cannot send a POST again.
            let is_unused = activity.entered() == 0;
            let spared = if is_unused { FIRST_REQUEST_WITHIN.saturating_sub(opened.elapsed()) } else { Duration::ZERO };
            if let Ok(ended) = timeout(spared, connection.as_mut()).await {
                ended
            } else {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = ended {
        // hyper's words may quote nothing of the request, but its cause may: only the kind is said.
        tracing::debug!(timeout = error.is_timeout(), parse = error.is_parse(), "a connection ended early");
    }
}

/// What a connection's requests are answered with.
#[derive(Clone)]
pub(super) struct Answering {
    pub(super) routes: Router,
    pub(super) app: App,
    pub(super) peer: Peer,
}

impl Answering {
    async fn answer(self, request: Request<Incoming>, busy: Busy) -> Result<Response<Body>, Infallible> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.peer);
        let mut response = self.routes.oneshot(request).await?;
        // While load balancers turn away, they shall not keep this connection for later.
        if self.app.readiness.is_draining() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        drop(busy);
        Ok(response)
    }
}

/// Whether a request of a connection is being answered: while one is, the client may be silent.
#[derive(Default)]
struct Activity {
    answering: AtomicU32,
    /// Requests so far.
    entered: AtomicU32,
}

struct Busy(Arc<Activity>);

impl Activity {
    fn enter(self: &Arc<Self>) -> Busy {
        self.answering.fetch_add(1, Ordering::AcqRel);
        self.entered.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(self))
    }

    fn is_busy(&self) -> bool {
        self.answering.load(Ordering::Acquire) > 0
    }

    fn entered(&self) -> u32 {
        self.entered.load(Ordering::Acquire)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream that fails when its client takes too long.
struct Watched<S> {
    stream: S,
    timeouts: Timeouts,
    activity: Arc<Activity>,
    /// Requests that `reading` knows of.
    entered: u32,
    reading: Reading,
    read_alarm: Alarm,
    write_alarm: Alarm,
}

/// What the next byte from the client is waited for, and until when.
#[derive(Clone, Copy)]
enum Reading {
    /// A request's first byte.
    Rest { until: Instant },
    /// The rest of its head.
    Head { until: Instant },
    /// Nothing: it is our turn.
    Answering,
}

impl<S> Watched<S> {
    fn new(stream: S, timeouts: Timeouts, activity: Arc<Activity>) -> Self {
        let reading = Reading::Rest { until: Instant::now() + timeouts.header };
        let (read_alarm, write_alarm) = (Alarm::default(), Alarm::default());
        Self { stream, timeouts, activity, entered: 0, reading, read_alarm, write_alarm }
    }

    fn bytes_came(&mut self) {
        if matches!(self.reading, Reading::Rest { .. }) {
            self.reading = Reading::Head { until: Instant::now() + self.timeouts.header };
        }
    }

    /// Until when the client may be silent now, if there is a limit.
    fn limit(&mut self) -> Option<Instant> {
        // One that was answered between two looks was a request all the same.
        if self.entered != self.activity.entered() {
            self.entered = self.activity.entered();
            self.reading = Reading::Answering;
        }
        if matches!(self.reading, Reading::Answering) && !self.activity.is_busy() {
            self.reading = Reading::Rest { until: Instant::now() + self.timeouts.keep_alive };
        }
        match self.reading {
            Reading::Rest { until } | Reading::Head { until } => Some(until),
            Reading::Answering => None,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if let Poll::Ready(outcome) = Pin::new(&mut this.stream).poll_read(cx, buffer) {
            if buffer.filled().len() > before {
                // A request may have been answered since the last look.
                this.limit();
                this.bytes_came();
            }
            return Poll::Ready(outcome);
        }
        match this.limit() {
            Some(until) => this.read_alarm.poll(until, cx),
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Lets a write that makes no progress fail in the end.
    fn watch_write<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.write_alarm.until = None;
            return outcome;
        }
        let until = *self.write_alarm.until.get_or_insert_with(|| Instant::now() + self.timeouts.write);
        self.write_alarm.poll(until, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch_write(outcome, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch_write(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        if matches!(outcome, Poll::Ready(Ok(())))
            && let Some(until) = this.limit()
            && let Poll::Ready(Err(error)) = this.read_alarm.poll::<()>(until, cx)
        {
            // hyper looked for the next request before this answer was made, and will not look again until some of it comes: the
            // client's rest begins here.
            return Poll::Ready(Err(error));
        }
        this.watch_write(outcome, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// A timer that is moved only when it has to ring earlier, or has rung too early: moving it for each request would cost more
/// than reading the request does.
#[derive(Default)]
struct Alarm {
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Fails from `until` on.
    fn poll<T>(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}
