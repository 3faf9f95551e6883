#!/usr/bin/env bash
# One machine: a laptop, a workstation with GPUs, or one TPU VM. Arguments are passed on to jaxmoe.launch.
#   launch/local.sh --config=configs/quickstart.py --phase=all
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m jaxmoe.launch "$@"
