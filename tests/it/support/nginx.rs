//! nginx as docker-compose.yml runs it, but as a plain process and with addresses of this machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::database::signal;

const CONFIGURATION: &str = include_str!("../../../config/nginx.conf");
const PATIENCE: Duration = Duration::from_secs(30);

/// A loopback address that no other test uses, so that whatever listens there can stop and listen there again.
pub(crate) fn own_address() -> String {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [_, high, low] = [16, 8, 0].map(|bits| (std::process::id() >> bits) & 0xff);
    format!("127.{}.{low}.{}", 100 + high % 100, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The same with a port that is free there.
pub(crate) fn own_socket() -> String {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

pub(crate) struct Nginx {
    child: Child,
    directory: TempDir,
    pub(crate) public: String,
}

impl Nginx {
    /// Starts it in front of two replicas, and waits until it listens.
    pub(crate) fn start(replicas: [&str; 2]) -> Self {
        Self::start_altered(replicas, |configuration| configuration)
    }

    /// The same with something changed in its file.
    pub(crate) fn start_altered(replicas: [&str; 2], alter: impl FnOnce(String) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let public = own_socket();
        let mut configuration = alter(CONFIGURATION.replace("/tmp/", &format!("{}/", directory.path().display())));
        let ours =
            [("server keys-1:8080;", replicas[0]), ("server keys-2:8080;", replicas[1]), ("listen 8080;", &public)];
        for (theirs, address) in ours {
            assert_eq!(configuration.matches(theirs).count(), 1, "nginx.conf says `{theirs}` once");
            let (directive, _) = theirs.split_once(' ').unwrap();
            configuration = configuration.replace(theirs, &format!("{directive} {address};"));
        }
        let file = |name| directory.path().join(name);
        fs::write(file("nginx.conf"), configuration).unwrap();
        let child = Command::new("nginx")
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(file("nginx.conf"))
            .args(["-g", "daemon off;"])
            .stdin(Stdio::null())
            .stdout(File::create(file("access.log")).unwrap())
            .stderr(File::create(file("error.log")).unwrap())
            .spawn()
            .unwrap();
        let mut nginx = Self { child, directory, public };
        nginx.wait_until_it_listens();
        nginx
    }

    fn wait_until_it_listens(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(&self.public).is_err() {
            let errors = || fs::read_to_string(self.directory.path().join("error.log")).unwrap();
            assert!(self.child.try_wait().unwrap().is_none(), "nginx has ended\n{}", errors());
            assert!(Instant::now() < deadline, "nginx does not listen\n{}", errors());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn access_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("access.log")).unwrap()
    }

    /// The line of the access log that ends with this request id. It is written after the answer.
    pub(crate) async fn line_of(&self, request_id: &str) -> String {
        let end = format!(" id={request_id}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.access_log();
            if let Some(line) = log.lines().find(|line| line.ends_with(&end)) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "no line{end}\n{log}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Nginx {
    /// A master that is killed leaves its workers behind, so it is asked.
    fn drop(&mut self) {
        signal("TERM", &[self.child.id()]);
        let _ = self.child.wait();
    }
}
