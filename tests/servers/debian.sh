#!/bin/sh
# Installs the servers that tests start and that no wheel brings, where we are root on a Debian: `make test` calls it.
# The core package brings the programs only, no service that would be started; elsewhere this does nothing and the
# tests are skipped (in CI they fail).
set -eu
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
command -v mariadbd >/dev/null && exit 0
export DEBIAN_FRONTEND=noninteractive
get() { apt-get install --yes --quiet --no-install-recommends mariadb-server-core >/dev/null; }
get 2>/dev/null || { apt-get update --quiet >/dev/null && get; } || echo "mariadb-server-core could not be installed" >&2
