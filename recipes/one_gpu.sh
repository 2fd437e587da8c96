#!/usr/bin/env bash
# Your own meshes to an image-to-3D model of the paper's size, on one GPU.
#
# Makes   a tokenizer of R 32 (3,072 tokens, 16,384 codes), GPT-B on DINO's features, meshes generated
#         from your images, and scores of shapes that were held out.
# Machine one NVIDIA GPU of 24 GB or more with bfloat16 (requirements-cuda.txt adds kernels), 2.5 MB
#         of disk a mesh for samples and views, and tokens beside. DINO's weights are downloaded, or
#         taken from the local cache of huggingface_hub.
# Takes   not yet run on a GPU. Computed, not measured (docs/training.md), at 40 % of the peak, for
#         the full numbers of steps (TOKENIZER_STEPS=100000 GPT_STEPS=400000): tokenizer 41 h on an
#         RTX 4090 and 7 h on an H100, GPT-B 234 h and 39 h. The defaults here are a quarter of that.
#
#     MESHES=FOLDER IMAGES=FILE_OR_FOLDER bash recipes/one_gpu.sh
#
# Interrupted, the same line goes on. TOKENIZER_ROWS and GPT_ROWS are the shapes that go through a
# model together, chosen for 24 GB by arithmetic: larger ones are faster on a larger GPU (a divisor of
# 32 and of 64), and the results are the same. TOKENIZER_OPTIONS and GPT_OPTIONS are further key=value
# words, as in GPT_OPTIONS=train.activation_checkpointing=blocks where memory is still short.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${MESHES:?the folder of your meshes}" "${IMAGES:=assets/sample_image.png}"
: "${OUT:=outputs/one_gpu}" "${DATA:=$OUT/data}" "${GPT_MODEL:=GPT-B}"
: "${TOKENIZER_STEPS:=25000}" "${PREDICTOR_STEPS:=20000}" "${GPT_STEPS:=100000}"
: "${TOKENIZER_ROWS:=8}" "${GPT_ROWS:=4}"
read -ra tokenizer_options <<<"${TOKENIZER_OPTIONS:-}"
read -ra gpt_options <<<"${GPT_OPTIONS:-}"
. recipes/step.sh

step doctor python -m tar3d.doctor
step samples python -m tar3d.data.make_samples "$MESHES" --out "$DATA" views.count=16
step inspect python -m tar3d.data.inspect "$DATA"

# Each dry run says what its training needs of time, memory and disk before it starts.
VQVAE=(python train_vqvae.py --base configs/vqvae3d_fast.yaml --data "$DATA" train.compile=true
    "train.autoencoder_steps=$TOKENIZER_STEPS" "train.codebook_steps=$TOKENIZER_STEPS"
    "train.micro_batch_size=$TOKENIZER_ROWS" "${tokenizer_options[@]}")
step tokenizer_dry_run "${VQVAE[@]}" --dry-run
step tokenizer "${VQVAE[@]}" --out "$OUT/vqvae" --resume auto
step rebuilt python infer_vqvae.py --input_file "$MESHES" --model "$OUT/vqvae/model" \
    --output_dir "$OUT/rebuilt" --limit 50

# The code predictor alone at a tenth of the cost a step, then the layers on it (docs/training.md).
GPT=(python train_gpt.py --gpt-type i23d --gpt-model "$GPT_MODEL" --data "$DATA"
    --vq-ckpt "$OUT/vqvae/model" train.code_predictor_rows=0 "${gpt_options[@]}")
step code_predictor "${GPT[@]}" --out "$OUT/code_predictor" --resume auto \
    train.stage=code_predictor "train.steps=$PREDICTOR_STEPS"
LAYERS=("${GPT[@]}" --init-code-predictor "$OUT/code_predictor/model/gpt_i23d" train.compile=true
    train.stage=transformer train.code_predictor_weight=0 "train.steps=$GPT_STEPS"
    "train.micro_batch_size=$GPT_ROWS")
step gpt_dry_run "${LAYERS[@]}" --dry-run
step gpt "${LAYERS[@]}" --out "$OUT/gpt" --resume auto

step generate python run.py --gpt-type i23d --model "$OUT/gpt/model" --input "$IMAGES" \
    --save-path "$OUT/generated"
step score python eval_3d.py --gpt-type i23d --model "$OUT/gpt/model" --test "$DATA" \
    --train "$DATA" --out "$OUT/eval"
