//! What the README tells the operator to type, typed word for word.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Database, Service, setting};

const README: &str = include_str!("../../../README.md");

/// A section of the README, without those below it.
pub(crate) struct Section {
    text: &'static str,
}

impl Section {
    pub(crate) fn named(heading: &str) -> Self {
        let (_, text) = README.split_once(&format!("\n### {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
        Self { text: text.split("\n##").next().unwrap() }
    }

    /// The blocks of commands, in their order.
    pub(crate) fn blocks<const N: usize>(&self) -> [&'static str; N] {
        let blocks: Vec<_> =
            self.text.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap()).collect();
        blocks.try_into().unwrap_or_else(|blocks| panic!("other blocks than expected: {blocks:#?}"))
    }

    /// The first command within the text that begins so.
    pub(crate) fn command(&self, start: &str) -> &'static str {
        let (_, command) = self.text.split_once(&format!("`{start}")).unwrap();
        let length = start.len() + command.find('`').unwrap();
        let from = self.text.len() - command.len() - start.len();
        &self.text[from..from + length]
    }
}

/// Types commands into a shell in a folder, as an operator of this database; what they print, and whether the last succeeded.
pub(crate) fn type_in(folder: &Path, database: &Database, commands: &str) -> (String, bool) {
    let program = Service::program().parent().unwrap();
    let path = format!("{}:{}:/usr/bin:/bin", program.display(), setting("TEST_POSTGRES_BIN"));
    let output = Command::new("sh")
        .args(["-c", commands])
        .current_dir(folder)
        .env_clear()
        .env("PATH", path)
        .env("DATABASE_URL", &database.url)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (printed, output.status.success())
}

/// The same for commands that must succeed.
pub(crate) fn type_well(folder: &Path, database: &Database, commands: &str) -> String {
    let (printed, succeeded) = type_in(folder, database, commands);
    assert!(succeeded, "{commands}\n{printed}");
    printed
}
