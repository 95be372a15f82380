#!/bin/sh
# The command of the job definition aws_batch.json:
#   aws batch register-job-definition --cli-input-json file://examples/batch/aws_batch.json
#   aws batch submit-job --job-name digits --job-queue spot --job-definition digits --parameters remote=s3://bucket/runs
set -eu
export ARTIFACTSYNC_REMOTE="$1"
export ARTIFACTSYNC_RUN_NAME="digits-$AWS_BATCH_JOB_ID"  # the same on every attempt
export ARTIFACTSYNC_GRACE_S=110                          # EC2 gives notice two minutes ahead
exec python examples/batch/train.py
