#!/bin/sh
# Start comet in a container that may add SYS_ADMIN and NET_ADMIN. Containers see parts of /proc only and their control
# groups read-only; instances need a whole /proc to be made and groups of their own for hard limits. Both are put right
# inside this container: the groups stay below its own. What fails here is told by `nova doctor`.
set -u
if grep -q ' /proc/' /proc/self/mountinfo; then mount -t proc proc /proc; fi

top=/sys/fs/cgroup
awk -v top="$top" '$5 == top || index($5, top "/") == 1 { print $5 }' /proc/self/mountinfo | while read -r point; do
  [ -w "$point" ] || mount -o remount,bind,rw "$point"
done
# Version 2: a group with processes cannot share out to groups below it, so this process moves one down.
if [ -w "$top/cgroup.subtree_control" ] && [ -z "$(cat "$top/cgroup.subtree_control")" ]; then
  mkdir -p "$top/comet"
  while read -r pid; do echo "$pid" >"$top/comet/cgroup.procs"; done <"$top/cgroup.procs"
  for name in cpu memory pids; do echo "+$name" >"$top/cgroup.subtree_control"; done
fi
exec comet "$@"
