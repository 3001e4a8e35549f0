#!/bin/sh
# Install this unpacked archive on the host, or update what is there: sh install.sh
#   PREFIX   where the programs go     (default /opt/nova)
#   ETC      where the settings are    (default /etc/nova); files that exist are left alone
#   UNITS    where units go            (default /etc/systemd/system)
# Programs are installed beside the running ones and switched over by one link; running services keep what they run on
# until they are restarted. The release before the last one is removed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=${PREFIX:-/opt/nova} etc=${ETC:-/etc/nova} units=${UNITS:-/etc/systemd/system}

release=$prefix/releases/$(cat "$here"/dist/nova/*.whl "$here"/requirements/*.txt | sha256sum | cut -c1-12)
mkdir -p "$prefix/releases" "$prefix/rootfs" "$prefix/snapshots" "$etc"
if [ ! -e "$release/complete" ]; then
  rm -rf "$release"
  mkdir -p "$release"
  locks="$here/requirements/runtime.txt"
  command -v node >/dev/null 2>&1 || locks="$locks $here/requirements/node.txt"
  # shellcheck disable=SC2086
  sh "$here/wheels.sh" locked "$here/dist/wheelhouse" "$release/venv" $locks
  sh "$here/wheels.sh" nova "$here/dist/nova" "$release/venv"
  mkdir -p "$release/bin"
  for name in nova comet corona nebula aurora zenith orbit; do ln -s "../venv/bin/$name" "$release/bin/$name"; done
  cp "$here/bin/nova-agent" "$release/bin/nova-agent"
  cp -r "$here/examples" "$release/examples"
  touch "$release/complete"
fi
previous=$(readlink "$prefix/current" 2>/dev/null || true)
ln -sfn "$release" "$prefix/current.new"
mv -T "$prefix/current.new" "$prefix/current"
ln -sfn current/bin "$prefix/bin"
for old in "$prefix"/releases/*; do
  [ "$old" = "$release" ] || [ "$old" = "$previous" ] || rm -rf "$old"
done

[ -e "$etc/nova.json" ] || cp "$here/configs/nova.json" "$etc/nova.json"
if [ ! -e "$etc/nova.env" ]; then
  (umask 077; printf '# Environment of every plane.\n#NOVA_PG_DSN=postgres://nova:nova@localhost:5432/nova\n' >"$etc/nova.env")
fi

if [ -d "$units" ]; then
  for unit in "$here"/systemd/*; do
    sed -e "s|/opt/nova|$prefix|g" -e "s|/etc/nova|$etc|g" "$unit" >"$units/$(basename "$unit")"
  done
fi
if [ -d /run/systemd/system ] && [ "$units" = /etc/systemd/system ]; then
  id nova >/dev/null 2>&1 || useradd --system --home-dir /var/lib/nova --shell /usr/sbin/nologin nova
  systemctl daemon-reload
  systemctl try-restart nova.service comet.service corona.service nebula.service aurora.service zenith.service
  echo "installed in $prefix; start it with: systemctl enable --now nova.target"
else
  echo "installed in $prefix; this host has no systemd, start the planes as the units in $here/systemd do"
fi
