#!/bin/sh
# Run by LocalStack in its container (compose.yaml) when S3 is ready.
exec awslocal s3api create-bucket --bucket artifactsync
