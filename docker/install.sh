#!/bin/sh
# Fills /opt/rkfleet, the environment that an image keeps; called by the Dockerfile in two layers, so that a change of the code does not fetch
# the requirements again.
#
#   install.sh requirements FILE     make the environment from a lock with hashes
#   install.sh wheel DIRECTORY       add rkfleet itself, then take out what only installing needs
set -eu

python=/opt/rkfleet/bin/python
case "$1" in
requirements)
    python3.11 -m venv /opt/rkfleet
    $python -m pip install --quiet --no-compile --require-hashes --requirement "$2"
    ;;
wheel)
    $python -m pip install --quiet --no-compile --no-deps --no-index "$2"/rkfleet-*.whl
    $python -m pip uninstall --quiet --yes setuptools pip
    # Byte code that is the same in every build: it carries a hash instead of a time, and nobody looks whether a source is newer.
    find /opt/rkfleet -name __pycache__ -prune -exec rm -rf {} +
    $python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/rkfleet/lib
    ;;
*)
    echo "install.sh: requirements FILE or wheel DIRECTORY, not $1" >&2
    exit 2
    ;;
esac
