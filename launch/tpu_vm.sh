#!/usr/bin/env bash
# Trains on all workers of a Cloud TPU VM slice, with gcloud.
# usage: launch/tpu_vm.sh [--dry-run] create NAME ZONE TYPE       a slice: v5litepod-16, v6e-64, ...
#        launch/tpu_vm.sh [--dry-run] setup  NAME ZONE            this checkout, installed
#        launch/tpu_vm.sh [--dry-run] train  NAME ZONE FLAGS ...  of fs4_jax.main; resumes as well
#        launch/tpu_vm.sh [--dry-run] logs   NAME ZONE            what worker 0 prints
#        launch/tpu_vm.sh [--dry-run] stop   NAME ZONE            SIGTERM: saves and leaves
#        launch/tpu_vm.sh [--dry-run] delete NAME ZONE
# --workdir and the data must lie where all workers see them (Filestore, or a bucket with a
# hierarchical namespace mounted with gcsfuse). SPOT=1 creates a spot slice, VERSION= its software.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
[ "$dry_run" = 0 ] || shift

usage() { sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ $# -ge 3 ] || usage
verb="$1" name="$2" zone="$3"
shift 3
tpu=(gcloud compute tpus tpu-vm)
where=(--zone="$zone")
# FILE is what each worker's output goes to; brackets, so that pkill does not find its own shell.
FILE='fs4_jax.log'

case "$verb" in
  create)
    [ $# = 1 ] || usage
    spot=()
    if [ "${SPOT:-0}" = 1 ]; then spot=(--spot); fi
    version="${VERSION:-$(case "$1" in v5lite*) echo v2-alpha-tpuv5-lite ;; v5p*) echo v2-alpha-tpuv5 ;;
      v6e*) echo v2-alpha-tpuv6e ;; *) echo tpu-ubuntu2204-base ;; esac)}"
    run "${tpu[@]}" create "$name" "${where[@]}" --accelerator-type="$1" --version="$version" \
      ${spot[@]+"${spot[@]}"} ;;
  setup)
    archive="${TMPDIR:-/tmp}/fs4_jax.tgz"
    run tar -czf "$archive" -C "$root" --exclude=.git --exclude=.venv --exclude=workdirs .
    run "${tpu[@]}" scp "$archive" "$name:fs4_jax.tgz" "${where[@]}" --worker=all
    run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command="mkdir -p fs4_jax && \
tar -xzf fs4_jax.tgz -C fs4_jax && python3 -m venv .venv && .venv/bin/pip install -q -e 'fs4_jax[tpu]'" ;;
  train)
    [ $# -ge 1 ] || usage
    printf -v flags '%q ' "$@"
    run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all --command="cd fs4_jax && \
nohup ../.venv/bin/python -m fs4_jax.main --distributed $flags >> ../$FILE 2>&1 < /dev/null &" ;;
  logs)
    run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=0 --command="tail -n 100 -F $FILE" ;;
  stop)
    run "${tpu[@]}" ssh "$name" "${where[@]}" --worker=all \
      --command="pkill -TERM -f '[f]s4_jax.main --distributed'" ;;
  delete)
    run "${tpu[@]}" delete "$name" "${where[@]}" --quiet ;;
  *) usage ;;
esac
