#!/usr/bin/env bash
# Pack what a Linux server of this architecture needs into dist/nova-linux.tar.gz: wheels, agent, units, settings,
# installer. Installing it needs no network. scripts/deploy.sh brings it to a server.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/wheelhouse.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/nova"/{dist,requirements,bin}
ln -s "$PWD/dist/wheelhouse" "$PWD/dist/nova" "$tree/nova/dist/"
cp requirements/{runtime,node}.txt "$tree/nova/requirements"
cp bin/nova-agent "$tree/nova/bin"
cp deploy/image/install.sh "$tree/nova/wheels.sh"
cp deploy/server/install.sh "$tree/nova"
cp -r deploy/systemd configs examples "$tree/nova"
# Wheels are compressed already.
tar --dereference --exclude=__pycache__ --exclude=.locks.sum -C "$tree" -c nova | gzip -1 >dist/nova-linux.tar.gz.new
mv dist/nova-linux.tar.gz.new dist/nova-linux.tar.gz
echo "dist/nova-linux.tar.gz: $(du -m dist/nova-linux.tar.gz | cut -f1) MiB"
