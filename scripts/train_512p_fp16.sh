#!/usr/bin/env bash
# The 512p stage in mixed precision.
cd "$(dirname "$0")/.." && exec python train.py --name label2city_512p --fp16 "$@"
