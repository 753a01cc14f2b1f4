#!/usr/bin/env bash
# The 512p stage on 8 GPUs in mixed precision, started with torchrun.
cd "$(dirname "$0")/.." && exec torchrun --standalone --nproc_per_node 8 train.py \
  --name label2city_512p --batchSize 8 --gpu_ids 0,1,2,3,4,5,6,7 --fp16 "$@"
