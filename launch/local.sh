#!/usr/bin/env bash
# Train on this machine, with a log that survives the terminal: launch/local.sh data=mnist model=vgg
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[[ -x $python ]] || python=python3
mkdir -p runs
log=runs/local-$(date +%Y%m%d-%H%M%S).log
nohup "$python" -m imgrec.train "$@" >"$log" 2>&1 &
echo "process $!, log: tail -f $log"
