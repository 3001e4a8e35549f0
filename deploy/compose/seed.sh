#!/bin/sh
# Deploy the example functions named in SEED on the server at ZENITH_URL. Deploying what is there already changes nothing.
# guestbook and thumbnail install packages from a registry: add them where comet reaches one.
set -eu
for name in ${SEED:-csv-stats word-count sysinfo}; do
  orbit deploy --quiet "/opt/nova/examples/$name"
done
orbit list
