#!/bin/bash
# sternum shard on 1 node, written by `sternum submit slurm`
#SBATCH --job-name=pack
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=32G
#SBATCH --time=1440
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

job=$SLURM_JOB_ID
arguments=(chexpert '--root=/data/My CheXpert' --out=shards/x)
doctor=(sternum doctor '--folders=["shards/x"]')

# Slurm sends USR1 before the time limit; the command then saves and stops. `scancel` and a preemption send TERM, which
# reaches the command without this script.
limit_is_near=false
trap 'limit_is_near=true; scancel --signal=TERM "$job"' USR1

# The job ends here, and says why, if a node is not fit for it.
srun "${doctor[@]}"

srun sternum shard "${arguments[@]}" &
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
