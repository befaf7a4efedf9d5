#!/bin/bash
# Slurm: sbatch examples/cluster/slurm.sh recipe.yaml [KEY=VALUE ...]
# One task per accelerator. The same script goes on from where an earlier job stopped; `hanlin plan` says how many devices a recipe needs.
#SBATCH --job-name=hanlin
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.out
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: sbatch $0 RECIPE [KEY=VALUE ...]" >&2
  exit 2
fi

# The same Python, project, data and run.folder at the same paths on all nodes.
source "${HANLIN_VENV:-$PWD/.venv}/bin/activate"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# What is wrong with the recipe is said before the accelerators wait for it.
hanlin check "$@"

# Two minutes before the time is over the tasks get SIGTERM, finish the step, save and end with 75: then again from there.
code=0
srun --kill-on-bad-exit=0 python -m hanlin train "$@" || code=$?
if [ "$code" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
