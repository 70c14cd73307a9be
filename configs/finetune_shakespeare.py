# GPT-2 (124M), finetuned on tiny Shakespeare: a minute on one GPU.
# Larger ones, where memory allows: --init_from=gpt2-medium, gpt2-large, gpt2-xl.
# Where there is no network, put GPT-2's files into a folder: --init_from=FOLDER.

dataset = "shakespeare"  # in GPT-2's byte-pair encoding: 301,966 training tokens
init_from = "gpt2"  # the model's shape comes with the weights; block_size may be cut

# 4 sequences × 1,024 tokens × 8 accumulated = 32,768 tokens a step, so 20 steps read the text twice
batch_size = 4
gradient_accumulation_steps = 8
max_iters = 20

learning_rate = 3e-5  # a twentieth of the rate of training: the weights are to be adapted, not replaced
decay_lr = False
dropout = 0.1  # what GPT-2 itself was trained with

eval_interval = 5
eval_iters = 40
log_interval = 1

cpu = dict(
    batch_size=1,
    gradient_accumulation_steps=4,
    block_size=256,
    eval_iters=10,
)
