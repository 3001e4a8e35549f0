#!/usr/bin/env bash
# Set up everything Nova needs to run from this checkout: system packages (as root), a virtual environment with the
# locked dependencies, Node.js when the host has none. Does nothing when all of it is there. `setup.sh dev` adds what
# the tests need.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-run}
venv=.venv

step() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# The system's interpreter first: distributions build theirs for speed, which version managers often do not. PYTHON names another.
python=""
for candidate in ${PYTHON:-} /usr/bin/python3.11 /usr/bin/python3 python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done

# --- system packages: what is missing, and only that -------------------------------------------------------------
missing=()
[ -n "$python" ] || missing+=(python3)
if [ -z "$python" ] || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then missing+=(python3-venv); fi
command -v nft >/dev/null || [ -x /usr/sbin/nft ] || missing+=(nftables)
command -v unshare >/dev/null || missing+=(util-linux)
if [ "$profile" = dev ]; then
  [ -x /usr/lib/postgresql/15/bin/postgres ] || missing+=(postgresql-15)
  command -v wrk >/dev/null || missing+=(wrk)
  [ -x /usr/sbin/ip ] || command -v ip >/dev/null || missing+=(iproute2)
  command -v npm >/dev/null || missing+=(npm)
  command -v curl >/dev/null || missing+=(curl)
  [ -x /usr/bin/python3 ] || missing+=(python3) # programs that functions bring along begin with it
  [ -f /usr/include/linux/unistd.h ] || missing+=(linux-libc-dev)
  # what is deployed is tested: an engine of the test's own, a server to copy to, units
  [ -x /usr/sbin/dockerd ] || command -v dockerd >/dev/null || missing+=(docker.io)
  [ -x /usr/bin/docker-compose ] || missing+=(docker-compose)
  command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
  # machines: an emulator, their drives, a kernel of the test's own
  command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
  [ -x /usr/sbin/mkfs.ext4 ] || command -v mkfs.ext4 >/dev/null || missing+=(e2fsprogs)
  command -v as >/dev/null || missing+=(binutils)
  # brokers that triggers listen to
  [ -x /usr/bin/redis-server ] || missing+=(redis-server)
  [ -x /usr/sbin/rabbitmq-server ] || missing+=(rabbitmq-server)
  [ -x /usr/sbin/nats-server ] || missing+=(nats-server)
  [ -x /usr/sbin/mosquitto ] || missing+=(mosquitto)
  [ -x /usr/sbin/iptables ] || missing+=(iptables)
  [ -x /usr/sbin/sshd ] || missing+=(openssh-server)
  command -v ssh >/dev/null || missing+=(openssh-client)
  command -v rsync >/dev/null || missing+=(rsync)
  command -v openssl >/dev/null || missing+=(openssl)
  command -v systemd-analyze >/dev/null || missing+=(systemd)
fi
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    step "Installing system packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}" >/dev/null
  elif [ -z "$python" ] || [[ " ${missing[*]} " == *" python3-venv "* ]]; then
    die "please install: ${missing[*]}  (for example: sudo apt-get install ${missing[*]})"
  else
    step "Going on without: ${missing[*]}  (nova doctor says what that costs)"
  fi
  [ -n "$python" ] || python=python3
fi

# --- the virtual environment, rebuilt when a lock file changed ---------------------------------------------------
locks=(requirements/build.txt requirements/runtime.txt)
command -v node >/dev/null || locks+=(requirements/node.txt)
[ "$profile" = dev ] && locks+=(requirements/dev.txt)
if [ ! -x "$venv/bin/python" ]; then
  step "Creating the virtual environment ($("$python" --version))"
  "$python" -m venv "$venv"
fi
for lock in "${locks[@]}"; do
  stamp="$venv/.$(basename "$lock").sum"
  sum=$(sha256sum <"$lock")
  if [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ]; then
    step "Installing $(grep -c '==' "$lock") packages from $lock"
    "$venv/bin/python" -m pip install --disable-pip-version-check --require-hashes --quiet --progress-bar on -r "$lock" \
      2> >(grep -v "is neither a file nor a directory" >&2)
    printf '%s' "$sum" >"$stamp"
  fi
done
stamp="$venv/.project.sum"
sum=$(sha256sum <pyproject.toml)
if [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ]; then
  step "Installing Nova itself"
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
  printf '%s' "$sum" >"$stamp"
fi
