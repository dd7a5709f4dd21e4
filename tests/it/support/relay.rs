//! A relay before a server, for networks that swallow bytes without a word.

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Passing,
    Swallowing,
}

/// Passes bytes to and fro, or takes connections and bytes and answers nothing.
pub(crate) struct Relay {
    pub(crate) port: u16,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A relay to a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        Self::start(port, Mode::Passing).await
    }

    /// A listener that has never said anything.
    pub(crate) async fn to_nowhere() -> Self {
        Self::start(0, Mode::Swallowing).await
    }

    async fn start(target: u16, mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = watch::Sender::new(mode);
        let modes = mode.clone();
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(relay(client, target, modes.subscribe()));
            }
        });
        Self { port, mode, task }
    }

    /// From now on nothing passes, and nobody is told.
    pub(crate) fn swallow(&self) {
        self.mode.send_replace(Mode::Swallowing);
    }

    /// New connections pass again. Those from before stay dead, as after a router has forgotten them.
    pub(crate) fn pass(&self) {
        self.mode.send_replace(Mode::Passing);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut client: TcpStream, target: u16, mut modes: watch::Receiver<Mode>) {
    if *modes.borrow_and_update() == Mode::Passing {
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = modes.changed() => std::future::pending::<()>().await,
        }
    }
    // Both sockets stay open.
    std::future::pending::<()>().await;
}
