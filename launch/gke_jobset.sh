#!/usr/bin/env bash
# Trains in pods of a GKE cluster, through JobSet and launch/gke_jobset.yaml.
# usage: launch/gke_jobset.sh [--dry-run] NAME PODS tpu ACCELERATOR TOPOLOGY CHIPS FLAGS ...
#        launch/gke_jobset.sh [--dry-run] NAME PODS gpu ACCELERATOR CHIPS FLAGS ...
#   e.g. 4 pods of v5e-16:     run1 4 tpu tpu-v5-lite-podslice 4x4 4 --config=F --workdir=/shared/W
#        8 pods of 8 H100:     run1 8 gpu nvidia-h100-80gb 8 --config=F --workdir=/shared/W
# ACCELERATOR, TOPOLOGY: labels of the node pool. CHIPS: of a pod. Environment: IMAGE (needed; has
# fs4_jax[tpu] or fs4_jax[cuda]), CLAIM (a volume that all pods can write, mounted at /shared;
# default fs4-shared). Logs: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" "$@"
[ "$dry_run" = 0 ] || shift

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ $# -ge 5 ] || usage
name="$1" pods="$2" kind="$3" accelerator="$4"
shift 4
if [ -z "${IMAGE:-}" ]; then
  if [ "$dry_run" = 0 ]; then echo "error: set IMAGE to one that has fs4_jax" >&2; exit 2; fi
  IMAGE="IMAGE"
fi

json() {        # the arguments as a JSON list, which YAML reads too
  "$(find_python)" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"
}

case "$kind" in
  tpu)            # GKE tells TPU pods where the others are
    [ $# -ge 3 ] || usage
    selector="{\"cloud.google.com/gke-tpu-accelerator\": \"$accelerator\", \"cloud.google.com/gke-tpu-topology\": \"$1\"}"
    limits="{\"google.com/tpu\": $2}"
    shift 2
    where=(--distributed) ;;
  gpu)
    [ $# -ge 2 ] || usage
    selector="{\"cloud.google.com/gke-accelerator\": \"$accelerator\"}"
    limits="{\"nvidia.com/gpu\": $1}"
    shift
    # Kubernetes fills in $(...): the number of the pod in its job.
    where=(--distributed "--coordinator=$name-workers-0-0.$name:8476" "--num_processes=$pods"
      "--process_id=\$(JOB_COMPLETION_INDEX)") ;;
  *) usage ;;
esac

manifest="$(NAME="$name" PODS="$pods" SELECTOR="$selector" LIMITS="$limits" IMAGE="$IMAGE" \
  CLAIM="${CLAIM:-fs4-shared}" ARGS="$(json "${where[@]}" "$@")" "$(find_python)" -c '
import os, string, sys
print(string.Template(sys.stdin.read()).substitute(os.environ), end="")
' < <(sed '/^#/d' "$root/launch/gke_jobset.yaml"))"
if [ "$dry_run" = 1 ]; then
  echo "$manifest"
  echo "# kubectl apply -f -"
else
  kubectl apply -f - <<< "$manifest"
fi
