//! A disk that runs full, for a database in SQLite.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::Service;
use super::figures::UNLIMITED;

/// Large enough for a new database and some keys.
const SIZE: &str = "size=3m";

pub(crate) struct Disk {
    directory: TempDir,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A small file system that only the service sees.
    Small,
    /// The service may not make its files any larger. Writing fails with another error than on a full disk.
    Limited,
}

impl Disk {
    /// A real one where this user may mount it, which not every machine allows; else one of the other kind.
    pub(crate) fn small() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = ["-rm", "mount", "-t", "tmpfs", "none"];
        let tried = Command::new("unshare").args(mount).arg(directory.path()).stderr(Stdio::null()).status();
        let kind = if tried.is_ok_and(|status| status.success()) { Kind::Small } else { Kind::Limited };
        Self { directory, kind }
    }

    /// One whose every write fails that would make a file larger.
    pub(crate) fn limited() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), kind: Kind::Limited }
    }

    /// Starts a service whose database is on this disk.
    pub(crate) fn start(&self) -> Service {
        let script = match self.kind {
            Kind::Small => format!("mount -t tmpfs -o {SIZE} none \"$1\" && exec \"$0\""),
            // Else the signal would end the process.
            Kind::Limited => "trap '' XFSZ && exec \"$0\"".to_owned(),
        };
        let mut command = Command::new(if self.kind == Kind::Small { "unshare" } else { "env" });
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        if self.kind == Kind::Small {
            command.arg("-rm");
        }
        command.args(["sh", "-c", &script]).arg(Service::program()).arg(self.directory.path());
        let url = format!("sqlite://{}", self.file().display());
        let others =
            [("DATABASE_URL", url.as_str()), ("MOMAIL_PLANS__PRO__MAX_KEYS", "100000"), ("MOMAIL_LOG__FILTER", "warn")];
        // The log as well must stay below the limit.
        let settings = [&UNLIMITED[..], &others];
        let mut service = Service::spawn_as(command, &settings.concat());
        service.wait_until_it_listens();
        service
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("momail.db")
    }

    /// What SQLite says of a write that fails here.
    pub(crate) fn complaint(&self) -> &'static str {
        if self.kind == Kind::Small { "database or disk is full" } else { "disk I/O error" }
    }

    /// Takes all the room there is.
    pub(crate) fn fill(&self, service: &Service) {
        match self.kind {
            Kind::Small => {
                let mut ballast = File::create(self.ballast(service)).unwrap();
                while ballast.write_all(&[1; 4096]).is_ok() {}
            }
            Kind::Limited => {
                let journal = fs::metadata(format!("{}-wal", self.file().display())).unwrap();
                limit_files(service, &journal.len().to_string());
            }
        }
    }

    /// Gives the room back.
    pub(crate) fn free(&self, service: &Service) {
        match self.kind {
            Kind::Small => fs::remove_file(self.ballast(service)).unwrap(),
            Kind::Limited => limit_files(service, "unlimited"),
        }
    }

    fn ballast(&self, service: &Service) -> PathBuf {
        let root = format!("/proc/{}/root", service.pid());
        Path::new(&root).join(self.directory.path().strip_prefix("/").unwrap()).join("ballast")
    }

    /// What SQLite's own shell finds wrong with the database while the service uses it: `ok`.
    pub(crate) fn check(&self, service: &Service) -> String {
        let pid = service.pid().to_string();
        let mut command = Command::new(if self.kind == Kind::Small { "nsenter" } else { "env" });
        if self.kind == Kind::Small {
            command.args(["--preserve-credentials", "--user", "--mount", "--target", &pid]);
        }
        let output = command.arg("sqlite3").arg(self.file()).arg("pragma integrity_check").output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap().trim().to_owned()
    }
}

/// How large its files may become, until it is told otherwise.
fn limit_files(service: &Service, bytes: &str) {
    let pid = service.pid().to_string();
    let limit = format!("--fsize={bytes}:");
    assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
}
