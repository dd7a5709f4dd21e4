//! A real gateway with the configuration that is shipped for it, and what stands on either side of it.

use std::fs::{self, File};
use std::net::TcpListener as PortFinder;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::{Connection, Reply};

/// Long enough for a busy machine; nothing waits for it unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const CONFIGURATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/gateways");

/// The addresses that the shipped configurations name.
const KEYS: &str = "127.0.0.1:9090";
const APPLICATION: &str = "127.0.0.1:3000";
const GATEWAY_PORT: &str = "8000";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Caddy,
    Haproxy,
}

/// A running gateway, killed when it is dropped.
pub(crate) struct Gateway {
    child: Child,
    directory: TempDir,
    pub(crate) address: String,
}

impl Gateway {
    /// Puts a gateway between an application and whoever says which keys are good.
    pub(crate) async fn start(kind: Kind, keys: &str, application: &str) -> Self {
        Self::start_altered(kind, keys, application, |text| text).await
    }

    /// The same with something changed in its files.
    pub(crate) async fn start_altered(
        kind: Kind,
        keys: &str,
        application: &str,
        alter: impl Fn(String) -> String,
    ) -> Self {
        const ATTEMPTS: usize = 5;
        for _ in 0..ATTEMPTS {
            // A port that was free a moment ago can be taken by now, hence the attempts.
            let port = PortFinder::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let adapt = |text: String| {
                let text = alter(text).replace(GATEWAY_PORT, &port.to_string()).replace(KEYS, keys);
                text.replace(APPLICATION, application)
            };
            let mut gateway = Self::spawn(kind, port, adapt);
            if gateway.listens().await {
                return gateway;
            }
        }
        panic!("{kind:?} does not start");
    }

    fn spawn(kind: Kind, port: u16, adapt: impl Fn(String) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = |file: &str| {
            let text = fs::read_to_string(Path::new(CONFIGURATIONS).join(file)).unwrap();
            let named = [KEYS, APPLICATION, GATEWAY_PORT].iter().filter(|old| text.contains(**old)).count();
            assert!(named == 3 || named == 0, "{file} names other addresses than the tests replace");
            fs::write(directory.path().join(file), adapt(text)).unwrap();
        };
        let mut command = match kind {
            Kind::Nginx => {
                place("nginx.conf");
                fs::write(directory.path().join("main.conf"), nginx_around("nginx.conf")).unwrap();
                let mut command = Command::new("nginx");
                command.args(["-p", directory.path().to_str().unwrap(), "-c", "main.conf", "-e", "stderr"]);
                command
            }
            Kind::Caddy => {
                place("Caddyfile");
                let mut command = Command::new("caddy");
                command.args(["run", "--config", "Caddyfile", "--adapter", "caddyfile"]);
                command
            }
            Kind::Haproxy => {
                place("haproxy.cfg");
                place("haproxy-auth.lua");
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f", "haproxy.cfg"]);
                command
            }
        };
        let log = File::create(directory.path().join("log")).unwrap();
        command.current_dir(directory.path()).env("HOME", directory.path()).stdin(Stdio::null());
        command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{kind:?} cannot be run: {error}"));
        Self { child, directory, address: format!("127.0.0.1:{port}") }
    }

    /// Waits until it takes connections; `false` if it ended instead.
    async fn listens(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&self.address).await.is_err() {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "it never listens\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// One request, on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let mut connection = Connection::open(&self.address).await.unwrap();
        tokio::time::timeout(PATIENCE, connection.send(request)).await.expect("it never answers").unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shipped file is for the inside of an http block. One process, so that killing it leaves nobody behind.
fn nginx_around(file: &str) -> String {
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|path| format!("{path}_temp_path {path};"));
    format!(
        "daemon off; master_process off; pid nginx.pid; error_log stderr warn; events {{ worker_connections 256; }}\n\
         http {{ access_log off; {} include {file}; }}",
        paths.join(" ")
    )
}

/// A request as it reached an application.
pub(crate) struct Seen {
    pub(crate) head: Parts,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// A header's text, or an empty one.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Answers whatever comes with one answer, and remembers what came.
pub(crate) struct Upstream {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Upstream {
    pub(crate) async fn start(status: u16, text: &'static str) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&seen);
        let answer = async move |request: Request<Body>| {
            let (head, body) = request.into_parts();
            let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
            remembered.lock().unwrap().push(Seen { head, body });
            Response::builder().status(status).body(Body::from(text)).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
        Self { address, seen }
    }

    /// What has come since the last time somebody asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// Passes connections on and counts them.
pub(crate) struct Passage {
    pub(crate) address: String,
    accepted: Arc<AtomicUsize>,
}

impl Passage {
    pub(crate) async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (target, accepted) = (target.to_owned(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let mut to = TcpStream::connect(&target).await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut from, &mut to).await });
            }
        });
        Self { address, accepted }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}
