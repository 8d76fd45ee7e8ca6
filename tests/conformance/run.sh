#!/bin/sh
# Load datasets of ours with the real LeRobotDataset, in a venv of its own: its pins contradict the project's.
#
#   tests/conformance/run.sh [pytest arguments]
#
# Makes the venv on first use (or after its requirements changed) and needs Python 3.11 and FFmpeg's shared
# libraries; where these can neither be found nor installed it says so and passes.
#   PYTHON            interpreter to make the venv with (python3.11)
#   CONFORMANCE_VENV  where the venv lies (.venv-conformance)
set -eu
cd "$(dirname "$0")/../.."
here=tests/conformance
python=${PYTHON:-python3.11}
venv=${CONFORMANCE_VENV:-.venv-conformance}

skip() {
    echo "conformance SKIPPED: $1"
    exit 0
}

have_ffmpeg() {
    ldconfig -p 2>/dev/null | grep -q 'libavcodec\.so\.'
}

command -v "$python" >/dev/null || skip "no $python (set PYTHON to a Python 3.11)"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || skip "$python is not Python 3.11"
if ! have_ffmpeg; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "no FFmpeg shared libraries and not root: install ffmpeg"
    echo "conformance: installing ffmpeg"
    { apt-get update -q && apt-get install -y -q --no-install-recommends ffmpeg; } >/dev/null 2>&1 || true
    have_ffmpeg || skip "FFmpeg's shared libraries could not be installed"
fi

wanted=$(cat "$here"/requirements*.txt | cksum)
if [ "$(cat "$venv/made-from" 2>/dev/null)" != "$wanted" ]; then
    echo "conformance: making $venv (1.5 GB, a few minutes)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check -r "$here/requirements.txt"
    "$venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check --no-deps -r "$here/requirements-alone.txt"
    echo "$wanted" >"$venv/made-from"
fi

HF_HOME=$(mktemp -d)
trap 'rm -rf "$HF_HOME"' EXIT
export HF_HOME HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PYTHONPATH=.
# The project turns warnings into errors; those of other people's libraries are not ours to mend.
"$venv/bin/python" -m pytest "$here" -m conformance -W default -p no:cacheprovider "$@"
