# hephy's own image: static programs from `scripts/static`; git, which reads the packs that are pushed and fetches
# contexts over HTTPS and SSH; and a shell, by which git runs ssh and submodules.
#
# No RUN is of the image's own platform, so any machine builds it for every architecture:
#   hephy build --context . --multi-platform=linux/amd64,linux/arm64 --driver=local --require-native-nodes=false \
#     --publish-index --destination …
FROM --platform=$BUILDPLATFORM debian:12 AS root
ARG TARGETARCH
ARG BUILDARCH
# Unpacked, not installed: the packages of another architecture need not run here. What they need is looked up as on a
# machine that has nothing yet; perl, and what manages users, are for commands of git and ssh that are not ours.
RUN <<EOF
	set -eu
	root=/root-of-image
	mkdir -p /packages/partial "$root/bin"
	: >/packages/nothing
	cd /packages
	apt() {
		apt-get -q -o APT::Architecture="$TARGETARCH" -o APT::Architectures="$TARGETARCH" \
			-o Dir::State::status=/packages/nothing -o Dir::Cache::archives=/packages "$@"
	}
	apt update
	apt download ca-certificates
	apt install -y --no-install-recommends --download-only git libcurl3-gnutls openssh-client busybox-static
	for unwanted in perl libperl liberror-perl libgdbm git-man adduser passwd debconf libpam libsemanage libsepol libaudit \
		libcap-ng libbz2 dpkg tar; do
		rm -f "$unwanted"*_*.deb
	done
	for package in *.deb; do
		dpkg-deb -x "$package" "$root"
	done
	cd "$root"
	rm -rf var etc usr/share/locale usr/share/man usr/share/bash-completion usr/share/lintian usr/share/gitweb usr/share/perl5 \
		usr/lib/*/gconv
	find usr/share/doc ! -type d ! -name copyright -delete
	for applet in sh basename cat cut dirname env expr grep head ls mkdir mktemp mv printf rm rmdir sed sort tail test tr uname \
		uniq wc; do
		ln -s busybox "bin/$applet"
	done
	mkdir -p etc/ssl/certs root tmp data kaniko
	cat usr/share/ca-certificates/mozilla/*.crt >etc/ssl/certs/ca-certificates.crt
	chmod 700 root
	chmod 1777 tmp
	chown 65532:65532 data
	printf 'root:x:0:0:root:/root:/bin/sh\nhephy:x:65532:65532:hephy:/data:/sbin/nologin\n' >etc/passwd
	printf 'root:x:0:\nhephy:x:65532:\n' >etc/group
	ln -s /hephy kaniko/executor
EOF
# It is whole: the programs are there, and, of this machine's architecture, every library that they load.
RUN <<EOF
	set -eu
	root=/root-of-image
	for program in bin/busybox usr/bin/git usr/bin/ssh usr/lib/git-core/git-remote-https usr/lib/git-core/git-submodule; do
		test -x "$root/$program"
	done
	test -s "$root/etc/ssl/certs/ca-certificates.crt"
	[ "$TARGETARCH" = "$BUILDARCH" ] || exit 0
	set -- "$root"/lib/*/ld-linux-*.so.*
	libraries=${1%/*}
	for program in usr/bin/git usr/bin/ssh usr/lib/git-core/git-remote-https; do
		"$1" --inhibit-cache --library-path "$libraries:$root/usr/lib/${libraries##*/}" --list "$root/$program" >/libraries
		if sed -n 's/.*=> *//p' /libraries | grep -v "^$root/"; then
			echo "$program would load these from elsewhere" >&2
			exit 1
		fi
	done
EOF

FROM scratch
ARG TARGETARCH
COPY --from=root /root-of-image /
COPY --chmod=755 target/static/$TARGETARCH/hephy /hephy
ENV PATH=/usr/bin:/bin
ENTRYPOINT ["/hephy"]
