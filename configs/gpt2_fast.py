# A GPT of GPT-2 small's size with what docs/speed.md found to pay at small sizes, on OpenWebText.
# It is meant to reach the loss of gpt2.py in a third of its tokens; that has not been measured.
#     torchrun --standalone --nproc_per_node=8 train.py configs/gpt2_fast.py

dataset = "openwebtext"

# 60 sequences × 1,024 tokens × 8 accumulated = 491,520 tokens a step, on any number of GPUs that divides 480.
# 60 at a time are predicted to take 28 GB of a GPU; where they do not fit, fewer are taken.
batch_size = 60
block_size = 1024
gradient_accumulation_steps = 8

# 12 layers, 12 heads, 768 wide; the head of its own makes it 163 million parameters
n_layer = 12
n_head = 12
n_embd = 768
dropout = 0.0
bias = False

position = "rotary"
activation = "relu2"
qk_norm = True
zero_init = True
token_shift = True
tied_head = False
optimizer = "muon"
schedule = "linear"
decay_share = 0.7

# 200,000 steps × 491,520 tokens = 98 billion tokens
learning_rate = 3e-3
muon_learning_rate = 0.01
max_iters = 200_000
warmup_iters = 250
min_lr = 0.0
weight_decay = 0.1

eval_interval = 1000
eval_iters = 40
log_interval = 10
