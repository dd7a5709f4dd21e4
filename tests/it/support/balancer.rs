//! HAProxy in front of replicas, as a plain process: it asks each whether it is ready, and keeps connections for whoever comes next.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::own_socket;

const PATIENCE: Duration = Duration::from_secs(30);

/// HAProxy, killed when it is dropped.
pub(crate) struct Balancer {
    child: Child,
    directory: TempDir,
    pub(crate) address: String,
}

impl Balancer {
    /// Starts it, and waits until it listens. A client may be silent for so long.
    pub(crate) async fn start(replicas: &[String], client_timeout: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = own_socket();
        let servers: Vec<_> =
            (1..).zip(replicas).map(|(n, address)| format!("server keys-{n} {address} check")).collect();
        let configuration = format!(
            "global
    maxconn 1000
    log stdout format raw local0
defaults
    mode http
    log global
    log-format \"upstream=%s status=%ST id=%[capture.req.hdr(0)]\"
    timeout client {}ms
    timeout server 60s
    timeout connect 5s
    timeout check 5s
    http-reuse always
frontend web
    bind {address}
    http-request capture req.hdr(X-Request-Id) len 64
    default_backend keys
backend keys
    option httpchk GET /readyz
    default-server inter 100ms rise 1 fall 2
    {}
",
            client_timeout.as_millis(),
            servers.join("\n    ")
        );
        fs::write(directory.path().join("haproxy.cfg"), configuration).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let child = Command::new("haproxy")
            .args(["-db", "-f", "haproxy.cfg"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut balancer = Self { child, directory, address };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&balancer.address).await.is_err() {
            assert!(balancer.child.try_wait().unwrap().is_none(), "it has ended\n{}", balancer.log());
            assert!(Instant::now() < deadline, "it does not listen\n{}", balancer.log());
            sleep(Duration::from_millis(10)).await;
        }
        balancer
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
