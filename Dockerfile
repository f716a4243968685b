# hephy's own image: static programs from `scripts/static`, and git, which reads the packs that are pushed.
#
# No RUN of the image's own platform: any machine builds it for every architecture.
#   hephy build --context . --custom-platform linux/arm64 --destination …
FROM --platform=$BUILDPLATFORM debian:12 AS root
ARG TARGETARCH
# Unpacked, not installed: the packages of another architecture need not run here.
RUN dpkg --add-architecture "$TARGETARCH" && apt-get update && mkdir -p /packages /root-of-image && cd /packages \
    && apt-get download "git:$TARGETARCH" "libc6:$TARGETARCH" "libpcre2-8-0:$TARGETARCH" "zlib1g:$TARGETARCH" ca-certificates \
    && for package in *.deb; do dpkg-deb --fsys-tarfile "$package" > package.tar \
         && tar -xf package.tar -C /root-of-image --wildcards './lib*' './usr/lib/*' './usr/bin/git*' './usr/share/ca-certificates/*' './usr/share/doc/*/copyright' 2>/dev/null || true; done \
    && mkdir -p /root-of-image/etc/ssl/certs /root-of-image/tmp /root-of-image/data /root-of-image/kaniko \
    && cat /root-of-image/usr/share/ca-certificates/mozilla/*.crt > /root-of-image/etc/ssl/certs/ca-certificates.crt \
    && chmod 1777 /root-of-image/tmp && chown 65532:65532 /root-of-image/data \
    && printf 'root:x:0:0:root:/root:/sbin/nologin\nhephy:x:65532:65532:hephy:/data:/sbin/nologin\n' > /root-of-image/etc/passwd \
    && printf 'root:x:0:\nhephy:x:65532:\n' > /root-of-image/etc/group \
    && ln -s /hephy /root-of-image/kaniko/executor

FROM scratch
ARG TARGETARCH
COPY --from=root /root-of-image /
COPY --chmod=755 target/static/$TARGETARCH/hephy /hephy
ENV PATH=/usr/bin:/bin
ENTRYPOINT ["/hephy"]
