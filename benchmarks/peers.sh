#!/bin/sh
# Make an environment with the libraries that benchmarks compare with, outside the repository.
#
#   sh benchmarks/peers.sh DIRECTORY
#
# then pass DIRECTORY/bin/python to a benchmark as --peer.
set -eu
directory=${1:?"give a directory for the environment"}
"${PYTHON:-python3}" -m venv "$directory"
"$directory/bin/pip" install --quiet "torch==2.13.0" "sae-lens==6.54.*"
