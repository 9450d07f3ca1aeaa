#!/bin/sh
# The example on this machine: every step of README.md in containers, to be read and to be run. What members and
# coordinator send each other is copied here, and the script compares the fingerprints that people compare by telephone.
set -eu
cd "$$(dirname "$$0")/.."

compose() { docker compose -f containers/compose.yaml "$$@"; }
in_service() { service=$$1; shift; compose run --rm -T --no-deps "$$service" "$$@"; }
fingerprint() { in_service superlink fingerprint "$$1" | sed 's/.*: //'; }
own() { [ "$$(id -u)" != 0 ] || chown -R $user "$$1"; }

mkdir -p run $folders
own .
compose build superlink

# The coordinator: keys, SuperLink, door.
[ -e keys/coordinator ] || in_service superlink keys --host superlink
compose up -d --wait superlink door

# Every member makes its keys and sends the public one; the coordinator adds it.
$keys
# federation.toml and ca.crt go to every member, who joins with them.
agreed=$$(fingerprint federation.toml)
$joins
# Nodes and the run, which this watches to its end.
compose up -d --wait
in_service operator run --out results/first
in_service operator status --out results/first
