//! Listening, accepting and closing: the part of HTTP that is about connections.
//!
//! `axum::serve` has no time limits: a client that stays silent, or sends half a request, would hold its connection for ever,
//! and hold up the end of the process.

mod connection;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use prometheus_client::metrics::gauge::Gauge;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Answering;
pub use self::connection::Timeouts;
use crate::http::{App, Peer};

/// How long to wait when the system has no descriptors left. Connections that end meanwhile free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections the kernel holds for us at the most, unless the system allows fewer. Of a burst beyond it, clients
/// believe to be connected of whom we never hear; the usual 128 are soon reached.
const LONGEST_QUEUE: u16 = 4_096;

/// Binds an address, with room for a burst of connections.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of a process that has just ended shall not keep its successor away.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LONGEST_QUEUE.into())
}

/// How many of so many connections the system lets one address have, if a quarter of all descriptors is to be left for everything
/// else: a crowd at the public address must not keep health checks away from the internal one, or the database from us.
pub fn affordable(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    // The lower limit is for programs that cannot count beyond 1,024; whoever may raise it is expected to.
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = raised;
        }
    }
    let Some(descriptors) = limit.current.and_then(|limit| usize::try_from(limit).ok()) else { return wanted };
    let affordable = descriptors / 4 * 3;
    if affordable < wanted {
        tracing::warn!(
            wanted,
            affordable,
            descriptors,
            "fewer connections than server.max_connections: see `ulimit -n`"
        );
    }
    wanted.min(affordable)
}

/// A bound address and what it serves.
pub struct Listener {
    pub socket: TcpListener,
    pub routes: Router,
    pub max_connections: usize,
    pub timeouts: Timeouts,
    pub app: App,
}

/// How a listener is told to end.
#[derive(Clone, Default)]
pub struct Stop {
    /// No new connections; those there are end after the request they are in.
    pub gently: CancellationToken,
    /// Every connection is cut.
    pub at_once: CancellationToken,
    /// The connections that are left.
    pub connections: TaskTracker,
}

impl Listener {
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts until it is told to end. Beyond the cap, connections wait in the kernel's queue.
    pub async fn run(self, stop: Stop) {
        let places = Arc::new(Semaphore::new(self.max_connections));
        loop {
            let accepted = tokio::select! {
                () = stop.gently.cancelled() => break,
                accepted = self.accept(&places) => accepted,
            };
            match accepted {
                Ok((stream, peer, place)) => self.serve(stream, peer, place, &stop),
                Err(error) if is_the_clients(&error) => (),
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Err(error) = self.serve_queue(&places, &stop) {
            tracing::debug!(%error, "the queue of connections ended early");
        }
    }

    /// Accepts what waits in the kernel's queue. To their clients these connections are open and may have been written to, and
    /// closing the socket would reset them.
    fn serve_queue(&self, places: &Arc<Semaphore>, stop: &Stop) -> io::Result<()> {
        // tokio's own accept asks the system only after an event, which may not have been seen yet.
        let socket = std::net::TcpListener::from(self.socket.as_fd().try_clone_to_owned()?);
        for _ in 0..LONGEST_QUEUE {
            let Ok(place) = Arc::clone(places).try_acquire_owned() else { break };
            match socket.accept() {
                Ok((stream, peer)) => {
                    stream.set_nonblocking(true)?;
                    self.serve(TcpStream::from_std(stream)?, peer, place, stop);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_the_clients(&error) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn accept(&self, places: &Arc<Semaphore>) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, peer) = self.socket.accept().await?;
        Ok((stream, peer, place))
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit, stop: &Stop) {
        let connection = self.connection(stream, peer, stop);
        let open = Open::count(self.app.metrics.connections());
        stop.connections.spawn(async move {
            connection.await;
            drop((place, open));
        });
    }

    fn connection(&self, stream: TcpStream, peer: SocketAddr, stop: &Stop) -> impl Future<Output = ()> + use<> {
        let answering = Answering { routes: self.routes.clone(), app: self.app.clone(), peer: Peer(peer.ip()) };
        let serve = connection::serve(stream, self.timeouts, answering, stop.gently.clone());
        let at_once = stop.at_once.clone();
        async move {
            tokio::select! {
                () = at_once.cancelled() => (),
                () = serve => (),
            }
        }
    }
}

/// One connection in the gauge, from its start to its end.
struct Open(Gauge);

impl Open {
    fn count(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A client that was gone before it was accepted is no trouble of ours.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
