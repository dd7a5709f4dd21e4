//! A socket without manners: it sends whatever bytes a test likes, as slowly as it likes, and reads one answer at a time.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::leaks;

/// Nothing of ours waits so long unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct RawConnection {
    pub(crate) stream: TcpStream,
    unread: Vec<u8>,
}

/// An answer as it stood on the wire.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl RawAnswer {
    /// A header's value, or an empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
    }

    /// The body as JSON, or `Null`.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The code of a refusal, if its body is the envelope and nothing else.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let is_envelope = body["success"] == false && body["error"]["message"].is_string();
        if is_envelope { body["error"]["code"].as_str().unwrap_or_default().to_owned() } else { String::new() }
    }
}

impl RawConnection {
    pub(crate) async fn open(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), unread: Vec::new() }
    }

    /// Opens a connection and sends these bytes on it.
    pub(crate) async fn send(address: &str, bytes: impl AsRef<[u8]>) -> Self {
        let mut connection = Self::open(address).await;
        connection.write(bytes).await;
        connection
    }

    /// A server that has answered already may close while we still write: that is for the reader to find out.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next answer, or `None` once the server has closed.
    pub(crate) async fn answer(&mut self) -> Option<RawAnswer> {
        timeout(PATIENCE, self.read_answer(true)).await.expect("no answer in time")
    }

    /// The next answer's head, where no body follows whatever it announces.
    pub(crate) async fn answer_without_body(&mut self) -> Option<RawAnswer> {
        timeout(PATIENCE, self.read_answer(false)).await.expect("no answer in time")
    }

    /// Every answer until the server closes.
    pub(crate) async fn answers(&mut self) -> Vec<RawAnswer> {
        let mut answers = Vec::new();
        while let Some(answer) = self.answer().await {
            answers.push(answer);
        }
        answers
    }

    /// How long the server took to close, whatever it still said before.
    pub(crate) async fn closed_after(&mut self) -> Duration {
        let started = Instant::now();
        timeout(PATIENCE, async { while self.read_more().await {} }).await.expect("the connection stays open");
        started.elapsed()
    }

    /// Given up in the middle, it can be called again: nothing is taken until the answer is whole.
    async fn read_answer(&mut self, with_body: bool) -> Option<RawAnswer> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more().await {
                assert!(self.unread.is_empty(), "half an answer: {}", String::from_utf8_lossy(&self.unread));
                return None;
            }
        };
        let head = String::from_utf8(self.unread[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = RawAnswer { status, head, body: Vec::new() };
        let length = if with_body { answer.header("content-length").parse().unwrap_or(0) } else { 0 };
        while self.unread.len() < end + length {
            assert!(self.read_more().await, "half a body: {answer:?}");
        }
        answer.body = self.unread.drain(..end + length).skip(end).collect();
        leaks::watch_answer(&answer.body, &answer.json());
        leaks::assert_none("a head", answer.head.as_bytes());
        Some(answer)
    }

    /// A reset is as good as an end.
    async fn read_more(&mut self) -> bool {
        self.stream.read_buf(&mut self.unread).await.is_ok_and(|read| read > 0)
    }
}
