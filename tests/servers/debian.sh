#!/bin/sh
# Installs the servers and tools that tests start and that no wheel brings, where we are root on a Debian: `make test` calls it.
# The core package brings the programs only, no service that would be started; elsewhere this does nothing and the
# tests are skipped (in CI they fail).
set -eu
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
missing=
command -v mariadbd >/dev/null || missing="mariadb-server-core"
# Its installer needs this program, which Debian moved from the server's package to the client's in 10.11.19.
command -v my_print_defaults >/dev/null || missing="$missing mariadb-client-core"
command -v mosquitto >/dev/null || missing="$missing mosquitto"
command -v mosquitto_pub >/dev/null || missing="$missing mosquitto-clients"
command -v strace >/dev/null || missing="$missing strace"
command -v nats-server >/dev/null || missing="$missing nats-server"
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -n "$missing" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
get() { apt-get install --yes --quiet --no-install-recommends $missing >/dev/null; }
get 2>/dev/null || { apt-get update --quiet >/dev/null && get; } || echo "$missing could not be installed" >&2
