#!/usr/bin/env bash
# Styles from the 512p stage's encoder, then 2048x1024 photographs in these styles.
set -e
cd "$(dirname "$0")/.."
python encode_features.py --name label2city_512p_feat
exec python test.py --name label2city_1024p_feat --netG local --ngf 32 --resize_or_crop none \
  --instance_feat "$@"
