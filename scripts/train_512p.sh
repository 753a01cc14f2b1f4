#!/usr/bin/env bash
# The 512p stage: labels to photographs of 1024x512. Extra arguments are passed on.
cd "$(dirname "$0")/.." && exec python train.py --name label2city_512p "$@"
