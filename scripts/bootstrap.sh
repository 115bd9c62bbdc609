#!/usr/bin/env bash
# Make .venv/ and put the pinned dependencies and the `fleet` command into it. Called by the Makefile.
set -euo pipefail
say() { printf '· %s\n' "$*"; }
die() { printf 'Cannot continue: %s\n' "$*" >&2; exit 1; }
may_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

[ -n "${PY:-}" ] || die "Python 3.11, 3.12 or 3.13 is needed (on Debian 12 and Ubuntu: apt-get install python3)."

if ! "$PY" -c 'import ensurepip, venv' 2>/dev/null; then
  may_install || die "$PY lacks the venv module. Install it: apt-get install python3-venv"
  say "Installing python3-venv (apt-get)"
  version=$("$PY" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")')
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q >/dev/null
  apt-get install -y -q --no-install-recommends "$version" >/dev/null \
    || apt-get install -y -q --no-install-recommends python3-venv >/dev/null
fi

if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  say "Making .venv with $("$PY" --version)"
  rm -rf .venv
  "$PY" -m venv .venv
fi

say "Installing pinned dependencies (a minute or two the first time)"
pin=$(mktemp)
trap 'rm -f "$pin"' EXIT
# uv itself comes from the lock file too, checked by its hashes.
awk '/^uv==/ {on=1} on {print; if ($0 !~ /\\$/) exit}' requirements.lock > "$pin"
[ -s "$pin" ] || die "requirements.lock does not name uv; run 'make lock'."
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r "$pin"
# Compiled once here, since every process of the fleet would otherwise compile the same files for seconds.
.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes requirements.lock
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
say "Installed"
