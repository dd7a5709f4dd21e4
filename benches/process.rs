//! The measured processes: how they are started and ended, and what the kernel says of them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Nothing waits this long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);
const PUBLIC: &str = "listening public=http://";
const INTERNAL: &str = " internal=http://";
/// Linux counts the CPU time of a process in hundredths of a second, whatever its own timer does.
const TICK: Duration = Duration::from_millis(10);

/// A running process, killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    /// `HOST:PORT` of what is measured.
    pub(crate) public: String,
    /// The same of what is for gateways; empty if there is no such thing.
    pub(crate) internal: String,
}

impl Process {
    /// This program again, as the bare programs.
    pub(crate) fn baseline(directory: &Path, arguments: &[String]) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // It ends when its standard input does, and so never outlives this process.
        Self::start(command.arg("baseline").args(arguments).stdin(Stdio::piped()), directory)
    }

    /// Starts a program in a new folder, where its output goes, and waits until it says where it listens.
    pub(crate) fn start(command: &mut Command, directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir(directory)?;
        let (stdout, stderr) = (directory.join("stdout"), directory.join("stderr"));
        let child = command.current_dir(directory).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let child = child.spawn().with_context(|| format!("{} cannot be started", command.get_program().display()))?;
        let mut process = Self { child, public: String::new(), internal: String::new() };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&stdout)?;
            // A line counts when it has ended.
            let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(addresses) = lines.find_map(|line| line.strip_prefix(PUBLIC)) {
                let (public, internal) = addresses.trim().split_once(INTERNAL).unwrap_or((addresses.trim(), ""));
                public.clone_into(&mut process.public);
                internal.clone_into(&mut process.internal);
                return Ok(process);
            }
            if process.child.try_wait()?.is_some() || Instant::now() > deadline {
                bail!("a measured process does not start:\n{}", fs::read_to_string(&stderr)?);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Halts the process where it stands, or lets it go on: `STOP` or `CONT`.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        let done = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status()?;
        if !done.success() {
            bail!("a measured process cannot be sent SIG{name}");
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that a process has used until now, in its own code and in the kernel's.
pub(crate) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let [user, system, ..] = times_of(pid)?;
    Ok(TICK * (user + system))
}

/// The same of a process and its children, those that have ended included.
pub(crate) fn cpu_of_family(pid: u32) -> anyhow::Result<Duration> {
    let mut total = TICK * times_of(pid)?.iter().sum::<u32>();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace() {
        // One that ends at this moment is among the ended ones at the next look.
        total += cpu_of(child.parse()?).unwrap_or_default();
    }
    Ok(total)
}

/// User and system time of a process, and those of its ended children, in ticks.
fn times_of(pid: u32) -> anyhow::Result<[u32; 4]> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("a measured process has ended")?;
    // The second field is the program's name in brackets, which may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let times: Vec<u32> = fields.split_whitespace().skip(11).take(4).filter_map(|field| field.parse().ok()).collect();
    times.try_into().ok().context("/proc/PID/stat has no times")
}

/// Resident memory in bytes.
pub(crate) fn memory_of(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("a measured process has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("/proc/PID/status has no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// How many files, sockets among them, a process has open.
pub(crate) fn descriptors_of(pid: u32) -> anyhow::Result<usize> {
    entries(&format!("/proc/{pid}/fd"))
}

pub(crate) fn threads_of(pid: u32) -> anyhow::Result<usize> {
    entries(&format!("/proc/{pid}/task"))
}

fn entries(folder: &str) -> anyhow::Result<usize> {
    Ok(fs::read_dir(folder).context("a measured process has ended")?.count())
}

/// How many files this process, and those that it starts, may have open.
pub(crate) fn descriptor_limit() -> anyhow::Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next()).context("/proc/self/limits has no open files")?;
    Ok(soft.parse().unwrap_or(usize::MAX))
}
