#!/usr/bin/env bash
# The shipped weights (pretrained/tiny) from nothing.
#
# Makes   outputs/shipped/tiny: tokenizer/ (R 16, 768 tokens), gpt_any/ (GPT-tiny, conditioned on an
#         image, a text or nothing) and evaluator/, and the three evaluation reports.
# Machine two CPU cores with bfloat16, 8 GB of memory, 40 GB of disk; no GPU, no network.
# Takes   7.7 h of training, measured one by one on 2 x AMD EPYC, other work beside them for part of
#         the time, 2026-11-28 and 2026-11-29 (hours and commit beside each training below); data
#         sets about 3 h (the last alone: 49 min). Not yet run as a whole, and not on a GPU.
#
#     REAL_MESHES=TABLE.csv bash recipes/shipped_weights.sh
#
# TABLE.csv lists the real meshes (`python -m tar3d.data.make_samples --help`). Those of the shipped
# tokenizer were 1,495 CC0 objects of The Base Mesh (744), Quaternius (708) and Kenney (43), of which
# 1,349 were trained on. Without the table procedural shapes are all it learns, and it will be worse
# on real ones. Interrupted, the same line goes on.
#
# What cannot be repeated to the bit: each training ran at its own commit. The two first GPTs had a
# code predictor whose predictions were not unit vectors yet; code_predictor_any3 spent its first
# 1,346 steps in a schedule of 17,000; num_workers and validate_every of some were not recorded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${OUT:=outputs/shipped}" "${DATA:=data}" "${REAL_MESHES:=}"
. recipes/step.sh

POINTS=(surface_points=8192 volume_points=8192 near_points=8192)
REAL_POINTS=(surface_points=16384 volume_points=16384 near_points=16384)
VQVAE=(python train_vqvae.py --base configs/vqvae3d_small.yaml --resume auto train.compile=true)
GPT=(python train_gpt.py --gpt-model GPT-tiny --resume auto)

# ---- a tokenizer, a first GPT, and the evaluator, on 6,000 procedural shapes and the real meshes

data=(--data "$DATA/toy") data_crossings=(--data "$DATA/toyx")
step toy python -m tar3d.data.toy --out "$DATA/toy" --num 6000 --seed 0
step toy_samples python -m tar3d.data.make_samples "$DATA/toy" "${POINTS[@]}"
if [ -n "$REAL_MESHES" ]; then
    step real_samples python -m tar3d.data.make_samples "$REAL_MESHES" --out "$DATA/dev" \
        "${REAL_POINTS[@]}"
    data+=(--data "$DATA/dev:4") data_crossings+=(--data "$DATA/devx:4")
else
    echo "REAL_MESHES is not given: the tokenizer learns procedural shapes alone"
fi

# 0.91 h, commit 3d0c670
step vqvae_small "${VQVAE[@]}" "${data[@]}" --out "$OUT/vqvae_small"
# 1.15 h, commit ceb8c3e: today's config, but for the shape of its code predictor
step gpt_small "${GPT[@]}" --gpt-type i23d --data "$DATA/toy" --vq-ckpt "$OUT/vqvae_small/model" \
    --out "$OUT/gpt_small" train.compile=true gpt.code_predictor_local=0 gpt.code_predictor_hidden=0
# 0.95 h, commit 81f9c36
step gpt_any "${GPT[@]}" --gpt-type any --data "$DATA/toy" --vq-ckpt "$OUT/vqvae_small/model" \
    --init "$OUT/gpt_small/model/gpt_i23d" --out "$OUT/gpt_any" train.compile=true \
    train.steps=2000 optim.muon_lr=3.0e-3 optim.adamw_lr=2.0e-3 \
    gpt.code_predictor_local=0 gpt.code_predictor_hidden=0
# 0.18 h, commit 27bb29b
step evaluator python -m tar3d.evaluation.evaluator "$DATA/toy" --out "$OUT/evaluator"

# ---- the tokenizer's decoder, trained further for the same tokens, with points where planes mistake
# ---- one part for another

step toyx python -m tar3d.data.toy --out "$DATA/toyx" --num 6000 --seed 0
step toyx_samples python -m tar3d.data.make_samples "$DATA/toyx" "${POINTS[@]}" crossing_share=0.3
if [ -n "$REAL_MESHES" ]; then
    step realx_samples python -m tar3d.data.make_samples "$REAL_MESHES" --out "$DATA/devx" \
        "${REAL_POINTS[@]}" crossing_share=0.3
fi
DECODER=("${VQVAE[@]}" "${data_crossings[@]}" train.stage=decoder train.autoencoder_steps=0
    train.codebook_steps=900 optim.muon_lr=1.5e-3 optim.adamw_lr=1e-3 train.num_workers=0)
# 0.50 and 0.44 h on one core, commit d6d2173
step vqvae_decoder "${DECODER[@]}" --init "$OUT/vqvae_small/model" --out "$OUT/vqvae_decoder"
step vqvae_decoder2 "${DECODER[@]}" --init "$OUT/vqvae_decoder/model" --out "$OUT/vqvae_decoder2" \
    train.seed=1

# ---- the GPT on four times as many shapes: encoders and code predictor by themselves, twice, then
# ---- the layers on them

step toyl python -m tar3d.data.toy --out "$DATA/toyl" --num 24000 --seed 0
step toyl_samples python -m tar3d.data.make_samples "$DATA/toyl" "${POINTS[@]}"
PREDICTOR=("${GPT[@]}" --gpt-type any train.stage=code_predictor train.global_batch_size=64
    train.code_predictor_rows=0 train.validation_shapes=128 optim.muon_lr=3e-3 optim.adamw_lr=3e-3)
LAYERS=("${GPT[@]}" --gpt-type any train.stage=transformer train.code_predictor_weight=0
    train.code_predictor_rows=0 train.token_noise=0.5 train.validation_shapes=128)
# 0.95 h on one core, commit 40dc676
step code_predictor_any "${PREDICTOR[@]}" --data "$DATA/toyl" --vq-ckpt "$OUT/vqvae_small/model" \
    --init "$OUT/gpt_any/model/gpt_any" --out "$OUT/code_predictor_any" train.steps=12000
# 1.04 h on one core, commit d6d2173
step code_predictor_any2 "${PREDICTOR[@]}" --data "$DATA/toyl" --vq-ckpt "$OUT/vqvae_small/model" \
    --init "$OUT/code_predictor_any/model/gpt_any" --out "$OUT/code_predictor_any2" \
    train.steps=14000 train.seed=1
# 0.63 h, commit d6d2173
step gpt_layers "${LAYERS[@]}" --data "$DATA/toyl" --vq-ckpt "$OUT/vqvae_decoder2/model" \
    --init "$OUT/gpt_any/model/gpt_any" \
    --init-code-predictor "$OUT/code_predictor_any2/model/gpt_any" --out "$OUT/gpt_layers" \
    train.compile=true train.steps=1600 optim.muon_lr=6e-3 optim.adamw_lr=3e-3 \
    train.save_every=50 train.validate_every=400

# ---- its encoders and code predictor once more, with 16 views of each shape, and the layers over
# ---- them as they are: one step at a rate that moves nothing, for what it validates and writes

step toyv python -m tar3d.data.toy --out "$DATA/toyv" --num 24000 --seed 0 views.count=16
step toyv_samples python -m tar3d.data.make_samples "$DATA/toyv" surface_points=8192 \
    volume_points=256 near_points=256
# 0.86 h, commit f6ec5b0
step code_predictor_any3 "${PREDICTOR[@]}" --data "$DATA/toyv" --vq-ckpt "$OUT/vqvae_decoder2/model" \
    --init "$OUT/gpt_layers/model/gpt_any" --out "$OUT/code_predictor_any3" \
    train.steps=12000 train.seed=2
# 0.01 h, commit f6ec5b0
step gpt_joined "${LAYERS[@]}" --data "$DATA/toyv" --vq-ckpt "$OUT/vqvae_decoder2/model" \
    --init "$OUT/gpt_layers/model/gpt_any" \
    --init-code-predictor "$OUT/code_predictor_any3/model/gpt_any" --out "$OUT/gpt_joined" \
    train.steps=1 optim.muon_lr=1e-6 optim.adamw_lr=1e-6

# ---- one folder, and its scores

mkdir -p "$OUT/tiny"
step tiny cp -r "$OUT/gpt_joined/model/." "$OUT/evaluator" "$OUT/tiny"
for gpt_type in i23d t23d uncond; do
    step "eval_$gpt_type" python eval_3d.py --gpt-type "$gpt_type" --model "$OUT/tiny" \
        --train "$DATA/toyv" --evaluator "$OUT/tiny/evaluator" --out "$OUT/eval_$gpt_type"
done
