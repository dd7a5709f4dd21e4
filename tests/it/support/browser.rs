//! A headless Chromium that runs a script on an origin of its own and reports what came of it.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::Html;
use axum::routing::{get, post};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::database::signal;
use super::setting;

/// Chromium needs seconds to start, and many more where everything else is starting too.
const PATIENCE: Duration = Duration::from_secs(120);
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The script is a module; what its default export returns is reported, and what is in the storage afterwards.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>test</title><script type="module">
let report;
try {
  const script = await import('/script.js');
  report = { returned: await script.default?.() };
} catch (error) {
  report = { failed: String(error) };
}
report.stored = { ...localStorage };
await fetch('/report', { method: 'POST', body: JSON.stringify(report) });
</script>"#;

/// Where pages come from: an address on this machine that is not the service's.
pub(crate) struct Site {
    listener: TcpListener,
    pub(crate) origin: String,
}

impl Site {
    pub(crate) async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        Self { listener, origin }
    }

    /// Opens a page with this script and waits for its report: `returned` or `failed`, and `stored`.
    pub(crate) async fn run(self, script: String) -> Value {
        // Several browsers at once would be slower than one after the other.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
        let _turn = ONE_AT_A_TIME.lock().await;

        let (reports, mut report) = mpsc::channel::<String>(1);
        let routes = Router::new()
            .route("/", get(async || Html(PAGE)))
            .route("/script.js", get(async || ([(CONTENT_TYPE, "text/javascript; charset=utf-8")], script)))
            .route("/report", post(async move |text: String| reports.send(text).await.unwrap()));
        let server = tokio::spawn(axum::serve(self.listener, routes).into_future());
        let browser = Chromium::start(&format!("{}/", self.origin));
        let reported = timeout(PATIENCE, report.recv()).await;
        let log = browser.end().await;
        server.abort();
        let text = reported.ok().flatten().unwrap_or_else(|| panic!("the page did not report\n{log}"));
        serde_json::from_str(&text).unwrap()
    }
}

struct Chromium {
    child: Child,
    _profile: TempDir,
    log: JoinHandle<String>,
}

impl Chromium {
    fn start(url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new(setting("TEST_CHROMIUM"))
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--no-proxy-server"])
            .arg(format!("--user-data-dir={}", profile.path().join("profile").display()))
            .arg(url)
            .envs([("HOME", profile.path()), ("TMPDIR", profile.path())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let log = spawn_blocking(move || {
            let mut log = Vec::new();
            let _ = stderr.read_to_end(&mut log);
            String::from_utf8_lossy(&log).into_owned()
        });
        Self { child, _profile: profile, log }
    }

    /// Asks it to end, and says what it wrote.
    async fn end(mut self) -> String {
        signal("TERM", &[self.child.id()]);
        // Its children have the same standard error: at its end none of them is left to write into the profile.
        let log = timeout(END_PATIENCE, &mut self.log).await;
        log.ok().and_then(Result::ok).unwrap_or_else(|| "it did not end".to_owned())
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
