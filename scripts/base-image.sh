#!/usr/bin/env bash
# Make the base of Nova's images out of Debian packages, without an image registry:
#   scripts/base-image.sh TAG [PACKAGE…]
# Needs mmdebstrap and a running engine; DOCKER names its client (default: docker). Packages are taken from where this
# host takes its own. Then: docker build --build-arg BASE=TAG --target zenith-runtime .
set -euo pipefail
tag=${1:?usage: scripts/base-image.sh TAG [PACKAGE…]}
shift
packages=ca-certificates,iproute2,nftables,passwd,python3,python3-venv,util-linux
for package in "$@"; do packages+=",$package"; done
suite=bookworm
sources=()
if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = "$suite" ]; then
  for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
    if [ -s "$file" ]; then sources=("$file"); break; fi
  done
fi
mmdebstrap --quiet --variant=minbase --include="$packages" \
  --aptopt='Acquire::Languages "none"' \
  --dpkgopt=force-unsafe-io \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  "$suite" - "${sources[@]}" | ${DOCKER:-docker} import - "$tag" >/dev/null
echo "$tag"
