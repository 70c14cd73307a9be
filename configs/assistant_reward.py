# An assistant: the newest run of configs/assistant_preference.py, rewarded for right answers (GRPO).
#     python tune.py configs/assistant_reward.py
#     python chat.py

method = "grpo"
init_from = "run:assistant_preference"
tasks = "arithmetic counting reversing"
prompts = 32  # questions of a step
group = 8  # answers to each

max_new_tokens = 40  # a sum of three digits takes 36

learning_rate = 1e-4
max_iters = 40
warmup_iters = 5
min_lr = 0.0
beta2 = 0.95
weight_decay = 0.0

eval_interval = 20
log_interval = 10
