#!/bin/sh
# Fetches the parts of an Apache Kafka broker with Maven, where Maven and Java are here: `make kafka`. Without it tests
# of what only a broker can show are skipped; those that the mock of librdkafka can carry run everywhere.
set -eu
command -v mvn >/dev/null && command -v java >/dev/null || exit 0
here=$(dirname "$0")
parts=${1:-build/kafka}
[ -e "$parts/.complete" ] && exit 0
mkdir -p "$parts"
if mvn --quiet --batch-mode --file "$here/kafka.pom.xml" dependency:copy-dependencies -DoutputDirectory="$(cd "$parts" && pwd)" >"$parts/log" 2>&1; then
    touch "$parts/.complete"
else
    echo "the parts of a Kafka broker could not be fetched: see $parts/log" >&2
fi
