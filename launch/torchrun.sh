#!/usr/bin/env bash
# Train on several devices of one machine, or of several machines with the same call on each:
#   launch/torchrun.sh data=imagenet data.root=FOLDER
#   NODES=2 NODE_RANK=0 MASTER=first-machine launch/torchrun.sh ...      (NODE_RANK=1 on the second)
#   COMMAND=predict launch/torchrun.sh ckpt=RUN files=FOLDER             (or evaluate)
# PROCESSES   devices of this machine that take part; default: its GPUs, or 1
# NODES, NODE_RANK, MASTER, PORT   number of machines, which one this is, the first one's name and a free port there
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
[[ -x $python ]] || python=python3
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}
nodes=${NODES:-1}
rendezvous=(--standalone)
if ((nodes > 1)); then
  rendezvous=(--node-rank "${NODE_RANK:?which machine is this? 0 to $((nodes - 1))}" --master-addr "${MASTER:?name of the first machine}" --master-port "${PORT:-29500}")
fi
exec "$python" -m torch.distributed.run "${rendezvous[@]}" --nnodes "$nodes" --nproc-per-node "$processes" \
  -m "imgrec.${COMMAND:-train}" "$@"
