#!/bin/bash
# Huawei ModelArts, a training job with an image of your own (ascend.Dockerfile, cuda.Dockerfile). Start command:
#   bash /work/modelarts.sh /work/recipe.yaml [KEY=VALUE ...]
# /work is a mounted SFS Turbo that all nodes share; run.folder of the recipe lies there. modelarts_job.json is such a job
# for the API. ModelArts sets MA_NUM_HOSTS, MA_NUM_GPUS (NPUs too), VC_TASK_INDEX and VC_WORKER_HOSTS; outside of it this
# is one machine.
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: $0 RECIPE [KEY=VALUE ...]" >&2
  exit 2
fi

nodes="${MA_NUM_HOSTS:-1}"
node="${VC_TASK_INDEX:-0}"
hosts="${VC_WORKER_HOSTS:-127.0.0.1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}"

if [ "$node" -eq 0 ]; then
  hanlin check "$@"
fi
exec torchrun --nnodes "$nodes" --node-rank "$node" --nproc-per-node "${MA_NUM_GPUS:-8}" \
  --master-addr "${hosts%%,*}" --master-port 29500 -m hanlin train "$@"
