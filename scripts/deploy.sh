#!/usr/bin/env bash
# Install dist/nova-linux.tar.gz on a server: scripts/deploy.sh user@host
#   SSH     the client with its options      (default: ssh)
#   PREFIX, ETC, UNITS                        as deploy/server/install.sh takes them
# Needs ssh and tar there, Python 3.11 with venv, and the right to write to PREFIX. The archive is unpacked beside the
# target and removed afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."
server=${1:-}
[ -n "$server" ] || { echo "usage: make deploy SERVER=user@host" >&2; exit 2; }
case $server in -*) echo "deploy: $server is not a server" >&2; exit 2 ;; esac
[ -f dist/nova-linux.tar.gz ] || { echo "deploy: run make build-linux first" >&2; exit 1; }
read -ra ssh <<<"${SSH:-ssh}"
settings=""
for name in PREFIX ETC UNITS; do
  [ -z "${!name:-}" ] || settings+="$name=$(printf '%q' "${!name}") "
done
# shellcheck disable=SC2016,SC2029
"${ssh[@]}" "$server" 'set -e; folder=$(mktemp -d); trap '\''rm -rf "$folder"'\'' EXIT
  tar -xzf - -C "$folder"; '"$settings"'sh "$folder/nova/install.sh"' <dist/nova-linux.tar.gz
