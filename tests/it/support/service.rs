//! The program itself, as a process with real sockets.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Method, Request};
use serde_json::Value;
use tempfile::TempDir;

use super::database::signal;
use super::{Connection, Reply, leaks, request};

const PROGRAM: &str = env!("CARGO_BIN_EXE_momail-api-keys");
/// Long enough for a busy machine; nothing waits for it unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// Everything is logged, so that whatever may be logged is looked at.
fn log_filter() -> &'static str {
    "trace"
}

/// A running replica, killed when it is dropped.
pub(crate) struct Service {
    child: Child,
    directory: TempDir,
    /// `HOST:PORT` of the public and the internal listener; empty until they listen.
    pub(crate) public: String,
    pub(crate) internal: String,
}

impl Service {
    pub(crate) fn program() -> &'static Path {
        Path::new(PROGRAM)
    }

    /// The program with nothing of this process's environment that could change it.
    pub(crate) fn command() -> Command {
        Self::command_of(Self::program())
    }

    /// The same for another build of it.
    fn command_of(program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command
    }

    /// Makes an account as an operator does, and returns the text of its first key.
    pub(crate) fn create_account(database_url: &str, plan: &str) -> String {
        let output = Self::command()
            .args(["accounts", "create", "--name", "Acme", "--plan", plan, "--json"])
            .env("DATABASE_URL", database_url)
            .output()
            .unwrap();
        let account: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        leaks::assert_none("the command's log", &output.stderr);
        let key = account["key"]["apiKey"].as_str().unwrap();
        leaks::remember(key);
        key.to_owned()
    }

    /// Starts a replica on free ports, in an empty folder, and waits until it listens.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_of(Self::program(), settings)
    }

    /// The same of another build.
    pub(crate) fn start_of(program: &Path, settings: &[(&str, &str)]) -> Self {
        let mut service = Self::spawn_as(Self::command_of(program), settings);
        service.wait_until_it_listens();
        service
    }

    /// The same in surroundings that another program makes, which then runs what it is given as its last arguments.
    pub(crate) fn start_within(surroundings: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut command = Self::command_of(Path::new(surroundings[0]));
        command.args(&surroundings[1..]).arg(Self::program());
        let mut service = Self::spawn_as(command, settings);
        service.wait_until_it_listens();
        service
    }

    /// The same under another umask than that of the tests.
    pub(crate) fn start_under(umask: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_within(&["/bin/sh", "-c", &format!("umask {umask} && exec \"$0\"")], settings)
    }

    /// Starts a replica without waiting for anything.
    pub(crate) fn spawn(settings: &[(&str, &str)]) -> Self {
        Self::spawn_as(Self::command(), settings)
    }

    /// The same by a command that becomes the program.
    pub(super) fn spawn_as(mut command: Command, settings: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name| File::create(directory.path().join(name)).unwrap();
        let child = command
            .current_dir(directory.path())
            .env("MOMAIL_SERVER__PUBLIC_ADDR", "127.0.0.1:0")
            .env("MOMAIL_SERVER__INTERNAL_ADDR", "127.0.0.1:0")
            .env("MOMAIL_LOG__FILTER", log_filter())
            .envs(settings.iter().copied())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        Self { child, directory, public: String::new(), internal: String::new() }
    }

    pub(crate) fn wait_until_it_listens(&mut self) {
        let line = self.wait_for_line("listening public=http://");
        let (public, internal) = line.split_once(" internal=http://").unwrap();
        (self.public, self.internal) = (public.to_owned(), internal.to_owned());
    }

    /// The key that the first start on an empty embedded database prints.
    pub(crate) fn first_key(&self) -> String {
        let key = self.wait_for_line("first key: ");
        leaks::remember(&key);
        key
    }

    /// What follows `start` on the first line of standard output that begins with it.
    fn wait_for_line(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.stdout();
            // A line counts when it has ended.
            if let Some(line) = text.split_inclusive('\n').find(|line| line.starts_with(start) && line.ends_with('\n'))
            {
                return line[start.len()..].trim_end().to_owned();
            }
            assert!(Instant::now() < deadline, "no line `{start}…`\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.directory.path().join("stdout")).unwrap()
    }

    /// What it wrote to standard error.
    pub(crate) fn logs(&self) -> String {
        // The thread that writes it has its turn in a moment.
        std::thread::sleep(Duration::from_millis(50));
        fs::read_to_string(self.directory.path().join("stderr")).unwrap()
    }

    /// The folder in which it was started.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Standard output shows one key, in the one line that is made for it.
    fn assert_no_key_is_written(&self) {
        let read = |name| fs::read(self.directory.path().join(name)).unwrap();
        leaks::assert_none("the log", &read("stderr"));
        let stdout = read("stdout");
        for line in stdout.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"first key: ")) {
            leaks::assert_none("standard output", line);
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, &[self.pid()]);
    }

    /// Waits until the process has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and its end.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// SIGKILL: nothing is flushed, nothing is closed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// One request to the public listener, on a connection of its own.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        Connection::open(&self.public).await.unwrap().send(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str, key: &str) -> Reply {
        self.send(request(Method::GET, path, key)).await
    }

    /// The same to the internal listener.
    pub(crate) async fn get_internal(&self, path: &str) -> Reply {
        let mut connection = Connection::open(&self.internal).await.unwrap();
        connection.send(request(Method::GET, path, "")).await.unwrap()
    }

    /// Waits until `/readyz` says what is expected.
    pub(crate) async fn wait_until_ready_is(&self, status: u16) {
        let deadline = Instant::now() + PATIENCE;
        while self.get_internal("/readyz").await.status.as_u16() != status {
            assert!(Instant::now() < deadline, "readyz is never {status}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            self.assert_no_key_is_written();
        }
    }
}
