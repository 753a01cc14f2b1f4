#!/usr/bin/env bash
# The 1024p stage on top of train_512p.sh, trained on crops, for GPUs with 12 GB.
cd "$(dirname "$0")/.." && exec python train.py --name label2city_1024p --netG local --ngf 32 \
  --num_D 3 --load_pretrain checkpoints/label2city_512p --niter_fix_global 20 \
  --resize_or_crop crop --fineSize 1024 "$@"
