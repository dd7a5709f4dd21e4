//! Requests and what comes back, in memory or over a socket.

use std::net::IpAddr;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::leaks;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
    /// The body as JSON, or `Null`.
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) async fn read<B>(response: axum::http::Response<B>) -> Self
    where
        B: hyper::body::Body<Error: std::fmt::Debug>,
    {
        Self::try_read(response).await.unwrap()
    }

    /// The same, where the other side may be cut off in the middle of its answer.
    async fn try_read<B: hyper::body::Body>(response: axum::http::Response<B>) -> Result<Self, B::Error> {
        let (head, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes().to_vec();
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        leaks::watch_answer(&bytes, &body);
        leaks::assert_none("a header", format!("{:?}", head.headers).as_bytes());
        Ok(Self { status: head.status, headers: head.headers, bytes, body })
    }

    /// A header's text, or an empty one.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The code of a refusal.
    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

/// A request without a body. An empty key is none.
pub(crate) fn request(method: Method, path: &str, key: &str) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header("host", "keys.test");
    if !key.is_empty() {
        request = request.header("x-api-key", key);
    }
    request.body(Body::empty()).unwrap()
}

/// A request with a JSON body.
pub(crate) fn json_request(method: Method, path: &str, key: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = request(method, path, key);
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    *request.body_mut() = body.into();
    request
}

/// A kept connection to a real socket.
pub(crate) struct Connection(SendRequest<Body>);

impl Connection {
    pub(crate) async fn open(address: &str) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(address).await?).await
    }

    /// From another address of the loopback network.
    pub(crate) async fn open_from(source: IpAddr, address: &str) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        Self::over(socket.connect(address.parse().unwrap()).await?).await
    }

    async fn over(stream: TcpStream) -> std::io::Result<Self> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Reply, hyper::Error> {
        self.0.ready().await?;
        Reply::try_read(self.0.send_request(request).await?).await
    }
}

/// A client that keeps its connection for as long as the server does, as every good one.
pub(crate) struct KeptClient {
    address: String,
    connection: Option<Connection>,
    /// How many were answered.
    pub(crate) requests: usize,
}

impl KeptClient {
    pub(crate) fn new(address: String) -> Self {
        Self { address, connection: None, requests: 0 }
    }

    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Reply, hyper::Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.address).await.unwrap(),
        };
        let reply = connection.send(request).await?;
        if reply.header("connection") != "close" {
            self.connection = Some(connection);
        }
        self.requests += 1;
        Ok(reply)
    }
}

/// Writes bytes to a socket and reads until the other side closes.
pub(crate) async fn raw_exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}
