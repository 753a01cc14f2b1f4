#!/usr/bin/env bash
# 2048x1024 photographs from the model of train_1024p_24G.sh or train_1024p_12G.sh.
cd "$(dirname "$0")/.." && exec python test.py --name label2city_1024p --netG local --ngf 32 \
  --resize_or_crop none "$@"
