#!/usr/bin/env bash
# The 512p stage with instance features.
cd "$(dirname "$0")/.." && exec python train.py --name label2city_512p_feat --instance_feat "$@"
