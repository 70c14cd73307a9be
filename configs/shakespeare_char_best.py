# Tiny Shakespeare by characters, as well as minutes allow: shakespeare_char_fast.py in a larger model.
#     python train.py configs/shakespeare_char_best.py

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384  # ten million parameters
dropout = 0.2

position = "rotary"
activation = "relu2"
qk_norm = True
zero_init = True
token_shift = True
tied_head = False
optimizer = "muon"
schedule = "linear"
decay_share = 0.7

learning_rate = 1e-2
muon_learning_rate = 0.01
max_iters = 2000
warmup_iters = 0
min_lr = 0.0
beta2 = 0.99

eval_interval = 500
eval_iters = None  # the whole split
log_interval = 20

# Without an accelerator, eleven minutes: 4.75 million parameters, and the text is read 6.5 times. Against
# learning it by heart a strong weight decay does more than dropout, and costs nothing. bf16 takes two thirds
# of the time where the processor has it (on one that has not, add --dtype=float32).
cpu = dict(
    batch_size=8,
    block_size=512,
    n_head=4,
    n_embd=256,
    dropout=0.0,
    weight_decay=0.6,
    dtype="bfloat16",
    max_iters=1600,
    eval_interval=400,
)
