#!/bin/sh
# Make an environment with a library that benchmarks compare with, outside the repository.
#
#   sh benchmarks/peers.sh DIRECTORY [sae-lens | circuit-tracer]      (sae-lens when not said)
#
# then pass DIRECTORY/bin/python to a benchmark as --peer. Each library takes a directory of its
# own: their pins clash. circuit-tracer is decoderesearch's, from its repository (the PyPI package
# of that name is another's); CIRCUIT_TRACER names a checkout of it to use instead.
set -eu
directory=${1:?"give a directory for the environment"}
tracer=${CIRCUIT_TRACER:-git+https://github.com/decoderesearch/circuit-tracer@4bb8c0e}
case ${2:-sae-lens} in
  sae-lens) packages="sae-lens==6.54.*" ;;
  # transformer-lens 2 wants numpy 1, which pyarrow does without only up to 22.
  circuit-tracer) packages="transformer-lens==2.18.* pyarrow<23 $tracer" ;;
  *) echo "there is no peer \"$2\": sae-lens, circuit-tracer" >&2; exit 2 ;;
esac
"${PYTHON:-python3}" -m venv "$directory"
# shellcheck disable=SC2086  # one word for each package
"$directory/bin/pip" install --quiet "torch==2.13.0" $packages
