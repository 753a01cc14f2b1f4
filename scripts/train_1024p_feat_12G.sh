#!/usr/bin/env bash
# The 1024p stage with instance features, on crops, for GPUs with 12 GB. First writes the feature
# maps of the encoder trained by train_512p_feat.sh; PRECOMPUTE=no skips that if they exist.
set -e
cd "$(dirname "$0")/.."
[ "${PRECOMPUTE:-yes}" = no ] || python precompute_feature_maps.py --name label2city_512p_feat
exec python train.py --name label2city_1024p_feat --netG local --ngf 32 --num_D 3 \
  --load_pretrain checkpoints/label2city_512p_feat --niter_fix_global 20 \
  --resize_or_crop crop --fineSize 896 --instance_feat --load_features "$@"
