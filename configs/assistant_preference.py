# An assistant: the newest run of configs/assistant_chat.py, tuned by preferences (DPO). The pairs are two
# answers of that model, ranked by a checker and by length; a tenth of the labels is wrong, as people's are.
#     python tune.py configs/assistant_preference.py
#     python tune.py configs/assistant_reward.py           goes on from it

method = "dpo"
init_from = "run:assistant_chat"
tasks = "arithmetic counting reversing"
pairs = 2000
flipped = 0.1
prompts = 64  # pairs of a step
beta = 0.1

learning_rate = 3e-4
max_iters = 60
warmup_iters = 5
min_lr = 0.0
beta2 = 0.99
weight_decay = 0.0

eval_interval = 20
log_interval = 10
