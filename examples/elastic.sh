#!/bin/bash
# A run on between MIN and MAX machines that come and go: start this on each of them.
#
#     HEAD=node1:29400 MIN=2 MAX=8 OUT=/shared/runs/stage2 examples/elastic.sh dreamllm-7b/stage2
#
# When a machine is lost or one is added, torchrun starts all ranks again; they resume from the last checkpoint
# in OUT, which all machines share, and cut the documents of a step and the shards over the ranks there now are.
# The losses are those of any other number of ranks.

set -euo pipefail

: "${1:?usage: examples/elastic.sh RECIPE [KEY=VALUE ...]}"
# Ranks that are started again need a new store: an old one tells them where the lost ones were, and they hang
# (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun \
    --nnodes "${MIN:-1}:${MAX:-4}" \
    --nproc-per-node "${GPUS:-8}" \
    --max-restarts "${RESTARTS:-100}" \
    --shutdown-timeout 240 \
    --rdzv-id "${ID:-dreamllm}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${HEAD:?the first machine, as HOST:PORT}" \
    -m dreamllm train "$@" --out "${OUT:?a folder that all machines share}"
