//! The operator: whoever runs the program's commands on the host.

use std::process::Command;

use serde_json::Value;

use super::{Database, Service, leaks};

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        leaks::assert_none("what a command complains of", &output.stderr);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// What a command printed that did what it should, without a word beside it.
    pub(crate) fn done(self) -> String {
        assert_eq!((self.code, &*self.err), (0, ""), "{self:?}");
        self.out
    }

    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.done()).unwrap()
    }

    /// What a command complained of that failed, without an answer beside it.
    pub(crate) fn failed(self) -> String {
        assert_eq!((self.code, &*self.out), (1, ""), "{self:?}");
        self.err
    }
}

impl Database {
    /// Runs a command on this database.
    pub(crate) fn operate(&self, arguments: &[&str]) -> Ran {
        Ran::of(Service::command().args(arguments).env("DATABASE_URL", &self.url))
    }
}
