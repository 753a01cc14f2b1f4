#!/usr/bin/env bash
# The 1024p stage on top of train_512p.sh, on whole images of 2048x1024, for GPUs with 24 GB.
cd "$(dirname "$0")/.." && exec python train.py --name label2city_1024p --netG local --ngf 32 \
  --num_D 3 --load_pretrain checkpoints/label2city_512p --niter 50 --niter_decay 50 \
  --niter_fix_global 10 --resize_or_crop none "$@"
