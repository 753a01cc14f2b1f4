#!/usr/bin/env bash
# The 512p stage on 8 GPUs, one image each.
cd "$(dirname "$0")/.." && exec python train.py --name label2city_512p --batchSize 8 \
  --gpu_ids 0,1,2,3,4,5,6,7 "$@"
