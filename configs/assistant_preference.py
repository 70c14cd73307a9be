# An assistant: the newest run of configs/assistant_chat.py, tuned by preferences (DPO). The pairs are two
# answers of that model, ranked by a checker and by length; a tenth of the labels is wrong, as people's are.
#     python tune.py configs/assistant_preference.py

method = "dpo"
init_from = "run:assistant_chat"
tasks = "arithmetic counting reversing spelling"
pairs = 800
temperature = 0.7  # fewer slips, as many preambles
flipped = 0.1
prompts = 50  # pairs of a step
batch_size = 100
beta = 0.1

max_new_tokens = 50  # a sum of three digits takes 36, and a preamble 11

learning_rate = 5e-5
max_iters = 20
min_lr = 0.0

log_interval = 10
