# The base of a small assistant: it reads a made-up world's sentences, and completes them.
#     python train.py configs/assistant_base.py
#     python train.py configs/assistant_chat.py        makes an assistant of it

dataset = "assistant_base"  # written by tasks/, no download
gradient_accumulation_steps = 1
batch_size = 16
block_size = 256

n_layer = 4
n_head = 4
n_embd = 128  # 0.8 million parameters
dropout = 0.0

position = "rotary"
activation = "relu2"
qk_norm = True
zero_init = True
token_shift = True
optimizer = "muon"
schedule = "linear"
decay_share = 0.7

learning_rate = 1e-2
muon_learning_rate = 0.02
max_iters = 150  # 0.6 million tokens
warmup_iters = 0
min_lr = 0.0
beta2 = 0.99
weight_decay = 0.0

eval_interval = 75
eval_iters = 4
log_interval = 50
sample_tokens = 100
