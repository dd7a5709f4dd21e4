//! The file of an embedded database, and whether it is still where it was.

use std::fs::{Metadata, OpenOptions, metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Result, StoreError};

/// What tells a file from every other that may be put in its place. A number may be given again, but not at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    number: u64,
    made_at: Option<SystemTime>,
}

impl Identity {
    fn of(file: &Metadata) -> Self {
        Self { device: file.dev(), number: file.ino(), made_at: file.created().ok() }
    }
}

/// SQLite goes on with a file that nobody can find any more: it reads what nobody sees and acknowledges what will be gone after the
/// next start. So the file is looked for before and after each piece of work.
#[derive(Clone)]
pub(super) struct OwnFile {
    path: PathBuf,
    identity: Identity,
}

impl OwnFile {
    /// Makes the file if it is missing. SQLite gives its journal files the same rights, so it is made with the right ones.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => (),
        }
        Ok(Self { path: path.to_owned(), identity: Identity::of(&metadata(path)?) })
    }

    pub(super) fn check(&self) -> Result<()> {
        let gone = match metadata(&self.path) {
            Ok(file) if Identity::of(&file) == self.identity => return Ok(()),
            Ok(_) => "its file was replaced while it was in use; stop the service before you restore".to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "its file was removed while it was in use".to_owned()
            }
            Err(error) => format!("its file cannot be looked at: {error}"),
        };
        Err(StoreError::Unavailable(gone))
    }
}
