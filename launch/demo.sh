#!/usr/bin/env bash
# The demo: sets everything up, trains FS^4 on pictures that the package draws itself, scores it.
# usage: launch/demo.sh [--dry-run] [WORKDIR] [--config.KEY=VALUE ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
[ "$dry_run" = 0 ] || shift

install ""
workdir="$root/workdirs/demo"
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then workdir="$(realpath -m "$1")"; shift; fi
cd "$root"
run "$venv/bin/python" -m fs4_jax.main --config=configs/demo.py --workdir="$workdir" "$@"
