#!/bin/bash
# sternum pretrain on 2 nodes, written by `sternum submit slurm`
#SBATCH --job-name=pretrain-paper
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus-per-node=4
#SBATCH --time=240
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

job=$SLURM_JOB_ID
arguments=(runs/paper --config=gazda2021 '--data.shards=[shards/chexpert]' --engine.kind=deepspeed --train.world_size=8)
doctor=(sternum doctor '--folders=["runs/paper"]')

# Slurm sends USR1 before the time limit; the command then saves and stops. `scancel` and a preemption send TERM, which
# reaches the command without this script.
limit_is_near=false
trap 'limit_is_near=true; scancel --signal=TERM "$job"' USR1

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export HEAD=${nodes[0]} PORT=$((20000 + SLURM_JOB_ID % 10000))

# The job ends here, and says why, if a node is not fit for it.
MASTER_ADDR=$HEAD MASTER_PORT=$PORT srun "${doctor[@]}" --timeout_s=300

# shellcheck disable=SC2016 # each node expands its own
on_node='
    hostfile=$(mktemp)
    scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/\$/ slots=4/" > "$hostfile"
    exec sternum supervise "$1" -- deepspeed --hostfile="$hostfile" --no_ssh --node_rank="$SLURM_NODEID" \
        --master_addr="$HEAD" --master_port="$PORT" --module launch.pretrain "$@"
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
