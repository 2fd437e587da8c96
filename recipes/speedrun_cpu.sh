#!/usr/bin/env bash
# Speedrun: from nothing to generated meshes and their score, on two CPU cores.
#
# Makes   a procedural data set, a tokenizer (R 12, 432 tokens), an image-to-3D GPT (its code predictor
#         first, then its layers), meshes of 16 shapes that were held out, generated from one view
#         each, their scores beside those of baselines, and one mesh of the sample image.
# Where   outputs/speedrun; look at eval/ranked.png and generated/sample_image.png in it.
# Machine two CPU cores, 4 GB of memory; no GPU, no network.
# Takes   27 minutes of CPU time, so 15 to 20 on two cores by arithmetic. Measured once (commit 51ae91b,
#         2 x AMD EPYC, 2026-11-30), in 49 minutes by the clock, since the trainings had one thread and
#         both cores had other work. CPU minutes: data and samples 2.0, tokenizer 9.1, tokens and code
#         predictor 6.4, layers 7.8, scores 1.4.
# Scores  of that run, 16 shapes: Chamfer 0.040 [0.032, 0.047], F-score@0.02 0.346 [0.263, 0.442], volume
#         IoU 0.672 [0.610, 0.733]; its tokenizer 0.018, 0.735, 0.883; the training shape with the
#         nearest view 0.053, 0.338, 0.587; the sample image becomes a chair with arms.
#
# Run it from anywhere: bash recipes/speedrun_cpu.sh. Interrupted, the same line goes on. Sizes are
# changed by environment variables, as in OUT=outputs/longer CODEBOOK_STEPS=1000; TOKENIZER_OPTIONS
# and GPT_OPTIONS are further key=value words for the two trainings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${OUT:=outputs/speedrun}" "${WORKERS:=2}"
: "${SHAPES:=1000}" "${TESTED:=16}" "${POINTS:=8192}" "${VIEWS:=8}" "${RESOLUTION:=96}"
: "${AUTOENCODER_STEPS:=400}" "${CODEBOOK_STEPS:=300}" "${PREDICTOR_STEPS:=1500}" "${GPT_STEPS:=350}"
read -ra tokenizer_options <<<"${TOKENIZER_OPTIONS:-}"
read -ra gpt_options <<<"${GPT_OPTIONS:-}"
. recipes/step.sh

step data python -m tar3d.data.toy --out "$OUT/data" --num "$SHAPES" --seed 0 \
    --workers "$WORKERS" "views.count=$VIEWS"
step samples python -m tar3d.data.make_samples "$OUT/data" --workers "$WORKERS" \
    "surface_points=$POINTS" "volume_points=$POINTS" "near_points=$POINTS"

step tokenizer python train_vqvae.py --base configs/vqvae3d_tiny.yaml --data "$OUT/data" \
    --out "$OUT/vqvae" --resume auto "train.autoencoder_steps=$AUTOENCODER_STEPS" \
    "train.codebook_steps=$CODEBOOK_STEPS" train.validate_every=200 train.validation_shapes=32 \
    "${tokenizer_options[@]}"

step code_predictor python train_gpt.py --gpt-type i23d --gpt-model GPT-tiny --data "$OUT/data" \
    --vq-ckpt "$OUT/vqvae/model" --out "$OUT/code_predictor" --resume auto \
    train.stage=code_predictor "train.steps=$PREDICTOR_STEPS" train.global_batch_size=64 \
    train.code_predictor_rows=0 train.validate_every=500 train.validation_shapes=32 \
    "${gpt_options[@]}"
step gpt python train_gpt.py --gpt-type i23d --gpt-model GPT-tiny --data "$OUT/data" \
    --vq-ckpt "$OUT/vqvae/model" --init-code-predictor "$OUT/code_predictor/model/gpt_i23d" \
    --out "$OUT/gpt" --resume auto train.stage=transformer "train.steps=$GPT_STEPS" \
    train.code_predictor_weight=0 train.code_predictor_rows=0 train.token_noise=0.5 \
    train.validate_every=150 train.validation_shapes=32 "${gpt_options[@]}"

step generate python run.py --gpt-type i23d --model "$OUT/gpt/model" \
    --save-path "$OUT/generated" --resolution "$RESOLUTION"
step score python eval_3d.py --gpt-type i23d --model "$OUT/gpt/model" --test "$OUT/data" \
    --train "$OUT/data" --shapes "$TESTED" --resolution "$RESOLUTION" --workers "$WORKERS" \
    --out "$OUT/eval"
echo "seconds of each step: $(cd "$OUT/done" && grep -H . -- * | tr '\n' ' ')"
echo "scores: $OUT/eval/report.md; worst to best: $OUT/eval/ranked.png"
