# GPT-2 small (124M) on OpenWebText, the setting that nanoGPT published:
# validation loss about 2.85 after four days on eight A100 GPUs with 40 GB each.
#     torchrun --standalone --nproc_per_node=8 train.py configs/gpt2.py

dataset = "openwebtext"

# 60 sequences × 1,024 tokens × 8 accumulated = 491,520 tokens a step, on any number of GPUs that divides 480.
# 60 at a time are predicted to take 24 GB of a GPU; where they do not fit, fewer are taken.
batch_size = 60
block_size = 1024
gradient_accumulation_steps = 8

n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0
bias = False

# 600,000 steps × 491,520 tokens = 295 billion tokens
learning_rate = 6e-4
max_iters = 600_000
warmup_iters = 2000
min_lr = 6e-5
weight_decay = 0.1

eval_interval = 1000
eval_iters = 40
log_interval = 10
