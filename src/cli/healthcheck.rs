//! One GET to a running service, for containers that have no other client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(3);

/// Where the service of these settings says that it lives. An address that means "all" is reached on the loopback one.
pub(super) fn livez_of(internal: SocketAddr) -> Uri {
    let host = match internal.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let url = format!("http://{}/livez", SocketAddr::new(host, internal.port()));
    url.parse().expect("an address and a path make a URL")
}

pub(super) fn parse_url(text: &str) -> Result<Uri, String> {
    let url = text.parse().ok().filter(|url: &Uri| url.scheme_str() == Some("http") && url.host().is_some());
    url.ok_or_else(|| "must be http://HOST:PORT/PATH".to_owned())
}

/// # Errors
/// Unless the answer is 2xx within three seconds.
pub(super) async fn ask(url: &Uri) -> anyhow::Result<()> {
    let authority = url.authority().context("the URL has no host")?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let asked = timeout(PATIENCE, async {
        let stream = TcpStream::connect(&address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path).header(HOST, authority.as_str()).body(Empty::<Bytes>::new())?;
        anyhow::Ok(sender.send_request(request).await?.status())
    });
    let status =
        asked.await.with_context(|| format!("{address} did not answer in time"))?.with_context(|| url.to_string())?;
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}
