# An assistant: the newest run of configs/assistant_preference.py, rewarded for right answers (GRPO).
#     python tune.py configs/assistant_reward.py
#     python chat.py

method = "grpo"
init_from = "run:assistant_preference"
tasks = "sorting sorting sorting arithmetic"  # a name that comes more than once is asked as often
prompts = 32  # questions of a step
group = 8  # answers to each

max_new_tokens = 50  # a sum of three digits takes 36, and a preamble 11

learning_rate = 5e-4
max_iters = 60
min_lr = 0.0

log_interval = 10
