FROM rust:1.95-bookworm AS build
WORKDIR /build

# The dependencies are built in a layer of their own, which changes only with
# the two manifests. Two stub files are enough for that in a single crate;
# cargo-chef would be one more tool to fetch, build and trust. The manifest
# names a benchmark, so cargo wants to see its file. The crate itself is cleaned
# because the sources copied below are older than the stubs' build and would
# pass as already built.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
    && touch src/lib.rs benches/main.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --locked --release --bin momail-api-keys \
    && cargo clean --release --package momail-api-keys

COPY migrations migrations
COPY config config
COPY src src
# The empty folder becomes /data, which must belong to the user below.
RUN cargo build --locked --release --bin momail-api-keys \
    && mkdir /data

FROM debian:bookworm-slim

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="momail-api-keys" \
      org.opencontainers.image.description="Issues, lists and revokes API keys, and says for every request who is calling and whether that key may go on." \
      org.opencontainers.image.vendor="The MoMail authors" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# Those who sign the certificates of other servers: a Redis behind TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY LICENSE /usr/share/doc/momail-api-keys/LICENSE
COPY --from=build --chown=65532:65532 /data /data
COPY --from=build /build/target/release/momail-api-keys /usr/local/bin/momail-api-keys

ENV MOMAIL_SERVER__PUBLIC_ADDR=0.0.0.0:8080 \
    MOMAIL_SERVER__INTERNAL_ADDR=0.0.0.0:9090 \
    DATABASE_URL=sqlite:///data/momail.db

# A number: an orchestrator that insists on a user other than root cannot tell
# from a name.
USER 65532:65532
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/momail-api-keys", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/momail-api-keys"]
CMD ["serve"]
