"""The first file system of a machine: loads the drivers of its drives, mounts the root and hands over to it."""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_INIT: Final = r"""#!/bin/busybox sh
# Loads drivers, sets the address, waits for the root's drive and hands over.
/bin/busybox mount -t devtmpfs -o nosuid dev /dev
/bin/busybox mount -t proc proc /proc
for module in /modules/*.ko; do /bin/busybox insmod "$module" 2>>/problems; done
root=/dev/vda
address=
resolver=
init=/opt/nova/init
for word in $(/bin/busybox cat /proc/cmdline); do
  case "$word" in
    root=*) root=${word#root=} ;;
    init=*) init=${word#init=} ;;
    ip=*) address=${word#ip=} ;;
  esac
done
if [ -n "$address" ]; then # ip=ADDRESS:SERVER:GATEWAY:NETMASK:NAME:DEVICE:off:RESOLVER, as kernels take it that set it
  rest=$address:
  for part in own server gateway mask name device automatic resolver; do
    eval "$part=\${rest%%:*}"
    rest=${rest#*:}
  done
  /bin/busybox ifconfig "${device:-eth0}" "$own" netmask "$mask" up 2>>/problems
  [ -z "$gateway" ] || /bin/busybox route add default gw "$gateway" 2>>/problems
fi
tries=0
while [ ! -b "$root" ] && [ $tries -lt 500 ]; do
  /bin/busybox usleep 10000
  tries=$((tries + 1))
done
/bin/busybox mount -t ext4 -o ro "$root" /root || {
  echo "nova: the root $root cannot be mounted"
  /bin/busybox cat /problems
  /bin/busybox poweroff -f
}
if [ -n "$resolver" ]; then # the root is read-only: a file beside the devices is seen in its place
  echo "nameserver $resolver" >/dev/resolv.conf
  /bin/busybox mount -o bind /dev/resolv.conf /root/etc/resolv.conf
fi
/bin/busybox umount /proc
/bin/busybox mount -o move /dev /root/dev # Python asks for /dev/urandom before it can mount anything
exec /bin/busybox switch_root /root "$init" "$@"
"""
_FOLDERS: Final = ("bin", "dev", "modules", "proc", "root")
_CHARACTER_DEVICE: Final = 0o020600
_CONSOLE: Final = (5, 1)
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Initramfs:
    """``modules`` are names and contents, in the order in which they load; ``busybox`` is a static program."""

    busybox: bytes
    modules: Sequence[tuple[str, bytes]]

    def packed(self) -> bytes:
        """A gzipped archive in the kernel's form (cpio ``newc``); the same parts make the same bytes."""
        archive = bytearray()
        for number, name in enumerate(_FOLDERS):
            archive += _entry(number + 1, name, 0o040755)
        number = len(_FOLDERS) + 1
        archive += _entry(number, "dev/console", _CHARACTER_DEVICE, device=_CONSOLE)
        files = [("init", _INIT.encode()), ("bin/busybox", self.busybox)]
        files += [(f"modules/{place:02}-{name}.ko", data) for place, (name, data) in enumerate(self.modules)]
        for place, (name, data) in enumerate(files):
            archive += _entry(number + 1 + place, name, 0o100755, data)
        archive += _entry(0, _TRAILER, 0)
        return gzip.compress(bytes(archive), compresslevel=6, mtime=0)


def _entry(number: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    #        inode   mode  uid gid links time size  device of the file  device that it is        name's length  checksum
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, device[0], device[1], len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
