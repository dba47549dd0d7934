#!/bin/sh
# Sets up a Python environment and a container engine and runs a command with them:
#   sh scripts/bootstrap.sh invoke build-local --variant cpu --smoke
# Runs from any directory, any number of times; an existing environment or engine is used as it is.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
environment=$root/.venv
lock=$root/requirements.lock

say() { echo "bootstrap: $*" >&2; }
die() {
    say "$*"
    exit 3
}

# Succeeds if this script may install Debian packages.
installer() { [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; }

# Ends the script where no temporary file can be written: apt and pip would blame something else.
require_temporary() {
    directory=${TMPDIR:-/tmp}
    [ -d "$directory" ] || directory=/tmp # as Python does
    cause=$(
        exec 2>&1
        file=$(mktemp -p "$directory") || exit
        head -c 65536 /dev/zero >"$file" || status=$?
        rm -f "$file"
        exit "${status:-0}"
    ) ||
        die "no temporary file can be written to $directory ($cause): free some space there, or set TMPDIR to another directory."
}

install() {
    require_temporary
    say "installing $* with apt-get"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } >&2 ||
        die "apt-get could not install $*: see above."
}

# Prints the path of the first supported Python that has venv.
find_python() {
    for python in python3.14 python3.13 python3.12 python3.11 python3; do
        if "$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

make_environment() {
    python=$(find_python) || { installer && install python3 python3-venv && python=$(find_python); } ||
        die "Python 3.11 to 3.14 with its venv module is needed: install it, such as with 'apt-get install python3-venv'."
    # The environment depends on the lock file, Python and its own path; the stamp is written last.
    stamp="$(cksum <"$lock") $("$python" --version) $environment"
    [ "$(cat "$environment/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    require_temporary
    say "making the Python environment in $environment"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    # Wheels only, because building runs code; www-authenticate, a few lines long, has no wheel.
    # By a module of ours, which leaves out settings of the user's that install into another place.
    PYTHONPATH=$root/scripts "$environment/bin/python" -m base_images.adapters.pip_settings install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
        --no-binary www-authenticate --use-pep517 -r "$lock" >&2 || die "pip could not install what requirements.lock names: see above."
    echo "$stamp" >"$environment/stamp"
}

# Exits with 0 if an engine answers, 3 if there is none, 2 if the one selected by the user does not answer, else on a fault of ours.
engine_answers() {
    PYTHONPATH=$root/scripts "$environment/bin/python" -c '
import sys
from base_images import errors
from base_images.adapters import endpoint, engine
try:
    engine.connect()
except errors.EngineError as error:
    print(error)
    sys.exit(2 if endpoint.chosen() else 3)'
}

make_engine() {
    answer=0
    message=$(engine_answers) || answer=$?
    [ "$answer" -ne 0 ] || return 0
    [ "$answer" -ne 2 ] || die "$message"
    [ "$answer" -eq 3 ] || die "the container engine could not be asked: see above."
    installer || die "$message"
    command -v dockerd >/dev/null || install docker.io iptables
    command -v docker >/dev/null || install docker-cli # a separate package since Debian 13
    say "starting the container engine"
    if [ -d /run/systemd/system ]; then
        systemctl start docker >&2
    else
        # Without an init system: in its own session, to outlive this command.
        setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
    fi
    tries=0
    until engine_answers >/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || die "the container engine did not start within 60 s: see /var/log/dockerd.log."
        sleep 1
    done
}

[ $# -gt 0 ] || die "say what to run, such as: sh scripts/bootstrap.sh invoke --list"
command -v git >/dev/null || { installer && install git ca-certificates; } || die "git is needed: install it."
make_environment
make_engine
BASE_IMAGES_CALLER_DIRECTORY=$PWD
export BASE_IMAGES_CALLER_DIRECTORY
PATH=$environment/bin:$PATH
export PATH
cd "$root"
exec "$@"
