//! Requests whose end is in doubt, as data: what each says of its length, and what may come of it.

/// The body of the first request, in one piece and in chunks. `{name}` is the key that it would make.
pub(crate) const BODY: &str = r#"{"name":"{name}"}"#;
const CHUNKED: &str = "{chunk}\r\n{body}\r\n0\r\n\r\n";
pub(crate) const POST: &str = "POST /v1/api-keys HTTP/1.1";
const IN_CHUNKS: &str = "Transfer-Encoding: chunked";

/// A request, with another behind it or, where the text says `{second}`, inside it. Either would make a key.
pub(crate) struct Case {
    pub(crate) line: &'static str,
    pub(crate) framing: &'static str,
    pub(crate) body: &'static str,
    /// The service's own answers.
    pub(crate) alone: &'static [u16],
    /// Whether a front may read it as requests after all, and pass them on as it has read them.
    pub(crate) may_be_passed_on: bool,
}

/// Framing that nobody may act on.
const fn refused(framing: &'static str, body: &'static str) -> Case {
    Case { line: POST, framing, body, alone: &[400], may_be_passed_on: false }
}

/// Framing that has one meaning, or to which a front may give one.
const fn read(framing: &'static str, body: &'static str, alone: &'static [u16]) -> Case {
    Case { line: POST, framing, body, alone, may_be_passed_on: true }
}

/// The same on another request line.
const fn line(line: &'static str, framing: &'static str, body: &'static str, alone: &'static [u16]) -> Case {
    Case { line, framing, body, alone, may_be_passed_on: true }
}

const BOTH: &[u16] = &[201, 201];
const FIRST: &[u16] = &[201];
const NEITHER: &[u16] = &[400];

pub(crate) const LENGTHS: [Case; 22] = [
    read("Content-Length: {length}", BODY, BOTH),
    read("content-length:{length}", BODY, BOTH),
    read("Content-Length: 00{length}", BODY, BOTH),
    read("Content-Length: {length}\r\nContent-Length: {length}", BODY, BOTH),
    read("Content-Length: {length}, {length}", BODY, NEITHER),
    read("Content-Length : {length}", BODY, NEITHER),
    read("Content-Length\t: {length}", BODY, NEITHER),
    read("X-First: a\r\n Content-Length: {length}", BODY, NEITHER),
    read("Content-Length:\r\n {length}", BODY, NEITHER),
    read("Connection: Content-Length\r\nContent-Length: {length}", BODY, BOTH),
    read("Content_Length: 1\r\nContent-Length: {length}", BODY, BOTH),
    refused("Content-Length: {length}\r\nContent-Length: 5", BODY),
    refused("Content-Length: 5\r\nContent-Length: {length}", BODY),
    refused("Content-Length: {length}, 5", BODY),
    refused("Content-Length: +{length}", BODY),
    refused("Content-Length: -{length}", BODY),
    refused("Content-Length: 0x{chunk}", BODY),
    refused("Content-Length: {length} 5", BODY),
    refused("Content-Length: {length};", BODY),
    refused("Content-Length: 1_6", BODY),
    refused("Content-Length: 18446744073709551632", BODY),
    refused("Content-Length: ", BODY),
];

pub(crate) const ENCODINGS: [Case; 30] = [
    read(IN_CHUNKS, CHUNKED, BOTH),
    read("Transfer-Encoding:\t cHUNKED \t", CHUNKED, BOTH),
    // Both: the chunks count, and nothing after them does.
    read("Content-Length: {length}\r\nTransfer-Encoding: chunked", CHUNKED, FIRST),
    read("Transfer-Encoding: chunked\r\nContent-Length: {length}", CHUNKED, FIRST),
    // The second request is within one of the two lengths, and outside of the other.
    read("Content-Length: {all}\r\nTransfer-Encoding: chunked", "0\r\n\r\n{second}", NEITHER),
    read("Content-Length: 4\r\nTransfer-Encoding: chunked", "{second chunk}\r\n{second}\r\n0\r\n\r\n", NEITHER),
    refused("Content-Length: 4\r\nTransfer-Encoding: xchunked", "{second chunk}\r\n{second}\r\n0\r\n\r\n"),
    refused("Content-Length: {all}\r\nTransfer-Encoding: chunked, identity", "0\r\n\r\n{second}"),
    refused("Transfer-Encoding: xchunked", CHUNKED),
    refused("Transfer-Encoding: identity", BODY),
    refused("Transfer-Encoding: gzip", BODY),
    refused("Transfer-Encoding: chunked, identity", CHUNKED),
    refused("Transfer-Encoding: chunked, gzip", CHUNKED),
    refused("Transfer-Encoding: \"chunked\"", CHUNKED),
    refused("Transfer-Encoding: chunked;q=1", CHUNKED),
    refused("Transfer-Encoding: chu nked", CHUNKED),
    refused("Transfer-Encoding: ", CHUNKED),
    refused("Transfer-Encoding: \x0bchunked", CHUNKED),
    refused("Transfer-Encoding: chunked\x00", CHUNKED),
    read("Content-Length: {length}\r\nTransfer-Encoding: identity", BODY, NEITHER),
    read("Transfer-Encoding: identity, chunked", CHUNKED, NEITHER),
    read("Transfer-Encoding: chunked, chunked", CHUNKED, NEITHER),
    read("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", CHUNKED, NEITHER),
    read("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", CHUNKED, NEITHER),
    read("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", CHUNKED, NEITHER),
    read("Transfer-Encoding : chunked", CHUNKED, NEITHER),
    read("Content-Length: {length}\r\nTransfer-Encoding:\r\n chunked", BODY, NEITHER),
    read("Content-Length: {length}\r\nTransfer_Encoding: chunked", BODY, BOTH),
    read("Content-Length: {length}\r\nX-First: a\rTransfer-Encoding: chunked", BODY, NEITHER),
    read("X-First: a\nTransfer-Encoding: chunked", CHUNKED, BOTH),
];

pub(crate) const CHUNKS: [Case; 26] = [
    read(IN_CHUNKS, "000000{chunk}\r\n{body}\r\n00\r\n\r\n", BOTH),
    read(IN_CHUNKS, "{chunk};name=\"value\"\r\n{body}\r\n0;last\r\n\r\n", BOTH),
    read(IN_CHUNKS, "{chunk} \r\n{body}\r\n0\r\n\r\n", BOTH),
    // What trailers say about lengths, hosts and keys is nobody's concern.
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\r\nContent-Length: 500\r\n\r\n", BOTH),
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", BOTH),
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\r\nHost: other.test\r\nX-API-Key: mk_other\r\n\r\n", BOTH),
    refused(IN_CHUNKS, "FFFFFFFFFFFFFFFFF\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "100000000000000{chunk}\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "0x{chunk}\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "-{chunk}\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "+{chunk}\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "g\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, ";a\r\n{body}\r\n0\r\n\r\n"),
    refused(IN_CHUNKS, "{chunk}\r\n{body}ab0\r\n\r\n"),
    refused(IN_CHUNKS, "{chunk}\r{body}\r0\r\r"),
    read(IN_CHUNKS, " {chunk}\r\n{body}\r\n0\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk}\n{body}\n0\n\n", NEITHER),
    read(IN_CHUNKS, "{chunk}\r\n{body}\n0\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\n\n", NEITHER),
    read(IN_CHUNKS, "{chunk};a\nb\r\n{body}\r\n0\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk};a\rb\r\n{body}\r\n0\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk};a=\"\r\n{body}\r\n0\r\n\"\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\r\nX-Trailer: a\nb\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\r\nX-Trailer: a\x00b\r\n\r\n", NEITHER),
    read(IN_CHUNKS, "{chunk}\r\n{body}\r\n0\r\nno colon\r\n\r\n", NEITHER),
];

pub(crate) const LINES: [Case; 22] = [
    line("POST http://keys.test/v1/api-keys HTTP/1.1", "Content-Length: {length}", BODY, BOTH),
    line("POST http://other.test/v1/api-keys HTTP/1.1", "Content-Length: {length}", BODY, BOTH),
    line("\r\n\r\nPOST /v1/api-keys HTTP/1.1", "Content-Length: {length}", BODY, BOTH),
    line("POST  /v1/api-keys  HTTP/1.1", "Content-Length: {length}", BODY, NEITHER),
    line("POST /v1/api-keys HTTP/1.1 ", "Content-Length: {length}", BODY, NEITHER),
    line("POST /v1/api-keys http/1.1", "Content-Length: {length}", BODY, NEITHER),
    line(" POST /v1/api-keys HTTP/1.1", "Content-Length: {length}", BODY, NEITHER),
    line("POST /v1/api-keys HTTP/1.0", "Content-Length: {length}", BODY, FIRST),
    line("POST /v1/api-keys HTTP/1.0", "Connection: keep-alive\r\nContent-Length: {length}", BODY, BOTH),
    line("POST /v1/api-keys HTTP/1.0", IN_CHUNKS, CHUNKED, NEITHER),
    line("POST /v1/api-keys HTTP/1.0", "Connection: keep-alive\r\nTransfer-Encoding: chunked", CHUNKED, NEITHER),
    line("POST /v1/api-keys HTTP/1.2", IN_CHUNKS, CHUNKED, NEITHER),
    line("POST /v1/api-keys HTTP/2.0", "Content-Length: {length}", BODY, NEITHER),
    // A body where none is expected.
    line("GET /v1/api-keys/current HTTP/1.1", "Content-Length: {all}", "{second}", &[200]),
    line("GET /v1/api-keys/current HTTP/1.1", IN_CHUNKS, "{second chunk}\r\n{second}\r\n0\r\n\r\n", &[200]),
    line("OPTIONS /v1/api-keys HTTP/1.1", "Content-Length: {all}", "{second}", &[405]),
    line("DELETE /v1/api-keys/none HTTP/1.1", "Content-Length: {all}", "{second}", &[404]),
    // To speak something else from now on is declined, and nothing changes.
    line(POST, "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: {length}", BODY, BOTH),
    line(
        POST,
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: \r\nContent-Length: {length}",
        BODY,
        BOTH,
    ),
    line(POST, "Expect: 100-continue\r\nContent-Length: {length}", BODY, BOTH),
    line(POST, "Expect: 100-continue\r\nContent-Length: {all}\r\nTransfer-Encoding: xchunked", "{second}", NEITHER),
    line("CONNECT keys.test:80 HTTP/1.1", "Content-Length: {all}", "{second}", &[404]),
];
