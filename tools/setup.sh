#!/usr/bin/env bash
# Prepares everything that the Makefile's targets need: system packages (as root, by apt-get), the virtual environment,
# the native module. Does only what is missing, so a second run ends in a second.
#   tools/setup.sh base   virtual environment, native module, packages that running needs
#   tools/setup.sh test   the same and what tests and measurements need besides
set -euo pipefail
cd "$(dirname "$0")/.."
want=${1:-base}
venv=.venv

say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- system packages: "command:package" -------------------------------------------------------------------------------
needed=(ip:iproute2 nft:nftables conntrack:conntrack ethtool:ethtool nsenter:util-linux ping:iputils-ping
        rsvg-convert:librsvg2-bin fc-list:fontconfig)
[ "$want" = test ] && needed+=(iperf3:iperf3 sysctl:procps java:default-jre-headless etcd:etcd-server)

missing=()
for pair in "${needed[@]}"; do
  PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
compgen -G '/usr/share/fonts/truetype/dejavu/*.ttf' >/dev/null || missing+=(fonts-dejavu-core)
python=$(command -v python3.11 || command -v python3 || true)
[ -z "$python" ] || "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
      >/tmp/jumpvpn-apt.$$.log 2>&1 || { tail -n 5 /tmp/jumpvpn-apt.$$.log >&2; stop "apt-get could not install: ${missing[*]}"; }
    rm -f /tmp/jumpvpn-apt.$$.log
  else
    stop "these packages are missing: ${missing[*]}; install them with: sudo apt-get install ${missing[*]}"
  fi
fi

# --- toolchains -------------------------------------------------------------------------------------------------------
[ -n "$python" ] || stop "Python 3.11 or newer is missing; install it with: apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop "Python 3.11 or newer is needed; $python is older"
command -v cargo >/dev/null || stop "cargo (Rust 1.88 or newer) is missing; install it with: apt-get install rustup, or from rustup"
command -v cc >/dev/null || stop "a C compiler is missing; install it with: apt-get install gcc libc6-dev"

# --- virtual environment ----------------------------------------------------------------------------------------------
stamp=$venv/.requirements
if ! cmp -s requirements.lock "$stamp"; then
  say "virtual environment"
  if [ ! -x $venv/bin/python ]; then
    "$python" -m venv $venv 2>/dev/null || stop "Python cannot make virtual environments; install: apt-get install python3-venv"
  fi
  if command -v uv >/dev/null; then
    VIRTUAL_ENV=$venv uv pip install --quiet --require-hashes -r requirements.lock
  else
    $venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
  fi
  cp requirements.lock "$stamp"
fi

# --- messages of etcd, generated ---------------------------------------------------------------------------------------
messages=src/jumpvpn/runtime/stores/etcd
described=$(cat $messages/jumpvpn_etcd.proto requirements.lock | sha256sum)
if [ "$(cat $venv/.messages 2>/dev/null)" != "$described" ] || [ ! -e $messages/jumpvpn_etcd_pb2.py ]; then
  $venv/bin/python -m grpc_tools.protoc -I $messages --python_out=$messages --pyi_out=$messages jumpvpn_etcd.proto \
    || stop "the messages of etcd could not be generated; protoc's words are above"
  printf '%s' "$described" >$venv/.messages
fi

# --- native module and package ----------------------------------------------------------------------------------------
sources=$(find crates Cargo.toml Cargo.lock pyproject.toml -type f \( -name '*.rs' -o -name '*.toml' -o -name '*.lock' \) -print0 \
          | sort -z | xargs -0 sha256sum | sha256sum)
if [ "$(cat $venv/.native 2>/dev/null)" != "$sources" ]; then
  say "native module (the first build takes a few minutes)"
  said=$(VIRTUAL_ENV=$PWD/$venv $venv/bin/maturin develop --release --locked --quiet 2>&1) \
    || { printf '%s\n' "$said" >&2; stop "the native module could not be built; the compiler's words are above"; }
  printf '%s' "$sources" >$venv/.native
fi
