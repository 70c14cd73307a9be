# The smallest run that shows everything, in a few seconds: for tests, and for trying out a change.

dataset = "shakespeare_char"
gradient_accumulation_steps = 2
batch_size = 4
block_size = 32

n_layer = 2
n_head = 2
n_embd = 32
dropout = 0.1

learning_rate = 3e-3
max_iters = 20
warmup_iters = 5

eval_interval = 10
eval_iters = 4
log_interval = 1
sample_tokens = 32
