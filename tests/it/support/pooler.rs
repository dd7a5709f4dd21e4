//! PgBouncer in transaction mode, as it comes.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::database::{as_its_user, give_to_postgres};

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Pooler {
    pub(crate) port: u16,
    child: Child,
    _directory: TempDir,
}

impl Pooler {
    /// In front of a server on this port of this machine.
    pub(crate) fn to(server: u16) -> Self {
        let directory = tempfile::Builder::new().prefix("momail-pooler.").tempdir_in("/tmp").unwrap();
        give_to_postgres(directory.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = directory.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={server} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = any\npool_mode = transaction\nunix_socket_dir =\n"
        );
        fs::write(&configuration, text).unwrap();
        let mut command = Command::new("pgbouncer");
        let child = as_its_user(&mut command).arg(configuration).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let pooler = Self { port, child: child.unwrap(), _directory: directory };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "PgBouncer does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
