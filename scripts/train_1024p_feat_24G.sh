#!/usr/bin/env bash
# The 1024p stage with instance features, for GPUs with 24 GB. First writes the feature maps of
# the encoder trained by train_512p_feat.sh; PRECOMPUTE=no skips that if they exist.
set -e
cd "$(dirname "$0")/.."
[ "${PRECOMPUTE:-yes}" = no ] || python precompute_feature_maps.py --name label2city_512p_feat
exec python train.py --name label2city_1024p_feat --netG local --ngf 32 --num_D 3 \
  --load_pretrain checkpoints/label2city_512p_feat --niter 50 --niter_decay 50 \
  --niter_fix_global 10 --resize_or_crop none --instance_feat --load_features "$@"
