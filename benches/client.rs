//! A client with one connection, which it makes anew whenever the last one is gone.

use anyhow::Context;
use tokio::net::TcpStream;

use super::load::{Answer, read_answer};

/// No answer of the API is longer, and there may be thousands of clients.
const BUFFER_BYTES: usize = 32 * 1024;

pub(crate) struct Client {
    address: String,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn new(address: String) -> Self {
        Self { address, stream: None, buffer: vec![0; BUFFER_BYTES] }
    }

    /// One for an answer that may be longer than those of the API.
    pub(crate) fn with_room(address: String, bytes: usize) -> Self {
        Self { address, stream: None, buffer: vec![0; bytes] }
    }

    pub(crate) async fn connect(&mut self) -> anyhow::Result<()> {
        let stream = TcpStream::connect(&self.address).await.with_context(|| self.address.clone())?;
        stream.set_nodelay(true)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends a request and reads its answer. Whoever stops waiting for that has closed the connection thereby.
    pub(crate) async fn exchange(&mut self, request: &[u8], keeps: bool) -> anyhow::Result<Answer<'_>> {
        use tokio::io::AsyncWriteExt as _;

        if self.stream.is_none() {
            self.connect().await?;
        }
        let mut stream = self.stream.take().context("there is no connection")?;
        stream.write_all(request).await?;
        let answer = read_answer(&mut stream, &mut self.buffer).await?;
        if keeps && !answer.closes() {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}
