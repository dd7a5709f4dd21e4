//! Which address a request comes from, when proxies of ours stand before us.

use std::net::{IpAddr, Ipv4Addr};

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use ipnet::IpNet;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address at the other end of the connection. The listener puts it on each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// The client's address: the right-most in `X-Forwarded-For` that is none of our proxies', or the peer if that is not one.
///
/// What stands further left was written by the client, which may write what it likes.
pub(super) fn client_address(head: &Parts, trusted: &[IpNet]) -> IpAddr {
    // Without a listener there is no network, and so no peer to limit.
    let peer = head.extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0.to_canonical());
    forwarded_for(&head.headers, peer, trusted)
}

pub(super) fn forwarded_for(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let is_ours = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    if !is_ours(&peer) {
        return peer;
    }
    let lines = headers.get_all(X_FORWARDED_FOR).iter().rev();
    for entry in lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')) {
        match parse(entry) {
            Some(address) if is_ours(&address) => (),
            Some(address) => return address,
            None => return peer,
        }
    }
    peer
}

/// An address, with a port or without: some proxies add one.
fn parse(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<std::net::SocketAddr>().map(|socket| socket.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.ok().or_else(bracketed).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(peer: &str, lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, line.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        forwarded_for(&headers, peer.parse().unwrap(), &trusted).to_string()
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        let table: [(&str, &[&str], &str); 10] = [
            ("192.0.2.1", &["203.0.113.5"], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.5"], "203.0.113.5"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.5, 10.0.0.2"], "203.0.113.5"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.5", "10.0.0.2"], "203.0.113.5"),
            ("10.0.0.1", &["203.0.113.5, junk"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.1"),
            ("fd00::1", &["2001:db8::5"], "2001:db8::5"),
            ("10.0.0.1", &["[2001:db8::5]:4711"], "2001:db8::5"),
            ("10.0.0.1", &["::ffff:203.0.113.5"], "203.0.113.5"),
        ];
        for (peer, lines, expected) in table {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_the_client_writes_further_left_changes_nothing(forged in "[ -~]{0,60}") {
            prop_assert_eq!(client("10.0.0.1", &[&forged, "203.0.113.5"]), "203.0.113.5");
            prop_assert_eq!(client("192.0.2.1", &[&forged]), "192.0.2.1");
        }
    }
}
