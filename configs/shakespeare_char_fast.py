# Tiny Shakespeare by characters, as soon as possible: what docs/speed.md found to pay, at the same size.

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
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
max_iters = 1000
warmup_iters = 0
min_lr = 0.0
beta2 = 0.99

eval_interval = 100
log_interval = 10

# Without an accelerator, seconds: two heads of 64 channels cost less than four of 32, and learn as much. So
# few steps want short memories: the averages of Muon and AdamW forget sooner than in a long run. Where the
# processor has AMX, --dtype=bfloat16 takes a quarter less time.
cpu = dict(
    batch_size=6,
    block_size=128,
    n_layer=4,
    n_head=2,
    n_embd=128,
    dropout=0.0,
    learning_rate=1.5e-2,
    beta1=0.8,
    beta2=0.95,
    muon_learning_rate=0.015,
    muon_momentum=0.85,
    max_iters=160,
    log_interval=20,
)
