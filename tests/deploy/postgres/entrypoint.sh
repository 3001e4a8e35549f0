#!/bin/sh
# Make the database that POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB describe, then serve it.
set -eu
as="setpriv --reuid=nova --regid=nova --clear-groups --"
chown nova:nova "$PGDATA"
chmod 700 "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
  chown nova /tmp/password
  $as initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-sync >/dev/null
  rm /tmp/password
  echo "CREATE DATABASE $POSTGRES_DB" | $as postgres --single postgres >/dev/null
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
fi
exec $as postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
