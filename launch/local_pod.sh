#!/usr/bin/env bash
# One run in several processes on this machine, each with faked CPU devices: a pod to try things on.
# usage: launch/local_pod.sh [--dry-run] PROCESSES DEVICES --config=FILE --workdir=W [FLAGS ...]
# DEVICES: of each process. Process 0 prints here, the others to W/logs/process_I.log. Ctrl-C and
# SIGTERM save and stop all; exit status 75 means: the same command goes on from there.
# FS4_PYTHON: a Python that has fs4_jax; without it the launcher makes .venv, as demo.sh does.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
[ "$dry_run" = 0 ] || shift

if [ $# -lt 2 ] || ! [[ "$1$2" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local_pod.sh [--dry-run] PROCESSES DEVICES --config=FILE --workdir=W ..." >&2
  exit 2
fi
processes="$1" devices="$2"
shift 2
workdir=""
for argument in "$@"; do
  case "$argument" in --workdir=*) workdir="${argument#--workdir=}" ;; esac
done
if [ -z "$workdir" ]; then echo "error: --workdir=W is missing" >&2; exit 2; fi

python="${FS4_PYTHON:-}"
if [ -z "$python" ]; then install ""; python="$venv/bin/python"; fi
cd "$root"
port="$("$(find_python)" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0))
print(s.getsockname()[1])')"
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

flags=("$@")
command_of() {        # process $1: into the array words
  words=("$python" -m fs4_jax.main --distributed "--coordinator=localhost:$port"
    "--num_processes=$processes" "--process_id=$1" "${flags[@]}")
}

if [ "$dry_run" = 1 ]; then
  echo "export JAX_PLATFORMS=cpu XLA_FLAGS='$XLA_FLAGS'"
  for ((i = 0; i < processes; i++)); do
    command_of "$i"
    run "${words[@]}"
  done
  exit 0
fi

mkdir -p "$workdir/logs"
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null' INT TERM
for ((i = 0; i < processes; i++)); do
  command_of "$i"
  if [ "$i" = 0 ]; then "${words[@]}" & else
    "${words[@]}" > "$workdir/logs/process_$i.log" 2>&1 &
  fi
  pids+=($!)
done

# The first that fails ends the others, which would wait for it.
status=0
left="$processes"
while [ "$left" -gt 0 ]; do
  code=0
  wait -n || code=$?
  running=0
  for pid in "${pids[@]}"; do if kill -0 "$pid" 2>/dev/null; then running=$((running + 1)); fi; done
  if [ "$running" = "$left" ]; then continue; fi        # a signal woke us, not a process
  left="$running"
  if [ "$status" = 0 ]; then status="$code"; fi
  if [ "$code" != 0 ] && [ "$code" != 75 ]; then
    status="$code"
    kill -KILL "${pids[@]}" 2>/dev/null || true
    for ((i = 1; i < processes; i++)); do
      if grep -qiE 'error' "$workdir/logs/process_$i.log"; then
        echo "--- the end of $workdir/logs/process_$i.log" >&2
        tail -n 20 "$workdir/logs/process_$i.log" >&2
      fi
    done
    break
  fi
done
exit "$status"
