#!/usr/bin/env bash
# Photographs of the test set from the model of train_512p.sh.
cd "$(dirname "$0")/.." && exec python test.py --name label2city_512p "$@"
