# A character-level GPT on tiny Shakespeare: minutes on a GPU, about two on a laptop with the part at the end.

dataset = "shakespeare_char"
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256  # characters that it looks back

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2  # ten million parameters, one million characters: without dropout it would learn them by heart

learning_rate = 1e-3  # small models bear high rates
max_iters = 5000
warmup_iters = 100
beta2 = 0.99  # a step has few tokens, so the second moments are averaged over more of them

eval_interval = 250
log_interval = 10

# Without an accelerator: 0.8 million parameters, 12 × 64 = 768 characters a step, two epochs in all.
cpu = dict(
    batch_size=12,
    block_size=64,
    n_layer=4,
    n_head=4,
    n_embd=128,
    dropout=0.0,
    learning_rate=3e-3,
    max_iters=3000,
    eval_interval=500,
    log_interval=100,
)
