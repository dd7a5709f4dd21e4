//! A Redis server of the test's own, to be frozen, killed and restarted.

use std::fs;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::time::sleep;

use super::database::signal;

pub(crate) struct PrivateRedis {
    directory: TempDir,
    pub(crate) port: u16,
    server: Option<Child>,
}

impl PrivateRedis {
    pub(crate) async fn start() -> Self {
        let mut redis = Self::absent();
        redis.run().await;
        redis
    }

    /// A port on which nobody listens before [`PrivateRedis::run`].
    pub(crate) fn absent() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { directory: tempfile::tempdir().unwrap(), port, server: None }
    }

    /// Starts an empty server and waits until it answers.
    pub(crate) async fn run(&mut self) {
        // What a slow start was given to read is not to be read again.
        let _ = fs::remove_file(self.directory.path().join("dump.rdb"));
        self.spawn(&[]);
        for _ in 0..600 {
            if self.command(&["ping"]) == "PONG" {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("Redis does not answer");
    }

    fn spawn(&mut self, more: &[&str]) {
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(self.directory.path())
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(server);
    }

    /// Starts the server again, which takes a minute to read its data and answers `LOADING` meanwhile.
    pub(crate) fn restart_slowly(&mut self) {
        let fill = "for n = 1, 600 do redis.call('set', 'filler' .. n, string.rep(n, 1000)) end";
        self.command(&["eval", fill, "0"]);
        assert_eq!(self.command(&["save"]), "OK");
        self.stop();
        // In microseconds, for each key; and after so many bytes it looks whether somebody asks.
        self.spawn(&["--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"]);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.command(&["ping"]).starts_with("LOADING") {
            assert!(Instant::now() < deadline, "Redis does not load");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    pub(crate) fn freeze(&self) {
        signal("STOP", &[self.server.as_ref().unwrap().id()]);
    }

    pub(crate) fn thaw(&self) {
        signal("CONT", &[self.server.as_ref().unwrap().id()]);
    }

    /// What the server answers to an operator's command.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.stop();
    }
}
