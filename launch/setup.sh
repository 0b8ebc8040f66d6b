# shellcheck shell=bash
# Sourced by the launchers: makes a virtual environment in the checkout and installs the package.
# FS4_VENV puts it elsewhere. Installs again only when pyproject.toml or the wanted extras change.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${FS4_VENV:-$root/.venv}"
dry_run=0
if [ "${1:-}" = "--dry-run" ]; then dry_run=1; fi

run() {
  if [ "$dry_run" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"; return
    fi
  done
  echo "error: Python 3.11 or newer with the venv module was not found; install one first" >&2
  return 1
}

# install EXTRAS: "" or "[test]"
install() {
  local extras="$1" stamp want python
  stamp="$venv/.fs4_installed"
  want="$root$extras $(cksum < "$root/pyproject.toml")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then return; fi
  python="$(find_python)"
  [ -x "$venv/bin/python" ] || run "$python" -m venv "$venv"
  echo "installing fs4_jax into $venv (a minute or two the first time) ..." >&2
  run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$root$extras"
  [ "$dry_run" = 1 ] || echo "$want" > "$stamp"
}
