#!/usr/bin/env bash
# Every check that needs no test run. Runs all of them and fails if one did.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=()

run() {
  local name=$1; shift
  printf '  %-18s' "$name"
  local out
  if out=$("$@" 2>&1); then echo ok; else echo FAILED; printf '%s\n' "$out" | tail -n 60; failed+=("$name"); fi
}

cargo_deny() {
  if [ ! -x .tools/bin/cargo-deny ]; then
    cargo install cargo-deny --version 0.20.2 --locked --quiet --root .tools || return 1
  fi
  .tools/bin/cargo-deny --offline check bans licenses sources
}

run "ruff format"    .venv/bin/ruff format --check --quiet .
run "ruff"           .venv/bin/ruff check --quiet .
run "mypy"           .venv/bin/mypy
run "import contracts" .venv/bin/lint-imports
run "generated files" .venv/bin/python tools/generate.py --check
run "coverage names" .venv/bin/python tools/coverage.py --check
run "rustfmt"        cargo fmt --check
run "clippy"         cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
run "cargo-deny"     cargo_deny

if [ ${#failed[@]} -gt 0 ]; then echo "failed: ${failed[*]}"; exit 1; fi
