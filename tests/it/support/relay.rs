//! A relay before a server, for networks that are slow, swallow bytes without a word, or cut connections off.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What happens to a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Pass,
    /// By chance, one of so many chunks is late by so much, and holds up those behind it.
    Delay(Duration, u32),
    /// What the client says arrives; what the server says does not.
    HalfOpen,
    /// Nothing passes, and nobody is told.
    Swallow,
    Reset,
}

impl Treatment {
    fn is_final(self) -> bool {
        matches!(self, Self::HalfOpen | Self::Swallow | Self::Reset)
    }
}

/// Passes bytes to and fro, for as long as it is not told otherwise.
pub(crate) struct Relay {
    pub(crate) port: u16,
    links: Arc<Mutex<Links>>,
    task: JoinHandle<()>,
}

/// The connections through a relay.
struct Links {
    /// Where those lead that are still to come, and how they are treated.
    target: u16,
    next: Treatment,
    open: Vec<watch::Sender<Treatment>>,
}

impl Links {
    fn add(&mut self) -> (u16, watch::Receiver<Treatment>) {
        self.open.retain(|link| !link.is_closed());
        let link = watch::Sender::new(self.next);
        let treatment = link.subscribe();
        self.open.push(link);
        (self.target, treatment)
    }

    /// What is dead stays dead, as after a router has forgotten it.
    fn treat(&mut self, open: Treatment, next: Treatment) {
        self.next = next;
        for link in &self.open {
            link.send_if_modified(|now| {
                let changes = !now.is_final() || (*now == Treatment::HalfOpen && open.is_final());
                if changes {
                    *now = open;
                }
                changes
            });
        }
    }
}

impl Relay {
    /// A relay to a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        Self::start("127.0.0.1:0", port, Treatment::Pass).await
    }

    /// The same at an address that the test has chosen.
    pub(crate) async fn at(address: &str, port: u16) -> Self {
        Self::start(address, port, Treatment::Pass).await
    }

    /// A listener that has never said anything.
    pub(crate) async fn to_nowhere() -> Self {
        Self::start("127.0.0.1:0", 0, Treatment::Swallow).await
    }

    async fn start(address: &str, target: u16, next: Treatment) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let links = Arc::new(Mutex::new(Links { target, next, open: Vec::new() }));
        let accepting = Arc::clone(&links);
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (target, treatment) = lock(&accepting).add();
                tokio::spawn(relay(client, target, treatment));
            }
        });
        Self { port, links, task }
    }

    /// New connections pass again, and so do those that were only slow. The dead ones stay dead.
    pub(crate) fn pass(&self) {
        self.treat(Treatment::Pass, Treatment::Pass);
    }

    /// Each way, one of so many chunks takes this much longer; with 1, each does.
    pub(crate) fn delay(&self, by: Duration, one_in: u32) {
        self.treat(Treatment::Delay(by, one_in), Treatment::Delay(by, one_in));
    }

    /// From now on nothing passes, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.treat(Treatment::Swallow, Treatment::Swallow);
    }

    /// Connections that are open still lead to the server and not back from it. New ones pass.
    pub(crate) fn half_open(&self) {
        self.treat(Treatment::HalfOpen, Treatment::Pass);
    }

    /// Connections are reset: those that are open at once, and new ones as they come.
    pub(crate) fn reset(&self) {
        self.treat(Treatment::Reset, Treatment::Reset);
    }

    /// New connections lead to another server. Those that are open stay where they are.
    pub(crate) fn lead_to(&self, port: u16) {
        lock(&self.links).target = port;
    }

    /// Connections that are open are reset. New ones pass.
    pub(crate) fn cut(&self) {
        self.treat(Treatment::Reset, Treatment::Pass);
    }

    fn treat(&self, open: Treatment, next: Treatment) {
        lock(&self.links).treat(open, next);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(links: &Mutex<Links>) -> std::sync::MutexGuard<'_, Links> {
    links.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn relay(mut client: TcpStream, target: u16, mut treatment: watch::Receiver<Treatment>) {
    let now = *treatment.borrow();
    if now == Treatment::Reset {
        return drop(client.set_zero_linger());
    }
    // A connection that is swallowed from its beginning must not cost the server one.
    if now == Treatment::Swallow {
        return std::future::pending().await;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    // Small chunks must not wait for each other.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let fate = {
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let (there, back) = (treatment.clone(), treatment.clone());
        let both = async {
            tokio::try_join!(
                pump(&mut from_client, &mut to_server, there, |_| false),
                pump(&mut from_server, &mut to_client, back, |now| now == Treatment::HalfOpen),
            )
        };
        tokio::select! {
            _ = both => return,
            fate = treatment.wait_for(|now| matches!(now, Treatment::Swallow | Treatment::Reset)) => fate.map(|fate| *fate),
        }
    };
    match fate {
        Ok(Treatment::Reset) => drop((client.set_zero_linger(), server.set_zero_linger())),
        // Both sockets stay open.
        _ => std::future::pending().await,
    }
}

/// Passes one direction on, until its end or for as long as it is not cut.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    treatment: watch::Receiver<Treatment>,
    is_cut: impl Fn(Treatment) -> bool,
) -> io::Result<()> {
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let length = from.read(&mut chunk).await?;
        let now = *treatment.borrow();
        if is_cut(now) {
            return std::future::pending().await;
        }
        if let Treatment::Delay(by, one_in) = now
            && rand::random_ratio(1, one_in)
        {
            sleep(by).await;
        }
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&chunk[..length]).await?;
    }
}
