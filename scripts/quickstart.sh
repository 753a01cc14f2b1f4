#!/usr/bin/env bash
# From a clone to generated photographs, on toy street scenes drawn by the project.
#
#   bash scripts/quickstart.sh                 everything: labels, features, 1024p stage, styles
#   bash scripts/quickstart.sh --labels-only   only labels to photographs
#
# A second run continues where the first one stopped and reuses its files.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in "" | --labels-only) ;; *) echo "usage: $0 [--labels-only]" >&2; exit 2 ;; esac
. scripts/environment.sh
need requirements.txt

activate="" # .venv is not active in the caller's shell
[ -n "${own_environment:-}" ] && activate=". .venv/bin/activate && "

running="" # PID:NAME of each training run in the background; if one fails, no further step begins
step() {
  for run in $running; do kill -0 "${run%:*}" 2> /dev/null || finish "$run"; done
  printf '\n== %s\n' "$*"
}
in_background() { # NAME COMMAND...
  echo "in the background; its log: checkpoints/$1.log"
  mkdir -p checkpoints
  "${@:2}" > "checkpoints/$1.log" 2>&1 &
  running="$running $!:$1"
}
finish() { # PID:NAME: if it failed, the script ends with its log and its exit status
  wait "${1%:*}" && return
  local status=$?
  case $status in 130 | 143) ;; *) cat "checkpoints/${1#*:}.log" ;; esac # no error: stopped
  exit $status
}
follow() { # NAME: show its log's last line, whenever there is a new one, until it has finished
  local shown="" line
  step "training $1, in the background"
  for run in $running; do
    [ "${run#*:}" = "$1" ] || continue
    while kill -0 "${run%:*}" 2> /dev/null; do
      line=$(tail -n 1 "checkpoints/$1.log")
      [ "$line" = "$shown" ] || echo "$line"
      shown=$line
      sleep 1
    done
    finish "$run"
  done
}
begin=$SECONDS
small=(--dataroot datasets/toy --loadSize 128 --ngf 16 --ndf 16 --num_D 3 --no_vgg_loss --cache ram
  --nThreads 0 --print_freq 200 --display_freq 200 --recipe plus
  --lr 0.0007 --n_downsample_global 1 --n_blocks_global 6 --n_layers_D 2)
features=(--instance_feat --nef 16 --n_downsample_E 2 --upsample icnr)
train_labels=(python train.py --name toy_labels "${small[@]}" --instance_mean_D --lambda_L1 50
  --lambda_latent 20 --niter 12 --niter_decay 16 --continue_train)

step "drawing toy scenes"
[ -s datasets/toy_raw/val.list ] ||
  python -m data.toy_cityscapes --out datasets/toy_raw --train 200 --val 20 --size 256x128 --seed 0
python prepare_cityscapes.py --raw datasets/toy_raw --out datasets/toy

step "training on label maps, 128 pixels wide"
# one core is left to other programs: a thread that waits for its core holds up all others
threads=$(python -c 'from util.parallel import available_cores as n; print(max(1, n() - 1))')
if [ "${1:-}" = --labels-only ]; then
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-$threads} "${train_labels[@]}"
  python test.py --name toy_labels
  printf '\nready after %d s; open this page in a browser:\n  %s\n' $((SECONDS - begin)) \
    "$PWD/results/toy_labels/test_latest/index.html"
  exit
fi
# The other training runs alongside, each with half the threads: sooner done than one by one.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 1 ? threads / 2 : 1))}
in_background toy_labels "${train_labels[@]}"
# so that all training stops with this script, after saving (pkill: the foreground's as well)
trap '{ pkill -P $$ || kill $(jobs -p) || true; } 2> /dev/null; wait' EXIT

step "meanwhile: training with instance features"
python train.py --name toy_features "${small[@]}" "${features[@]}" \
  --niter 7 --niter_decay 10 --continue_train

step "the next stage: twice the size, on crops, with features precomputed as maps"
python precompute_feature_maps.py --name toy_features
in_background toy_local python train.py --name toy_local "${small[@]}" "${features[@]}" \
  --netG local --ngf 8 \
  --loadSize 256 --resize_or_crop scale_width_and_crop --fineSize 96 \
  --load_features --fit_features --load_pretrain checkpoints/toy_features \
  --lambda_L1 85 --lr 0.001 --beta1 0.9 --niter_fix_global 1 --niter 3 --niter_decay 17 \
  --continue_train

follow toy_labels

step "encoding all instances and clustering their features into styles"
python encode_features.py --name toy_features

step "generating photographs of the validation scenes: the first stages"
python test.py --name toy_labels
python test.py --name toy_features --all_styles car --results_dir results/styles

step "one car in several styles, and how well that works"
python -m benchmarks.style_control --name toy_features --labels_name toy_labels

step "cutting objects for the editor to add"
python -m editor.library --name toy_local

follow toy_local
trap - EXIT

step "generating photographs of the validation scenes: the next stage"
python test.py --name toy_local --use_encoded_image --results_dir results/encoded
python test.py --name toy_local

printf '\nready after %d s; open these pages in a browser:\n' $((SECONDS - begin))
page() { printf '%s:\n  %s\n' "$1" "$PWD/results/$2/index.html"; }
page "from label maps, with a style sampled for each object" toy_local/test_latest
page "with the features of the photographs" encoded/toy_local/test_latest
page "each scene with its cars in all styles" styles/toy_features/test_latest
page "one car in all styles" toy_features/style_control
page "the first stage, without features, half as wide" toy_labels/test_latest
printf 'edit individual objects in the editor (pip install -r requirements-ui.txt):\n  %s\n' \
  "${activate}python edit.py --name toy_local"
