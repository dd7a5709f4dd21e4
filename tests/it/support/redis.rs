//! A Redis server of the test's own, to be frozen, killed and restarted.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(self.directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(server);
        for _ in 0..600 {
            if self.command(&["ping"]) == "PONG" {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("Redis does not answer");
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
