#!/bin/bash
# sternum probe on 4 nodes, written by `sternum submit slurm`
#SBATCH --job-name=probe-paper
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus-per-node=1
#SBATCH --time=1440
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

job=$SLURM_JOB_ID
arguments=(runs/paper '--data.shards=[shards/cell]' --address=auto)
doctor=(sternum doctor '--folders=["runs/paper"]')

# Slurm sends USR1 before the time limit; the command then saves and stops. `scancel` and a preemption send TERM, which
# reaches the command without this script.
limit_is_near=false
trap 'limit_is_near=true; scancel --signal=TERM "$job"' USR1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD=${nodes[0]} PORT=$((20000 + SLURM_JOB_ID % 10000))

# The job ends here, and says why, if a node is not fit for it.
MASTER_ADDR=$HEAD MASTER_PORT=$PORT srun "${doctor[@]}" --timeout_s=300

# Whoever reaches the ports of a Ray cluster could run code as you; this cluster asks for a token of this job.
RAY_AUTH_TOKEN=$(od -An -vtx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600

# shellcheck disable=SC2016 # each node expands its own
on_node='
    exec ray symmetric-run --address="$HEAD:$PORT" --min-nodes=4 \
        --num-cpus=8 --num-gpus=1 -- sternum probe "$@"
'
# The first node that ends must not end the others while they save, hence the options of srun.
srun --kill-on-bad-exit=0 --wait=600 bash -c "$on_node" node "${arguments[@]}" &
step=$!

interrupted=$((128 + $(kill -l USR1))) # the exit code of `wait` after the trap
code=0
wait "$step" || code=$?
while ((code == interrupted)); do
    code=0
    wait "$step" || code=$?
done
# 2 is a command or data that Sternum refuses: another start would not help.
if $limit_is_near && ((code != 0 && code != 2)); then
    scontrol requeue "$job"
fi
exit "$code"
