#!/bin/bash
# sternum pretrain on 1 node, written by `sternum submit slurm`
#SBATCH --job-name=pretrain-fraction-seed
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gpus-per-node=1
#SBATCH --time=1440
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --array=0-3
#SBATCH --output=%x-%A_%a.out
set -euo pipefail

export NOTE='a b; c'
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
case $SLURM_ARRAY_TASK_ID in
    0) arguments=(runs/1-0 --seed=0 --data.fraction_percent=1 --config=gazda2021 '--data.shards=[shards/chexpert]' --train.world_size=1) doctor=(sternum doctor '--folders=["runs/1-0"]') ;;
    1) arguments=(runs/1-1 --seed=1 --data.fraction_percent=1 --config=gazda2021 '--data.shards=[shards/chexpert]' --train.world_size=1) doctor=(sternum doctor '--folders=["runs/1-1"]') ;;
    2) arguments=(runs/10-0 --seed=0 --data.fraction_percent=10 --config=gazda2021 '--data.shards=[shards/chexpert]' --train.world_size=1) doctor=(sternum doctor '--folders=["runs/10-0"]') ;;
    3) arguments=(runs/10-1 --seed=1 --data.fraction_percent=10 --config=gazda2021 '--data.shards=[shards/chexpert]' --train.world_size=1) doctor=(sternum doctor '--folders=["runs/10-1"]') ;;
esac

# Slurm sends USR1 before the time limit; the command then saves and stops. `scancel` and a preemption send TERM, which
# reaches the command without this script.
limit_is_near=false
trap 'limit_is_near=true; scancel --signal=TERM "$job"' USR1

# The job ends here, and says why, if a node is not fit for it.
srun "${doctor[@]}"

# The ranks of one node meet in a file, so nothing listens on the network.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
srun sternum supervise "${arguments[0]}" -- torchrun --nproc-per-node=1 --rdzv-backend=c10d \
    --rdzv-conf=store_type=file --local-addr=127.0.0.1 -m launch.pretrain "${arguments[@]}" &
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
