#!/usr/bin/env bash
# One TPU VM host (v5e-1 to v5e-8): installs into .venv with libtpu, then trains. Arguments go to jaxmoe.launch.
#   launch/tpu_vm.sh --config=configs/large_v2.py --phase=all
set -euo pipefail
cd "$(dirname "$0")/.."
test -x .venv/bin/python || python3.11 -m venv .venv
.venv/bin/python -m pip install --quiet --editable . "jax[tpu]==0.10.2"
exec .venv/bin/python -m jaxmoe.launch "$@"
