//! A Redis server of the benchmark's own, without persistence.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::bail;
use tempfile::TempDir;
use tokio::time::sleep;

const PAUSE: Duration = Duration::from_millis(50);
const ATTEMPTS: u32 = 100;

/// A server that goes with this value.
pub(crate) struct Redis {
    port: u16,
    server: Child,
    _directory: TempDir,
}

impl Redis {
    /// `None` if no `redis-server` is on the path.
    pub(crate) async fn start() -> anyhow::Result<Option<Self>> {
        let directory = tempfile::Builder::new().prefix("momail-bench-redis.").tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Signals of the terminal are for the benchmark, which then stops the server itself.
        let server = match command.process_group(0).spawn() {
            Ok(server) => server,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let redis = Self { port, server, _directory: directory };
        for _ in 0..ATTEMPTS {
            if redis.answers().unwrap_or(false) {
                return Ok(Some(redis));
            }
            sleep(PAUSE).await;
        }
        bail!("the Redis on port {port} does not answer")
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn answers(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PAUSE))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(answer == *b"+PONG")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
