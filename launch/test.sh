#!/usr/bin/env bash
# Sets everything up and runs the tests.
# usage: launch/test.sh [--dry-run] [PYTEST ARGUMENTS]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
[ "$dry_run" = 0 ] || shift

install "[test]"
cd "$root"
run "$venv/bin/python" -m pytest "$@"
