#!/bin/bash
# sternum doctor on 4 nodes, written by `sternum submit slurm`
#SBATCH --job-name=doctor
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus-per-node=8
#SBATCH --time=1440
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

job=$SLURM_JOB_ID
arguments=('--folders=[/shared/runs]')

# Slurm sends USR1 before the time limit; the command then saves and stops. `scancel` and a preemption send TERM, which
# reaches the command without this script.
limit_is_near=false
trap 'limit_is_near=true; scancel --signal=TERM "$job"' USR1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD=${nodes[0]} PORT=$((20000 + SLURM_JOB_ID % 10000))

# shellcheck disable=SC2016 # each node expands its own
on_node='
    exec torchrun --nnodes=4 --nproc-per-node=8 \
        --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$HEAD:$PORT" \
        --rdzv-conf="is_host=$((SLURM_NODEID == 0))" --local-addr="$SLURMD_NODENAME" -m launch.doctor "$@"
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
