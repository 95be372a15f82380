#!/bin/bash
# sbatch examples/batch/slurm.sh train.py
#
# A job that is preempted, requeued, or near its time limit saves, goes back into the queue, and continues by name.
#SBATCH --job-name=digits
#SBATCH --requeue                # preempted: back into the queue instead of ended
#SBATCH --open-mode=append       # one log for all tries
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120        # to the training processes, two minutes before the time limit

export ARTIFACTSYNC_REMOTE="${ARTIFACTSYNC_REMOTE:-s3://bucket/runs}"
export ARTIFACTSYNC_RUN_NAME="$SLURM_JOB_NAME-$SLURM_JOB_ID"  # the same on every try
export ARTIFACTSYNC_GRACE_S=100

srun python "$@"
code=$?
case $code in
    # Ended by USR1, or by TERM within a partition's GraceTime, after saving. (scancel ends this script too: no requeue.)
    138 | 143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit $code
