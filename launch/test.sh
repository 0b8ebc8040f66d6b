#!/usr/bin/env bash
# Sets everything up and runs the tests.
# usage: launch/test.sh [--dry-run] [PYTEST ARGUMENTS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
[ "$dry_run" = 0 ] || shift

install "[test]"
cd "$root"
# Two workers of a few GB each, a file at a time: a test class's run is made once.
run "$venv/bin/python" -m pytest --numprocesses=2 --dist=loadfile "$@"
