# A GPT on tiny Shakespeare in the byte pairs of GPT-2: 300,000 tokens, so a small model, stopped early.

dataset = "shakespeare"
gradient_accumulation_steps = 1
batch_size = 32
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.3  # 26 of its 30 million parameters are the vocabulary's; the text is short

learning_rate = 1e-3
max_iters = 1000
warmup_iters = 50
beta2 = 0.99

eval_interval = 100
patience = 3  # the validation loss turns upwards long before the training loss stops falling
log_interval = 10

cpu = dict(
    batch_size=8,
    block_size=64,
    n_layer=2,
    n_head=2,
    n_embd=64,
    max_iters=600,
    eval_interval=100,
    eval_iters=20,
)
